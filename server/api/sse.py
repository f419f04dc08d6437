"""How an answer leaves: as a stream of server-sent events, or whole; either way an absent client cancels it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Any

import orjson
from fastapi import Request, Response
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Message, Receive, Scope, Send

from ..errors import RookeryError
from ..generation import Delta, Generation

PING_S = 15
"""Silence after which a comment keeps proxies from cutting the stream (long prompts, full batches)."""
DONE = b"data: [DONE]\n\n"
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def event(chunk: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


class GenerationStream(EventSourceResponse):
    """A generation as events; whatever happens, nothing of it runs in the engine afterwards.

    Args:
        events: what is written, as server-sent events.
        close: called when the client has left and when all is over; ends what still runs.
        grace_s: how long streams go on once the server has been told to stop.
    """

    def __init__(self, events: AsyncGenerator[bytes], close: Callable[[], None], *, grace_s: float) -> None:
        super().__init__(
            events,
            headers=HEADERS,
            ping=PING_S,
            ping_message_factory=lambda: ServerSentEvent(comment="ping", sep="\n"),
            sep="\n",
            shutdown_grace_period=grace_s + 5,  # the engine ends them by then; this is the last resort
            client_close_handler_callable=self._client_left,
        )
        self._close = close
        self._events = events
        self._write: Send | None = None

    async def _client_left(self, message: Message) -> None:
        self._close()  # at once, without waiting for the cancelled task to get its turn

    async def _send_with_timeout(self, send: Send, message: Message) -> None:
        """Without the base class's timer around every event: the edge cuts connections that do not read."""
        await send(message)

    async def _stream_response(self, send: Send) -> None:
        """As the base class's, with less between an event and the socket."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        write = self._write or send
        async with aclosing(self._events) as events:
            async for data in events:
                await write({"type": "http.response.body", "body": data, "more_body": True})
        async with self._send_lock:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._write = scope.get("state", {}).get("write")
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


class DeltaStream(GenerationStream):
    """The chunks of a completion or a chat, then `[DONE]`.

    Args:
        chunks: what the client is sent for the deltas of one engine message. They leave in one write.
        last: made after the last delta (the usage chunk), before `[DONE]`.
    """

    def __init__(
        self,
        generation: Generation,
        chunks: Callable[[list[Delta]], Iterable[dict[str, Any]]],
        last: Callable[[], Iterable[dict[str, Any]]],
        *,
        grace_s: float,
    ) -> None:
        super().__init__(_events(generation, chunks, last), generation.close, grace_s=grace_s)


async def _events(
    generation: Generation,
    chunks: Callable[[list[Delta]], Iterable[dict[str, Any]]],
    last: Callable[[], Iterable[dict[str, Any]]],
) -> AsyncGenerator[bytes]:
    try:
        async for deltas in generation.deltas():
            data = b"".join(map(event, chunks(deltas)))
            if data:
                yield data
    except RookeryError as error:  # the status has left: the envelope goes as an event, and no [DONE] follows
        yield event(error.body())
    else:
        yield b"".join(map(event, last())) + DONE


async def whole(request: Request, generation: Generation, add: Callable[[Delta], None]) -> bool:
    """Read a generation to its end into `add`; False when the client left before.

    Raises:
        RookeryError: the generation failed.
    """

    async def read() -> None:
        async for deltas in generation.deltas():
            for delta in deltas:
                add(delta)

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            continue

    reading, leaving = asyncio.create_task(read()), asyncio.create_task(left())
    try:
        await asyncio.wait((reading, leaving), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            reading.result()
        return reading.done()
    finally:
        for task in (reading, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, RookeryError):
                await task
        generation.close()


def json_answer(body: dict[str, Any]) -> Response:
    """A whole answer."""
    return Response(orjson.dumps(body), media_type="application/json")


def nobody() -> Response:
    """For a client that has left: never read."""
    return Response(status_code=499)
