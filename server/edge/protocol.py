"""uvicorn's HTTP/1.1 protocol, with an end to everything a client can draw out.

uvicorn itself waits for ever for headers, for bodies, and for clients that do not read; sizes are unbounded, and a
pipelined request hides the disconnect of the one before it. Here each connection is in one phase, and each phase that
waits for the client has a deadline.

    HEAD ─> BODY ─> ANSWER ─> IDLE ─> HEAD …        any of them ─> CLOSING

Requests are not pipelined: what follows a request before its answer is complete is dropped, and the connection is
closed after the answer (RFC 9112, 9.3.2 allows both). So an ambiguous framing can never get a second answer.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.config import Config as UvicornConfig
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from ..errors import HeadersTooLarge, InvalidRequest, NotReady, ReadTimeout, RookeryError
from .answers import raw_error
from .framing import framing_fault
from .limits import Limits
from .transport import ClosingTransport

log = logging.getLogger("rookery.edge")


class Phase(enum.Enum):
    """What a connection waits for."""

    HEAD = "the head of a request"
    BODY = "its body"
    ANSWER = "the application"
    IDLE = "the first byte of the next request"
    CLOSING = "the end; what comes in is dropped"


class EdgeProtocol(HttpToolsProtocol):
    """One connection. `limits` is set by `edge_protocol`."""

    limits: ClassVar[Limits]

    def __init__(
        self,
        config: UvicornConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.phase = Phase.HEAD
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._header_count = 0
        self._body_bytes = 0
        self._wire_bytes = 0
        self._dropped_bytes = 0
        self._body_start = 0.0
        self._keep_alive = True
        self._refusal: RookeryError | None = None

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        super().connection_made(ClosingTransport(transport, self._close, self._is_closing))
        self._arm(self.limits.header_timeout_s, self._head_is_late)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(NotReady("too many connections", code="overloaded", retry_after_s=5))

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.CLOSING
        self._disarm()
        self._cancel_stalled()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: close after the answer that is under way, at once where there is none."""
        if self.phase is Phase.BODY:
            self._refuse(NotReady("the server is shutting down", retry_after_s=5))
        elif self.phase in (Phase.HEAD, Phase.IDLE):
            self.phase = Phase.CLOSING
            self._socket.close()
        elif self.phase is Phase.ANSWER:
            self._keep_alive = self.cycle.keep_alive = False

    def _is_closing(self) -> bool:
        return self.phase is Phase.CLOSING or self._socket.is_closing()

    def _close(self) -> None:
        """Close so that the client gets what was written, but not for longer than the limits say."""
        if self._socket.is_closing():
            return
        unread = self.phase in (Phase.HEAD, Phase.BODY)  # closing now would reset, and the answer might be lost
        self.phase = Phase.CLOSING
        if unread and self._socket.can_write_eof():
            self._socket.write_eof()
            self.flow.resume_reading()
            self._arm(self.limits.linger_timeout_s, self._socket.abort)
        else:
            self._socket.close()
            self._arm(self.limits.send_timeout_s, self._socket.abort)

    # Deadlines

    def _arm(self, seconds: float, then: Callable[[], None]) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(seconds, then)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _head_is_late(self) -> None:
        if self._head_bytes:
            self._refuse(ReadTimeout("the headers did not arrive in time"))
        else:
            self._socket.close()  # nothing was asked

    def _body_is_late(self) -> None:
        allowed = self.limits.body_timeout_s + self._body_bytes / self.limits.min_body_rate
        left = self._body_start + allowed - self.loop.time()
        if left > 0:
            self._arm(left, self._body_is_late)
        else:
            self._refuse(ReadTimeout("the body did not arrive in time"))

    def pause_writing(self) -> None:
        """The client does not read as fast as is written."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.limits.send_timeout_s, self._socket.abort)

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._cancel_stalled()

    def _cancel_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    # Bytes from the client

    def data_received(self, data: bytes) -> None:
        if self.phase in (Phase.ANSWER, Phase.CLOSING):
            self._drop(data)
            return
        if self.phase is Phase.IDLE:
            self.phase = Phase.HEAD
            self._arm(self.limits.header_timeout_s, self._head_is_late)
        if self.phase is Phase.HEAD:
            self._head_bytes += len(data)
        else:
            self._wire_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._drop(b"upgrade")  # the request has been taken as plain HTTP; what follows it cannot be
        except httptools.HttpParserError:
            self._refuse(self._refusal or InvalidRequest("the request is not valid HTTP/1.1", code="invalid_http"))
        else:
            if self.phase is Phase.HEAD and self._head_bytes > self.limits.max_head_bytes:
                self._refuse(self._too_large())
            elif self.phase is Phase.BODY and self._wire_bytes - self._body_bytes > self.limits.max_body_bytes + 2**16:
                self._refuse(InvalidRequest("the body is sent in too many small pieces", code="invalid_http"))

    def _drop(self, data: bytes) -> None:
        """Input that will not be read: after the end of a request, or after a refusal."""
        if data.strip(b"\r\n"):
            self._keep_alive = False
            if self.phase is Phase.ANSWER:
                self.cycle.keep_alive = False
        self._dropped_bytes += len(data)
        if self._dropped_bytes > self.limits.linger_bytes:
            self._socket.abort()

    def _refuse(self, error: RookeryError) -> None:
        """Answer what never became a request, and close."""
        if self.phase in (Phase.ANSWER, Phase.CLOSING):
            self._drop(b"refused")  # the request before it is being answered; this one gets nothing
            return
        log.info("refused a request: %s", error.message)
        answered = False
        if self.phase is Phase.BODY:  # the application is waiting for this body, or has answered without it
            answered = self.cycle.response_started
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not answered:
            self._socket.write(raw_error(error))
        self._close()

    def _too_large(self) -> HeadersTooLarge:
        limits = self.limits
        return HeadersTooLarge(
            f"the request line and headers are over the limit of {limits.max_head_bytes} bytes"
            f" or {limits.max_headers} headers"
        )

    def _reject(self, error: RookeryError) -> None:
        """Stop the parser from within one of its callbacks; `data_received` answers."""
        self._refusal = error
        raise ValueError(error.message)

    # The parser's callbacks

    def on_message_begin(self) -> None:
        if self.phase is Phase.ANSWER:
            self._reject(InvalidRequest("pipelined"))
        self._header_count = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_count += 1
        if self._header_count > self.limits.max_headers:
            self._reject(self._too_large())
        if self.phase is Phase.HEAD:  # later ones are trailers, which nobody reads
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self.limits.max_head_bytes:
            self._reject(self._too_large())
        if fault := framing_fault(self.url, self.headers, self.parser.get_http_version()):
            self._reject(InvalidRequest(fault, code="invalid_http"))
        super().on_headers_complete()
        self._head_bytes = self._body_bytes = self._wire_bytes = 0
        self._keep_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False  # an answer before the end of the body ends the connection
        self.phase = Phase.BODY
        self._body_start = self.loop.time()
        self._arm(self.limits.body_timeout_s, self._body_is_late)

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self.phase = Phase.ANSWER
        self._disarm()
        if not self.cycle.response_started:
            self.cycle.keep_alive = self._keep_alive
        super().on_message_complete()

    # The end of an answer

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._is_closing():
            return
        if not self._keep_alive:
            self._close()
            return
        self.phase = Phase.IDLE
        self.flow.resume_reading()
        self._arm(self.limits.idle_timeout_s, self._socket.close)


def edge_protocol(limits: Limits) -> type[EdgeProtocol]:
    """The protocol class for `uvicorn.Config(http=…)`."""
    return type("EdgeProtocol", (EdgeProtocol,), {"limits": limits})
