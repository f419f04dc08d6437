"""An engine without a model, in this process: says what a test tells it to. Same interface as `EngineClient`."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from rookery.server.config import Config
from rookery.server.engine.client import EngineClient, EngineStatus
from rookery.server.engine.request import EngineInfo, EngineStats, FinishReason, Request, TokenEvent, TokenLogprobs
from rookery.server.engine.stream import EventStream
from rookery.server.errors import NotReady, RookeryError

BYTE_MODEL = EngineInfo(
    model_path="fake-bytes.pth",
    version="7",
    parameters=1000,
    layers=1,
    width=64,
    vocab_size=256,
    state_bytes=1024,
    weight_bytes=4000,
    dtype="float32",
    device="cpu",
    fingerprint="fa4e",
    max_batch=64,
)


def greeting(request: Request, choice: int) -> Sequence[int]:
    """The default reply, in bytes."""
    return b"Hello from the fake engine."


class FakeEngine(EngineClient):
    """Answers each choice with `reply(request, choice)`, one token a step; past the reply comes "stop".

    Attributes:
        submitted: every request taken, oldest first.
        cancelled: (request id, choice or None) of every cancel.
        refusal: raised by `submit` when set.
        fail_after: every choice ends with an error after so many tokens, when set.
        fault: that error; `refused` is the client's, else the engine's.
        gate: tokens flow while it is set; `gate.clear()` holds every stream.
    """

    def __init__(
        self,
        reply: Callable[[Request, int], Sequence[int]] = greeting,
        *,
        info: EngineInfo = BYTE_MODEL,
        config: Config | None = None,
    ) -> None:
        super().__init__(config if config is not None else Config(), Path(info.model_path))
        self.reply = reply
        self.submitted: list[Request] = []
        self.cancelled: list[tuple[str, int | None]] = []
        self.refusal: RookeryError | None = None
        self.fail_after: int | None = None
        self.fault: Literal["engine", "refused"] = "engine"
        self.gate = asyncio.Event()
        self.gate.set()
        self._loaded = info
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def silent_s(self) -> float:
        """It has no heartbeat, and is never silent."""
        return 0.0

    async def start(self) -> None:
        self.info = self._loaded
        self.stats = EngineStats(slots_free=self._loaded.max_batch)
        self.status = EngineStatus("ready")

    async def known(self) -> EngineInfo:
        return await self.ready()

    async def ready(self) -> EngineInfo:
        if self.info is None:
            raise NotReady("the engine was not started")
        return self.info

    async def submit(self, request: Request) -> EventStream:
        if self.status.phase != "ready":
            raise NotReady("the engine is not ready", retry_after_s=1)
        if self.refusal is not None:
            raise self.refusal
        self.submitted.append(request)

        def cancel(choice: int | None) -> None:
            self.cancelled.append((request.id, choice))
            for one in sorted(stream.running) if choice is None else [choice]:
                stream.push(TokenEvent(request.id, one, None, "cancelled"))

        stream = EventStream(request, cancel)
        task = asyncio.create_task(self._answer(stream))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return stream

    async def close(self, grace_s: float) -> None:
        self.status = EngineStatus("stopping")
        for task in tuple(self._tasks):
            task.cancel()

    async def _answer(self, stream: EventStream) -> None:
        """One turn of the loop is one step: a token for each running choice."""
        request = stream.request
        replies = [self.reply(request, choice) for choice in range(request.choices)]
        step = 0
        while stream.running:
            await asyncio.sleep(0)
            await self.gate.wait()
            for choice in sorted(stream.running):
                stream.push(self._event(request, choice, step, replies[choice]))
            step += 1

    def _event(self, request: Request, choice: int, step: int, reply: Sequence[int]) -> TokenEvent:
        sampling = request.sampling
        prompt = None
        if step == 0 and choice == 0 and sampling.prompt_logprobs is not None:
            prompt = (None, *(TokenLogprobs(-1.0, ((id, -1.0),)) for id in request.prompt_ids[1:]))
        if request.embed:
            vector = struct.pack("<64f", *(float(id) for id in (request.prompt_ids * 64)[:64]))
            return TokenEvent(request.id, choice, None, "length", embedding=vector)
        if self.fail_after is not None and step >= self.fail_after:
            refused = self.fault == "refused"
            error = "the grammar cannot go on" if refused else "the step failed"
            return TokenEvent(request.id, choice, None, "error", error=error, refused=refused)
        if step >= sampling.max_tokens:
            return TokenEvent(request.id, choice, None, "length", prompt_logprobs=prompt)
        stop = sampling.stop_token_ids[0] if sampling.stop_token_ids else 0
        token_id = reply[step] if step < len(reply) else stop
        finish: FinishReason | None = "stop" if step >= len(reply) or token_id in sampling.stop_token_ids else None
        if finish is None and step + 1 == sampling.max_tokens:
            finish = "length"
        logprobs = None
        if sampling.logprobs is not None:
            top = tuple((id, -1.0 - id) for id in range(sampling.logprobs))
            logprobs = TokenLogprobs(-0.5, top)
        return TokenEvent(request.id, choice, token_id, finish, logprobs=logprobs, prompt_logprobs=prompt)
