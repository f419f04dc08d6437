"""The events of one request, as they come from the engine: an asynchronous iterator that never loses a choice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from .request import Request, TokenEvent


class EventStream:
    """What the engine says about one request.

    `async for events in stream` gives all events that came since the last turn: usually those of one step, more when
    the reader is slow. So a slow reader costs memory for at most `max_tokens` events a choice, and no task switches.
    The iteration ends when every choice has had its event with a `finish`. Leave it early inside `async with stream`,
    and what still runs is cancelled.
    """

    def __init__(self, request: Request, cancel: Callable[[int | None], None]) -> None:
        """`cancel(choice)` tells the engine; None is every choice."""
        self.request = request
        self._running = set(range(request.choices))
        self._events: list[TokenEvent] = []
        self._waiter: asyncio.Future[None] | None = None
        self._cancel = cancel

    @property
    def running(self) -> frozenset[int]:
        """Choices whose last event has not come yet."""
        return frozenset(self._running)

    def cancel(self, choice: int | None = None) -> None:
        """Ask the engine to end one choice, or all; their last event, "cancelled", still comes."""
        if choice in self._running or (choice is None and self._running):
            self._cancel(choice)

    def push(self, event: TokenEvent) -> None:
        """Add an event (the engine's side of the stream); one of a choice that has ended is dropped."""
        if event.choice not in self._running:
            return
        if event.finish is not None:
            self._running.discard(event.choice)
        self._events.append(event)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, message: str) -> None:
        """End every choice that still runs with an error."""
        for choice in sorted(self._running):
            self.push(TokenEvent(self.request.id, choice, None, "error", error=message))

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> list[TokenEvent]:
        if not self._events:
            if not self._running:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        events, self._events = self._events, []
        return events

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()
