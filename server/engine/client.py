"""The engine as the HTTP side sees it: submit a request, read its events, know whether the engine is well.

Nothing here imports torch: the model lives in another process (`process.py`), which is started anew when it dies. Its
requests then end with an error event; none is sent twice, because part of an answer may have reached its client.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Literal

import zmq
import zmq.asyncio

from ..config import Config
from ..errors import EngineError, InvalidRequest, NotReady, RookeryError, StartupError
from .messages import (
    Accepted,
    Answered,
    Ask,
    Cancel,
    Failed,
    Hello,
    Progress,
    Ready,
    Refused,
    Step,
    Stop,
    Submit,
    ToEngine,
    decode_from_engine,
    encode,
)
from .questions import Question, Told
from .request import EngineInfo, EngineStats, Request
from .spawn import EngineProcess
from .stream import EventStream

logger = logging.getLogger("rookery.engine")

Phase = Literal["loading", "warming_up", "ready", "restarting", "failed", "stopping"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 30.0
"""Before a restart: doubled each time, until the engine has been ready for a while."""
_STEADY_S = 60.0
_STOP_S = 5.0

_CRASHED = "the engine stopped while it computed this request; it is being started again"
_STOPPING = "the server is shutting down"


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Where the engine is in its life."""

    phase: Phase
    progress: float | None = None
    """Share of the checkpoint that is loaded, 0 to 1."""
    error: StartupError | None = None
    """Why it failed, or why it is being restarted."""


class EngineClient:
    """One engine process, started, watched and spoken to.

    Args:
        first: a process that was started already with the same configuration; it becomes this client's to end.

    Attributes:
        info: what was loaded; None until the engine has been ready once.
        stats: gauges as of the engine's last step or heartbeat.
        status: phase, progress and error.
    """

    def __init__(self, config: Config, model_path: Path, first: EngineProcess | None = None) -> None:
        self.config = config
        self.model_path = model_path
        self._first = first
        self.info: EngineInfo | None = None
        self._known: EngineInfo | None = None
        self.stats = EngineStats()
        self.status = EngineStatus("loading")
        self._changed = asyncio.Event()
        """Set and replaced whenever `status` changes."""
        self._streams: dict[str, EventStream] = {}
        self._answers: dict[str, asyncio.Future[None]] = {}
        """Requests that the engine has neither accepted nor refused yet."""
        self._questions: dict[int, asyncio.Future[Told]] = {}
        self._asked = 0
        self._idle = asyncio.Event()
        """Set while there are no streams."""
        self._idle.set()
        self._socket: zmq.asyncio.Socket | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._heard_at = monotonic()
        self._patience_s = 0.0
        """What the process gets to stop by itself: nothing while it loads, for then it does not listen."""

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last spoke. It does so every second, between steps at least."""
        return monotonic() - self._heard_at

    async def start(self) -> None:
        """Start the engine process; returns at once, `ready()` waits for the model."""
        self._supervisor = asyncio.create_task(self._supervise())
        self._supervisor.add_done_callback(self._supervisor_ended)

    async def ready(self) -> EngineInfo:
        """Wait until requests are taken.

        Raises:
            StartupError: the model could not be loaded.
            NotReady: `close` was called.
        """
        while self.status.phase != "ready" or self.info is None:
            await self._change()
        return self.info

    async def known(self) -> EngineInfo:
        """Wait until it is known what is loaded: its weights are read, and the engine may still be warming up.

        Raises: as `ready`.
        """
        while self._known is None:
            await self._change()
        return self._known

    async def _change(self) -> None:
        """Wait until the status changes, unless it never will."""
        if self.status.phase == "failed" and self.status.error is not None:
            raise self.status.error
        if self.status.phase == "stopping":
            raise NotReady(_STOPPING)
        await self._changed.wait()

    async def submit(self, request: Request) -> EventStream:
        """Queue a request; returns when the engine has taken it.

        Raises:
            NotReady: no engine to take it (loading, restarting, stopping).
            QueueFull: as many wait as may.
            InvalidRequest: the engine refuses it (more choices than slots, a token id outside the vocabulary …).
            EngineError: the engine died before it answered.
        """
        if self.status.phase != "ready":
            raise NotReady(f"the engine is not ready ({self.status.phase.replace('_', ' ')})", retry_after_s=2)
        if request.id in self._streams:
            raise InvalidRequest(f"a request with the id {request.id!r} is running")
        stream = EventStream(request, partial(self._cancel, request.id))
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._streams[request.id] = stream
        self._answers[request.id] = answer
        self._idle.clear()
        self._send(Submit(request))
        try:
            await answer
        except asyncio.CancelledError:
            self._cancel(request.id, None)  # its stream is forgotten when the engine says so
            raise
        finally:
            self._answers.pop(request.id, None)
        return stream

    async def ask(self, question: Question) -> Told:
        """Have a question about sessions answered.

        Raises:
            NotReady: no engine to answer it.
            RookeryError: as the engine says.
        """
        if self.status.phase not in ("ready", "stopping"):
            raise NotReady(f"the engine is not ready ({self.status.phase.replace('_', ' ')})", retry_after_s=2)
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Told] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        self._send(Ask(number, question))
        try:
            return await answer
        finally:
            self._questions.pop(number, None)

    def tell(self, question: Question) -> None:
        """Send a question that has no answer (`DropTurn`)."""
        self._asked += 1
        self._send(Ask(self._asked, question))

    def discard(self) -> None:
        """End the first process where `start` was never called."""
        if self._first is not None:
            self._first.discard()

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, give running ones `grace_s` seconds, end the rest with an error, stop the process.

        May be called again, with less grace, while an earlier call still waits.
        """
        self._become(EngineStatus("stopping"))
        if self._streams:
            try:
                await asyncio.wait_for(self._idle.wait(), grace_s)
            except TimeoutError:
                logger.warning("%d requests did not end in time", len(self._streams))
        self._end_all(NotReady(_STOPPING))
        if self._supervisor is not None:
            if not self._supervisor.cancelling():  # a second cancel would cut the stopping of the process short
                self._supervisor.cancel()
            await asyncio.wait([self._supervisor])

    def _become(self, status: EngineStatus) -> None:
        if self.status.phase == "stopping":
            return
        self.status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("the engine is not watched any more", exc_info=error)
            self._end_all(EngineError("the server has lost its engine"))
            self._become(
                EngineStatus("failed", error=StartupError(f"internal error: {error}", "start the server again"))
            )

    async def _supervise(self) -> None:
        """Keep an engine process running until this task is cancelled, or the first one could not load."""
        pause_s = _FIRST_PAUSE_S
        with zmq.asyncio.Context() as context:
            while True:
                began = monotonic()
                error = await self._live(context)
                if self.info is None:
                    self._become(EngineStatus("failed", error=error))
                    return
                logger.error("%s; starting it again", error.cause)
                self._become(EngineStatus("restarting", error=error))
                pause_s = _FIRST_PAUSE_S if monotonic() - began > _STEADY_S else min(2 * pause_s, _LONGEST_PAUSE_S)
                await asyncio.sleep(pause_s)

    async def _live(self, context: zmq.asyncio.Context) -> StartupError:
        """One life of the engine process, from its start to its end; why it ended."""
        process, self._first = self._first, None
        try:
            process = process or EngineProcess.start(self.config, self.model_path)
        except StartupError as error:
            return error
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.connect(process.endpoint)
        self._socket = socket
        self._patience_s = 0.0
        self._send(Hello())
        reading, ending = asyncio.create_task(self._read(socket)), asyncio.create_task(process.wait())
        try:
            await asyncio.wait([reading, ending], return_when=asyncio.FIRST_COMPLETED)
            return reading.result() if reading.done() else ending.result()
        finally:
            reading.cancel()
            ending.cancel()
            self._send(Stop())
            await process.stop(self._patience_s)
            self._socket = None
            socket.close()
            self._end_all(EngineError(_CRASHED))
            self.stats = EngineStats()

    async def _read(self, socket: zmq.asyncio.Socket) -> StartupError:
        """Handle what the engine says, until it says that it cannot start."""
        while True:
            message = decode_from_engine(await socket.recv())
            self._heard_at = monotonic()
            match message:
                case Step():
                    self._dispatch(message)
                case Accepted(request_id):
                    if (answer := self._answers.get(request_id)) is not None and not answer.done():
                        answer.set_result(None)
                case Refused(request_id):
                    if (answer := self._answers.get(request_id)) is not None and not answer.done():
                        answer.set_exception(message.error())
                    self._forget(request_id)
                case Answered(number, told, refused):
                    self._answered(number, told, refused)
                case Progress(phase, progress, info):
                    self._known = info or self._known
                    if self.info is None:  # a restart stays a restart until it is ready
                        self._become(EngineStatus("warming_up" if phase == "warming_up" else "loading", progress))
                case Ready(info, stats):
                    self.info, self._known, self.stats, self._patience_s = info, info, stats, _STOP_S
                    self._become(EngineStatus("ready", 1.0))
                case Failed():
                    self._patience_s = _STOP_S
                    return message.error()

    def _answered(self, number: int, told: Told | None, refused: Refused | None) -> None:
        answer = self._questions.get(number)
        if answer is None or answer.done():
            return
        if refused is not None:
            answer.set_exception(refused.error())
        else:
            answer.set_result(told or Told())

    def _dispatch(self, step: Step) -> None:
        """Hand the events of a step to their streams."""
        self.stats = step.stats
        for event in step.unpack():
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.push(event)
                if event.finish is not None and not stream.running:
                    self._forget(event.request_id)

    def _send(self, message: ToEngine) -> None:
        if self._socket is not None:
            self._socket.send(encode(message), zmq.NOBLOCK)  # no high-water mark: it is queued at once

    def _cancel(self, request_id: str, choice: int | None) -> None:
        if request_id in self._streams:
            self._send(Cancel(request_id, choice))

    def _forget(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        if not self._streams:
            self._idle.set()

    def _end_all(self, error: RookeryError) -> None:
        """End every request: streams with an error event, unanswered submits with the error itself."""
        for question in self._questions.values():
            if not question.done():
                question.set_exception(error)
        for request_id, stream in tuple(self._streams.items()):
            answer = self._answers.get(request_id)
            if answer is not None and not answer.done():
                answer.set_exception(error)
            stream.fail(error.message)
            self._cancel(request_id, None)
            self._forget(request_id)
