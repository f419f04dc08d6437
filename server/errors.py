"""Every error a client or an operator can see.

RookeryError                 one per thing a client can act on; `app.py` turns it into OpenAI's error body
  InvalidRequest             400  a value is wrong; `param` names it
    PromptTooLong            400  context_length_exceeded
    UnsupportedParameter     400  known to OpenAI, not served here, and it would change the answer
  Unauthorized               401  invalid_api_key
  Forbidden                  403  a Host that a foreign page could have, on a server without keys
  ModelNotFound              404  model_not_found
  NotFound                   404  any other thing that does not exist (for this key)
  MethodNotAllowed           405  with Allow
  ReadTimeout                408  the request did not arrive in time
  SessionBusy                409  another request is writing this session
  SessionDamaged             410  the stored state of this session cannot be read
  ResponseDamaged            410  what is stored of this response, or of one before it, is damaged
  BodyTooLarge               413
  UnsupportedMediaType       415
  HeadersTooLarge            431
  QueueFull                  429  Retry-After
  TooManySessions            429  as many as --max-sessions allows a key
  NotReady                   503  loading, or shutting down; Retry-After
  RequestTimeout             503  the request outlived --request-timeout
  EngineError                500  a step failed; only the requests it concerns end with it
  StorageFailed              507  the disk for sessions is full, read-only or broken; nothing was changed

StartupError                 what stops a command before it serves: one line of cause, one of mend
  CheckpointError            a model, state or tokenizer file that cannot be used
"""

from __future__ import annotations


class RookeryError(Exception):
    """An error with an HTTP status and the fields of OpenAI's error body.

    Args:
        message: one sentence for the client; no paths, no tracebacks.
        param: name of the request field at fault, where there is one.
        code: overrides the class's `code`.
        retry_after_s: value of the `Retry-After` header, in whole seconds.
    """

    status = 500
    kind = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code if code is not None else type(self).code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, dict[str, str | None]]:
        """OpenAI's error body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class InvalidRequest(RookeryError):
    """A value of the request is wrong."""

    status, kind, code = 400, "invalid_request_error", "invalid_value"


class PromptTooLong(InvalidRequest):
    """The prompt does not fit the limit this server was started with."""

    code = "context_length_exceeded"

    def __init__(self, tokens: int, limit: int, *, param: str = "messages") -> None:
        super().__init__(f"the prompt has {tokens} tokens; this server accepts at most {limit}", param=param)


class UnsupportedParameter(InvalidRequest):
    """A field that is not served and would change the answer if it were ignored."""

    code = "unsupported_parameter"


class HeadersTooLarge(RookeryError):
    """The request line and headers are over the limit, in bytes or in number."""

    status, kind, code = 431, "invalid_request_error", "headers_too_large"


class ReadTimeout(RookeryError):
    """The client took too long to send its request."""

    status, kind, code = 408, "invalid_request_error", "request_timeout"


class Forbidden(RookeryError):
    """Refused for where the request comes from."""

    status, kind, code = 403, "invalid_request_error", "forbidden"


class Unauthorized(RookeryError):
    """No API key, or a wrong one."""

    status, kind, code = 401, "invalid_request_error", "invalid_api_key"


class NotFound(RookeryError):
    """Something that does not exist, or not for this key."""

    status, kind, code = 404, "invalid_request_error", "not_found"


class MethodNotAllowed(RookeryError):
    """The route exists, with other methods; `Allow` names them."""

    status, kind, code = 405, "invalid_request_error", "method_not_allowed"


class ModelNotFound(NotFound):
    """A model name this server does not serve."""

    code = "model_not_found"

    def __init__(self, name: str, served: list[str]) -> None:
        known = ", ".join(served)
        super().__init__(f"the model {name[:200]!r} does not exist; this server has: {known}", param="model")


class SessionBusy(RookeryError):
    """Another request is writing this session."""

    status, kind, code = 409, "invalid_request_error", "session_busy"


class SessionDamaged(RookeryError):
    """The stored state of this session is missing or damaged; others are well."""

    status, kind, code = 410, "invalid_request_error", "session_damaged"


class ResponseDamaged(RookeryError):
    """What is stored of this response, or of one before it, is not what was stored; others are well."""

    status, kind, code = 410, "invalid_request_error", "response_damaged"


class TooManySessions(RookeryError):
    """This key has as many sessions as it may."""

    status, kind, code = 429, "rate_limit_error", "too_many_sessions"


class StorageFailed(RookeryError):
    """The session could not be written or read; it is what it was before."""

    status, kind, code = 507, "server_error", "storage_failed"


class BodyTooLarge(RookeryError):
    """The request body is over the limit."""

    status, kind, code = 413, "invalid_request_error", "request_too_large"


class UnsupportedMediaType(RookeryError):
    """The body is not JSON, or comes compressed."""

    status, kind, code = 415, "invalid_request_error", "unsupported_media_type"


class QueueFull(RookeryError):
    """As many requests wait as this server is set to hold."""

    status, kind, code = 429, "rate_limit_error", "queue_full"


class NotReady(RookeryError):
    """The engine is loading, restarting or shutting down."""

    status, kind, code = 503, "server_error", "not_ready"


class RequestTimeout(RookeryError):
    """The request was not done within --request-timeout."""

    status, kind, code = 503, "server_error", "timeout"


class EngineError(RookeryError):
    """A step failed; the requests it concerned end with this, the engine goes on."""

    status, kind, code = 500, "server_error", "engine_error"


class StartupError(Exception):
    """What stops a command before it serves.

    Args:
        cause: one line: what is wrong, with the value.
        mend: one line: what to do about it.
        exit_code: 2 for wrong usage, 1 for everything else.
    """

    def __init__(self, cause: str, mend: str, *, exit_code: int = 1) -> None:
        super().__init__(cause)
        self.cause = cause
        self.mend = mend
        self.exit_code = exit_code


class CheckpointError(StartupError):
    """A model, state or tokenizer file that cannot be used."""
