"""The protocol on a real socket over a small application: framing, limits, deadlines, how connections end."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from rookery.server.edge.limits import Limits
from rookery.server.edge.protocol import Phase, edge_protocol

from .hostile.wire import GET, HIDDEN, HOST, MALFORMED, POST

LIMITS = Limits(
    max_body_bytes=1000,
    header_timeout_s=5,
    body_timeout_s=5,
    idle_timeout_s=5,
    send_timeout_s=5,
    max_connections=20,
    linger_timeout_s=1,
    linger_bytes=50_000,
)
"""Long where a test does not wait for them."""
SHORT = 0.15
"""Seconds, where a test does."""


@dataclass
class App:
    """Echoes bodies, unless `handle` does something else; counts what it saw."""

    requests: int = 0
    disconnects: int = 0
    handle: Callable[[Scope, Receive, Send], Awaitable[None]] | None = None
    state: ServerState = field(default_factory=ServerState)
    port: int = 0
    clients: list[asyncio.StreamWriter] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.requests += 1
        if self.handle is not None:
            await self.handle(scope, receive, send)
            return
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await answer(send, 200, body)

    async def connect(self, data: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        self.clients.append(writer)
        writer.write(data)
        return reader, writer

    async def exchange(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        reader, writer = await self.connect(data)
        try:
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionResetError:
            return b""
        finally:
            writer.close()

    async def idle(self) -> None:
        """Wait until no connection is left."""
        async with asyncio.timeout(10):
            while self.state.connections or self.state.tasks:
                await asyncio.sleep(0.01)


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def serving(limits: Limits = LIMITS) -> AsyncIterator[App]:
    app = App()
    config = uvicorn.Config(app, http=edge_protocol(limits), ws="none", lifespan="off", log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: config.http_protocol_class(config=config, server_state=app.state, app_state={}),  # type: ignore[call-arg]
        "127.0.0.1",
        0,
    )
    app.port = server.sockets[0].getsockname()[1]
    try:
        yield app
    finally:
        server.close()
        for connection in list(app.state.connections):
            connection.transport.abort()
        for writer in app.clients:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()
        await app.idle()


def post(body: bytes) -> bytes:
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


def statuses(data: bytes) -> list[int]:
    """Of the answers in a stream of bytes."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", data)]


@pytest.mark.parametrize("name", MALFORMED)
async def test_a_malformed_stream_gets_one_4xx_and_never_reaches_the_application(name: str) -> None:
    async with serving() as app:
        data = await app.exchange(MALFORMED[name])
        assert len(statuses(data)) <= 1, data
        assert all(400 <= status < 500 for status in statuses(data)), data
        if statuses(data):
            assert json.loads(data.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"
            assert b"connection: close" in data and b"x-request-id: req_" in data
        assert statuses(await app.exchange(GET + b"Connection: close\r\n\r\n")) == [200]


async def test_connections_are_kept_and_closed_when_asked() -> None:
    async with serving() as app:
        reader, writer = await app.connect()
        for body in (b"one", b"two", b""):
            writer.write(post(body))
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"connection: close" not in head
            assert await reader.readexactly(len(body)) == body
        writer.write(GET + b"Connection: close\r\n\r\n")
        assert b"connection: close" in await reader.read()
        writer.close()


async def test_a_pipelined_request_is_dropped_and_the_connection_closed() -> None:
    async with serving() as app:
        data = await app.exchange(post(b"first") + HIDDEN)
        assert statuses(data) == [200]
        assert data.endswith(b"first") and b"connection: close" in data
        assert app.requests == 1


async def test_chunked_bodies_and_expect_continue_work() -> None:
    async with serving() as app:
        chunks = (
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
        )
        assert (await app.exchange(POST + chunks)).endswith(b"\r\n\r\nabcde")
        reader, writer = await app.connect(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"{}")
        assert (await reader.readuntil(b"{}")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_upgrade_is_ignored() -> None:
    async with serving() as app:
        data = await app.exchange(GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n" + b"\x00frames")
        assert statuses(data) == [200]


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /v1/mod",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: 1\r\n",
        POST + b"Content-Length: 10\r\n\r\n{",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
    ],
    ids=["silent", "line", "headers", "body", "chunk"],
)
async def test_whoever_does_not_finish_a_request_is_cut(sent: bytes) -> None:
    limits = replace(LIMITS, header_timeout_s=SHORT, body_timeout_s=SHORT, linger_timeout_s=SHORT)
    async with serving(limits) as app:
        data = await app.exchange(sent)
        assert statuses(data) == ([408] if sent else [])
        await app.idle()


async def test_dripping_does_not_reset_the_deadlines() -> None:
    limits = replace(LIMITS, header_timeout_s=SHORT, body_timeout_s=SHORT, linger_timeout_s=SHORT)
    async with serving(limits) as app:
        for start, drop in ((GET, b"X-A: 1\r\n"), (POST + b"Content-Length: 900\r\n\r\n", b"a")):
            reader, writer = await app.connect(start)
            drops = 0
            while not reader.at_eof():
                assert drops < 500
                drops += 1
                writer.write(drop)
                try:
                    await asyncio.wait_for(reader.read(), 0.02)
                except (TimeoutError, ConnectionError):
                    continue
            writer.close()
            await app.idle()


async def test_a_slow_body_above_the_least_rate_is_read() -> None:
    async with serving(replace(LIMITS, body_timeout_s=SHORT, min_body_rate=100)) as app:
        reader, writer = await app.connect(POST + b"Content-Length: 900\r\n\r\n" + b"a" * 300)
        await asyncio.sleep(2 * SHORT)  # 300 bytes are allowed 3 seconds
        writer.write(b"a" * 600)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_idle_connection_is_closed() -> None:
    async with serving(replace(LIMITS, idle_timeout_s=SHORT)) as app:
        data = await app.exchange(post(b"x"))
        assert statuses(data) == [200] and b"connection: close" not in data


async def test_an_early_answer_is_not_lost_although_the_body_goes_on() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 401, b"no")

    async with serving() as app:
        app.handle = refuse
        reader, writer = await app.connect(POST + b"Content-Length: 40000\r\n\r\n")
        await reader.readuntil(b"HTTP/1.1 401")  # before the body
        writer.write(b"a" * 40000)
        await writer.drain()
        data = await reader.read()
        assert b"connection: close" in data and data.endswith(b"no")


async def test_what_follows_a_refusal_is_read_up_to_a_bound() -> None:
    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 413, b"no")

    async with serving() as app:
        app.handle = refuse
        _, writer = await app.connect(POST + b"Content-Length: 100000000\r\n\r\n")
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 50_000_000:
                writer.write(b"a" * 10_000)
                await writer.drain()
                sent += 10_000
        assert sent < 20_000_000  # what the kernel's buffers took, mostly
        writer.close()


async def test_a_client_that_does_not_read_is_cut() -> None:
    ended = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (await asyncio.wait_for(receive(), 10))["type"] != "http.disconnect":
            for _ in range(1000):
                await send({"type": "http.response.body", "body": b"a" * 65536, "more_body": True})
        ended.set()

    async with serving(replace(LIMITS, send_timeout_s=SHORT)) as app:
        app.handle = flood
        _, writer = await app.connect(GET + b"\r\n")
        await asyncio.wait_for(ended.wait(), 20)
        writer.transport.abort()


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("sent", [GET + b"\r\n", POST + b"Content-Length: 10\r\n\r\n{"], ids=["waiting", "half_sent"])
async def test_the_application_hears_of_a_disconnect(sent: bytes, reset: bool) -> None:
    heard = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            continue
        heard.set()

    async with serving() as app:
        app.handle = wait
        _, writer = await app.connect(sent)
        while not app.requests:
            await asyncio.sleep(0.01)
        if reset:
            raw = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        writer.close()
        await asyncio.wait_for(heard.wait(), 5)
        await app.idle()


async def test_connections_beyond_the_limit_get_503() -> None:
    async with serving(replace(LIMITS, max_connections=3)) as app:
        kept = [await app.connect() for _ in range(3)]
        data = await app.exchange(GET + b"\r\n")
        assert statuses(data) == [503] and b"retry-after" in data
        for _, writer in kept:
            writer.close()
        while app.state.connections:
            await asyncio.sleep(0.01)
        assert statuses(await app.exchange(GET + b"Connection: close\r\n\r\n")) == [200]


async def test_shutdown_closes_idle_and_half_sent_connections_and_lets_answers_end() -> None:
    go = asyncio.Event()

    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            continue
        if message["type"] == "http.request":
            await go.wait()
            await answer(send, 200, b"done")

    async with serving() as app:
        app.handle = wait
        clients = [
            await app.connect(data) for data in (b"", b"GET /", POST + b"Content-Length: 9\r\n\r\n{", GET + b"\r\n")
        ]
        while app.requests < 2 or len(app.state.connections) < 4:
            await asyncio.sleep(0.01)
        for connection in list(app.state.connections):
            connection.shutdown()
        silent, line, body = [await asyncio.wait_for(reader.read(), 5) for reader, _ in clients[:3]]
        assert (silent, line, statuses(body)) == (b"", b"", [503])
        phases = [connection.phase for connection in app.state.connections]  # type: ignore[union-attr]
        assert sorted(phase.name for phase in phases if phase is not Phase.CLOSING) == ["ANSWER"]
        go.set()
        last = await asyncio.wait_for(clients[3][0].read(), 5)
        assert last.endswith(b"done") and b"connection: close" in last
        for _, writer in clients:
            writer.close()


async def test_http_1_0_needs_no_host() -> None:
    async with serving() as app:
        assert statuses(await app.exchange(b"GET /health HTTP/1.0\r\n\r\n")) == [200]
        assert statuses(
            await app.exchange(b"GET http://x/health HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        ) == [200]
