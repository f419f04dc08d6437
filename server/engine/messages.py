"""What the API processes and the engine process say to each other: msgpack by msgspec, over ZeroMQ.

    API → engine     Hello · Submit · Cancel · Ask · Stop
    engine → API     Progress · Ready · Failed · Accepted · Refused · Answered · Step

An API process says Hello and is told where the engine stands; each Submit is answered by Accepted or Refused, and
then by Steps: one message a step and API process, with every row of it. Steps without events are the heartbeat.
Questions about sessions (`questions.py`) are numbered, and Answered when the store has done what they ask for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from ..errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    NotReady,
    PromptTooLong,
    QueueFull,
    RookeryError,
    SessionBusy,
    SessionDamaged,
    StartupError,
    StorageFailed,
    TooManySessions,
)
from .questions import Question, Told
from .request import EngineInfo, EngineStats, Request, TokenEvent

HEARTBEAT_S = 1.0
"""The engine speaks at least so often, between steps."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine process is started with: one line of JSON on its standard input."""

    endpoint: str
    """ZeroMQ address the engine listens on."""
    model_path: str
    dtype: str = "auto"
    quantize: str = "none"
    device: str = "auto"
    slot_dtype: Literal["float32", "float16"] = "float32"
    """Of the WKV states of running sequences."""
    exact: bool = False
    """Whether results must be the same bits whatever a step's other rows are."""
    states: dict[str, str] = {}
    """Files of tuned initial states, by name."""
    tokenizer: str | None = None
    max_batch: int = 64
    max_queue: int = 256
    prefill_budget: int = 8192
    step_target_s: float | None = None
    cache_bytes: int = 0
    """Host memory for stored states."""
    cache_disk_bytes: int = 0
    """Disk space for them, in the data folder."""
    data_dir: str | None = None
    """Folder of the sessions; None keeps them in memory."""
    state_dtype: Literal["float32", "float16"] = "float32"
    """Of WKV states on disk."""
    session_memory_bytes: int = 2**31
    """Host memory for sessions: all where there is no folder, those used last where there is one."""
    session_ttl_s: float | None = None
    max_sessions: int = 1000
    """Of one tenant."""
    threads: int | None = None
    """Threads of one operator on a CPU; None leaves the choice to torch."""
    log_format: str = "text"


class _Message(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Travels as [name of the class, field, …]."""


class Hello(_Message, frozen=True):
    """An API process is there."""


class Submit(_Message, frozen=True):
    request: Request


class Cancel(_Message, frozen=True):
    request_id: str
    choice: int | None = None


class Ask(_Message, frozen=True):
    number: int
    question: Question


class Stop(_Message, frozen=True):
    """End the process."""


class Progress(_Message, frozen=True):
    phase: str
    """"loading" or "warming_up"."""
    progress: float | None = None
    info: EngineInfo | None = None
    """Once the weights are read."""


class Ready(_Message, frozen=True):
    info: EngineInfo
    stats: EngineStats


class Failed(_Message, frozen=True):
    """The engine cannot start; its process waits for Stop."""

    cause: str
    mend: str
    exit_code: int

    def error(self) -> StartupError:
        return StartupError(self.cause, self.mend, exit_code=self.exit_code)


class Accepted(_Message, frozen=True):
    request_id: str


class Refused(_Message, frozen=True):
    request_id: str
    kind: str
    """Name of the error's class."""
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    @classmethod
    def because(cls, request_id: str, error: RookeryError) -> Refused:
        return cls(request_id, type(error).__name__, error.message, error.param, error.code, error.retry_after_s)

    def error(self) -> RookeryError:
        kind = _REFUSALS.get(self.kind, EngineError)
        error = kind.__new__(kind)  # whatever its own constructor takes, these are its fields
        RookeryError.__init__(error, self.message, param=self.param, code=self.code, retry_after_s=self.retry_after_s)
        return error


class Answered(_Message, frozen=True):
    number: int
    told: Told | None = None
    refused: Refused | None = None


_REFUSALS: dict[str, type[RookeryError]] = {
    kind.__name__: kind
    for kind in (
        InvalidRequest, PromptTooLong, NotFound, SessionBusy, SessionDamaged, QueueFull, TooManySessions, NotReady,
        EngineError, StorageFailed,
    )
}  # fmt: skip


class Step(_Message, frozen=True):
    """What one step did for the requests of one API process."""

    stats: EngineStats
    tokens: list[tuple[str, int, int]] = []
    """Most events are a token and nothing else: request id, choice, token id."""
    events: list[TokenEvent] = []
    """The others."""

    @classmethod
    def pack(cls, stats: EngineStats, events: Iterable[TokenEvent]) -> Step:
        tokens: list[tuple[str, int, int]] = []
        others: list[TokenEvent] = []
        for event in events:
            plain = event.finish is None and event.logprobs is None and event.prompt_logprobs is None
            if plain and event.token_id is not None and not event.cached_tokens:
                tokens.append((event.request_id, event.choice, event.token_id))
            else:
                others.append(event)
        return cls(stats, tokens, others)

    def unpack(self) -> Iterable[TokenEvent]:
        for request_id, choice, token_id in self.tokens:
            yield TokenEvent(request_id, choice, token_id)
        yield from self.events


ToEngine = Hello | Submit | Cancel | Ask | Stop
FromEngine = Progress | Ready | Failed | Accepted | Refused | Answered | Step

_encoder = msgspec.msgpack.Encoder()
_to_engine: msgspec.msgpack.Decoder[ToEngine] = msgspec.msgpack.Decoder(ToEngine)
_from_engine: msgspec.msgpack.Decoder[FromEngine] = msgspec.msgpack.Decoder(FromEngine)


def encode(message: ToEngine | FromEngine) -> bytes:
    return _encoder.encode(message)


def decode_to_engine(data: bytes) -> ToEngine:
    """Raises msgspec.DecodeError for what is no message."""
    return _to_engine.decode(data)


def decode_from_engine(data: bytes) -> FromEngine:
    """Raises msgspec.DecodeError for what is no message."""
    return _from_engine.decode(data)
