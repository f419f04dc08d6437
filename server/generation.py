"""A running request: the engine's events of all its prompts and choices, turned into deltas.

Streamed and whole answers are both made of these deltas, so their text, finish reasons, log-probabilities and usage
cannot differ.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from .answer import Answer, Piece
from .engine.request import TokenEvent, TokenLogprobs
from .engine.stream import EventStream
from .errors import EngineError, InvalidRequest, RequestTimeout, RookeryError
from .metrics import RequestMeter
from .sessions import SessionTurn

Finish = Literal["stop", "length"]


@dataclass(slots=True)
class Delta:
    """What is new in one choice."""

    choice: int
    pieces: list[Piece] = field(default_factory=list)
    events: list[TokenEvent] = field(default_factory=list)
    """The tokens drawn, those of a stop string too; not the end token."""
    end_token: TokenEvent | None = None
    """The stop token that was drawn: reported, but not part of the text."""
    finish: Finish | None = None
    characters: int = 0
    """Of plain text let through so far, since the start of the choice."""
    cut: bool = False
    """The text ends at `characters`, though more was drawn: a stop string, or the end of a turn."""
    embedding: bytes | None = None
    """As in `TokenEvent`."""

    @property
    def drawn(self) -> list[TokenEvent]:
        """Every token drawn, the end token too."""
        return self.events if self.end_token is None else [*self.events, self.end_token]

    @property
    def token_ids(self) -> list[int]:
        """Their ids."""
        return [event.token_id for event in self.drawn if event.token_id is not None]


@dataclass(slots=True)
class Usage:
    """Token counts of a request, over all its prompts and choices."""

    prompt_tokens: int = 0
    """The whole context the answers are computed from, once a prompt."""
    completion_tokens: int = 0
    """Every token drawn, end tokens too."""
    cached_tokens: int = 0
    """Prompt tokens that came from a stored state."""
    reasoning_tokens: int = 0

    def as_dict(self) -> dict[str, object]:
        """OpenAI's `usage`."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }


class Generation:
    """After `deltas` has ended, by itself or by any error, nothing of it runs in the engine.

    Whoever holds one whose deltas may never be read calls `close`.

    Args:
        shaped_by: the request field that the grammar came from, if there is one.

    Attributes:
        id: of the answer.
        created: Unix time, seconds.
        prompts: the prompts' token ids.
        usage: counts so far; complete after the last delta.
        prompt_logprobs: of each prompt's tokens, the first None; there with the first delta when asked for.
    """

    def __init__(
        self,
        id: str,
        streams: Sequence[EventStream],
        answer: Callable[[], Answer],
        meter: RequestMeter,
        *,
        timeout_s: float,
        turn: SessionTurn | None = None,
        shaped_by: str | None = None,
    ) -> None:
        self.id = id
        self.created = int(time.time())
        self.prompts = [stream.request.prompt_ids for stream in streams]
        self.usage = Usage(prompt_tokens=sum(map(len, self.prompts)) + (turn.tokens if turn is not None else 0))
        self._turn = turn
        self._shaped_by = shaped_by
        self._streams = streams
        self._choices = streams[0].request.choices
        self._answers = [answer() for stream in streams for _ in range(self._choices)]
        self._finish: list[Finish | None] = [None] * len(self._answers)
        self._meter = meter
        self._late: RequestTimeout | None = None
        self._timer = asyncio.get_running_loop().call_later(timeout_s, self._expire, timeout_s)
        self._cached = [0] * len(streams)
        self.prompt_logprobs: list[tuple[TokenLogprobs | None, ...]] = [()] * len(streams)

    @property
    def choices(self) -> int:
        """Choices in the answer, over all prompts."""
        return len(self._answers)

    @property
    def finish_reasons(self) -> list[Finish | None]:
        """Why each choice ended; None for one that runs, or was cut short."""
        return list(self._finish)

    def close(self, reason: str = "disconnect") -> None:
        """Cancel what still runs; does nothing after the end."""
        self._timer.cancel()
        for stream in self._streams:
            stream.cancel()
        if self._turn is not None:
            self._turn.drop()
        self._meter.cancelled(reason)

    def _expire(self, timeout_s: float) -> None:
        """The time is up: the streams end here and now, whatever the engine does."""
        self._late = RequestTimeout(f"the answer was not done within {timeout_s:g} s")
        for stream in self._streams:
            stream.cancel()
            stream.fail(self._late.message)

    async def deltas(self) -> AsyncIterator[list[Delta]]:
        """What is new in each message of the engine, one delta for each choice concerned; to be read once.

        Raises:
            InvalidRequest: the grammar ran into a limit, or together with other settings leaves no token.
            EngineError: a step failed, or the engine died.
            RequestTimeout: the request outlived `--request-timeout`.
            StorageFailed: the session's turn could not be stored.
        """
        reason = "disconnect"
        try:
            async with aclosing(self._events()) as messages:
                async for number, events in messages:
                    deltas = self._read(number, events)
                    if self._turn is not None:
                        await self._turn.follow(deltas)  # the last delta leaves when the session holds the turn
                    if deltas:
                        yield deltas
            self._meter.finished(finish for finish in self._finish if finish)
        except RookeryError:
            reason = "timeout" if self._late else "error"
            raise
        finally:
            self.close(reason)

    def _read(self, number: int, events: list[TokenEvent]) -> list[Delta]:
        """Events of one prompt, as one delta for each choice they concern."""
        stream = self._streams[number]
        deltas: dict[int, Delta] = {}
        for event in events:
            choice = number * self._choices + event.choice
            if self._finish[choice] is not None:
                continue  # drawn before the engine heard of the cancel: the answer had ended
            if self._late is not None and event.finish in ("error", "cancelled"):
                raise self._late
            if event.finish == "error" and event.refused:
                raise InvalidRequest(event.error or "", param=self._shaped_by, code="unsupported_grammar")
            if event.finish == "error":
                raise EngineError(event.error or "the engine failed")
            if event.finish == "cancelled":
                raise EngineError("the engine ended the request")
            delta = deltas.get(choice) or deltas.setdefault(choice, Delta(choice))
            if event.prompt_logprobs is not None:
                self.prompt_logprobs[number] = event.prompt_logprobs
            delta.embedding = delta.embedding or event.embedding
            if event.cached_tokens > self._cached[number]:
                self._meter.cached(event.cached_tokens - self._cached[number])
                self._cached[number] = event.cached_tokens
                self.usage.cached_tokens = sum(self._cached)
            answer = self._answers[choice]
            if event.token_id is not None:
                self.usage.completion_tokens += 1
                self.usage.reasoning_tokens += answer.reasoning
                if event.finish == "stop" and event.token_id in stream.request.sampling.stop_token_ids:
                    delta.end_token = event
                else:
                    delta.events.append(event)
                    delta.pieces += answer.push(event.token_id)
            if answer.ended:
                delta.finish = "stop"
                stream.cancel(event.choice)
            elif event.finish is not None:
                delta.pieces += answer.flush(closed=delta.end_token is not None)
                delta.finish = "stop" if answer.ended else event.finish
            self._finish[choice] = delta.finish
            delta.characters, delta.cut = answer.characters, answer.cut
        for choice, delta in deltas.items():
            if drawn := delta.drawn:
                self._meter.token(choice, len(drawn))
        return list(deltas.values())

    async def _events(self) -> AsyncGenerator[tuple[int, list[TokenEvent]]]:
        """(prompt, events) until every choice has ended, from all streams as they come."""
        if len(self._streams) == 1:
            stream = self._streams[0]
            while None in self._finish:
                yield 0, await anext(stream)
            return
        merged: asyncio.Queue[tuple[int, list[TokenEvent]]] = asyncio.Queue()

        async def pump(number: int, stream: EventStream) -> None:
            async for events in stream:
                merged.put_nowait((number, events))

        pumps = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(self._streams)]
        try:
            while None in self._finish:
                yield await merged.get()
        finally:
            for task in pumps:
                task.cancel()
