"""The whole HTTP side over a fake engine: in this process for most tests, behind a real socket where that matters."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import orjson
import uvicorn

from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.engine.request import Request

from .fake_engine import FakeEngine

T = TypeVar("T")
MODEL = "tiny"
END = 0
"""A token id that tests use as the end token: the byte vocabulary has none of its own."""


def says(text: str | bytes, *, end: bool = True) -> Callable[[Request, int], Sequence[int]]:
    """A reply of these bytes, then the end token."""
    raw = text.encode() if isinstance(text, str) else text
    return lambda request, choice: [*raw, *([END] if end else [])]


def chunks_of(stream: str) -> list[dict[str, Any]]:
    """The JSON events of a stream, which must end with `[DONE]`."""
    events = [line.removeprefix("data: ") for line in stream.split("\n\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]", events[-1]
    return [orjson.loads(event) for event in events[:-1]]


@dataclass
class Api:
    """A client and the engine behind it."""

    client: httpx.AsyncClient
    engine: FakeEngine

    async def complete(self, prompt: object = "hi", **fields: object) -> dict[str, Any]:
        """A completion that must succeed."""
        return await self._post("/v1/completions", {"prompt": prompt, "stop_token_ids": [END], **fields})

    async def chat(self, *contents: str, **fields: object) -> dict[str, Any]:
        """A chat that must succeed; roles alternate, the user first."""
        turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents or ("hi",))]
        return await self._post("/v1/chat/completions", {"messages": turns, "stop_token_ids": [END], **fields})

    async def stream(self, path: str, **fields: object) -> list[dict[str, Any]]:
        """The chunks of a stream that must succeed."""
        answer = await self.client.post(path, json={"model": MODEL, "stream": True, "stop_token_ids": [END], **fields})
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return chunks_of(answer.text)

    async def refused(self, path: str, **body: object) -> dict[str, Any]:
        """The error of a request that must be refused with 400."""
        answer = await self.client.post(path, json={"model": MODEL, **body})
        assert answer.status_code == 400, (answer.status_code, answer.text)
        error: dict[str, Any] = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        return error

    async def _post(self, path: str, body: dict[str, object]) -> dict[str, Any]:
        answer = await self.client.post(path, json={"model": MODEL, **body})
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result


@asynccontextmanager
async def api_in_process(engine: FakeEngine | None = None, config: Config | None = None) -> AsyncIterator[Api]:
    """The application without a socket."""
    config = config or Config(served_model_name=(MODEL,))
    engine = engine or FakeEngine(config=config)
    app = create_app(config, engine)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://api") as client,
    ):
        await app.state.loading
        yield Api(client, engine)


class ApiServer:
    """The application behind a real socket, in a thread of its own."""

    def __init__(self, url: str, engine: FakeEngine, loop: asyncio.AbstractEventLoop) -> None:
        self.url = url
        self.engine = engine
        self._loop = loop

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run something on the server's event loop."""

        async def running() -> T:
            return await work()

        return asyncio.run_coroutine_threadsafe(running(), self._loop).result(timeout=30)


@contextmanager
def api_server(
    engine: FakeEngine | None = None, config: Config | None = None, *, demo: bool = False
) -> Iterator[ApiServer]:
    """A server on a free port."""
    config = config or Config(served_model_name=(MODEL,))
    engine = engine or FakeEngine(config=config)
    app = create_app(config, engine, demo=demo)
    listener = socket.create_server(("127.0.0.1", 0))
    started = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            await app.state.loading
            loops.append(asyncio.get_running_loop())
            started.set()

    server = Server(uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        assert started.wait(30)
        yield ApiServer(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, loops[0])
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()
