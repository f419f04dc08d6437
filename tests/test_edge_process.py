"""A real server process under clients that are slow, leave, are too many, or send what is not HTTP; and how it stops.

The figures of the reliability table with small counts; `-m slow` runs the full ones.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from .hostile.wire import HIDDEN, MALFORMED
from .server_process import MODEL, ServerProcess, launched, server_process, write_tiny

SLOTS, QUEUE = 4, 8
FLAGS = (
    "--max-batch", str(SLOTS), "--max-queue", str(QUEUE), "--max-body", "1MiB",
    "--header-timeout", "2", "--body-timeout", "2", "--send-timeout", "5",
)  # fmt: skip
LONG = {"model": MODEL, "prompt": "long", "max_tokens": 30_000, "ignore_eos": True, "stream": True}
"""Runs until somebody ends it."""
RESET = struct.pack("ii", 1, 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), *FLAGS) as running:
        yield running


def request_bytes(body: dict[str, Any], path: str = "/v1/completions") -> bytes:
    raw = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(raw)}"
    return head.encode() + b"\r\n\r\n" + raw


@asynccontextmanager
async def connected(
    server: ServerProcess, data: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A bare connection on which `data` has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**26)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def good_request(client: httpx.AsyncClient, prompt: str = "hi", tokens: int = 4) -> str:
    """A greedy completion that must succeed; its text."""
    body = {"model": MODEL, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    choice = answer.json()["choices"][0]
    assert choice["finish_reason"] == "length"
    return str(choice["text"])


def client_of(server: ServerProcess) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits)


# G3: slow clients


async def drip(server: ServerProcess, start: bytes, drop: bytes, within_s: float) -> None:
    """Send `start`, then one `drop` a time, until the server cuts the connection; it must within the time."""
    async with connected(server, start) as (reader, writer), asyncio.timeout(within_s):
        while not reader.at_eof():
            writer.write(drop)
            try:
                await asyncio.wait_for(reader.read(4096), 0.3)
            except TimeoutError:
                continue
            except ConnectionError:
                return


async def slow_clients(server: ServerProcess, count: int, within_s: float) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    body = head + b"Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"
    slow = [
        asyncio.create_task(drip(server, start, drop, within_s))
        for start, drop in ((head, b"X-A: 1\r\n"), (body, b" "), (b"", b""))
        for _ in range(count)
    ]
    async with client_of(server) as client:
        while not all(task.done() for task in slow):
            await good_request(client)
            await asyncio.sleep(0.2)
    await asyncio.gather(*slow)


async def test_slow_clients_are_cut_and_the_others_served(server: ServerProcess) -> None:
    await slow_clients(server, 6, 30)


# G4: disconnects


async def leave(server: ServerProcess, kind: str, reset: bool) -> None:
    """Ask for a long answer and go: after the first bytes ("stream"), at once ("early"), or while waiting ("whole")."""
    async with connected(server, request_bytes(LONG | {"stream": kind != "whole"})) as (reader, writer):
        await writer.drain()
        if kind == "stream":
            await asyncio.wait_for(reader.readuntil(b"data: "), 60)
        elif kind == "whole":
            await asyncio.sleep(0.1)
        if reset:
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            writer.close()


async def disconnects(server: ServerProcess, rounds: int) -> None:
    async with client_of(server) as client:
        await good_request(client)
    before = server.descriptors()
    cancelled = server.metric("rookery_cancelled_total", reason="disconnect")
    kinds = [(kind, reset) for kind in ("stream", "early", "whole") for reset in (False, True)]
    for _ in range(rounds):
        await asyncio.gather(*(leave(server, *kind) for kind in kinds))
    await asyncio.to_thread(server.wait_idle, 15)
    assert server.descriptors() <= before + 2
    seen = server.metric("rookery_cancelled_total", reason="disconnect") - cancelled
    assert seen >= 4 * rounds  # the early ones may have left before they were admitted
    async with client_of(server) as client:
        await good_request(client)


async def test_whoever_leaves_gives_everything_back(server: ServerProcess) -> None:
    await disconnects(server, 2)


# G6 and G7: overload, and exactness under it


async def overload(server: ServerProcess, times: int, tokens: int) -> None:
    prompts = [f"prompt number {n}" for n in range(times * (SLOTS + QUEUE))]
    body = {"model": MODEL, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}

    async def one(number: int) -> tuple[int, str]:
        fields = body | {"prompt": prompts[number], "stream": number % 2 == 1}
        answer = await client.post("/v1/completions", json=fields)
        if answer.status_code != 200:
            assert answer.status_code in (429, 503) and int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["message"]
            return answer.status_code, ""
        if not fields["stream"]:
            return 200, answer.json()["choices"][0]["text"]
        events = [json.loads(event) for event in re.findall(r"^data: (\{.*)$", answer.text, re.MULTILINE)]
        assert answer.text.rstrip().endswith("data: [DONE]")
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        return 200, "".join(event["choices"][0]["text"] for event in events)

    async def probe() -> int:
        answered = 0
        while not over.is_set():
            assert (await client.get("/health")).status_code == 200
            answered += 1
            await asyncio.sleep(0.05)
        return answered

    over = asyncio.Event()
    async with client_of(server) as client:
        probing = asyncio.create_task(probe())
        answers = await asyncio.gather(*map(one, range(len(prompts))))
        over.set()
        assert await probing > 0
        served = [number for number, (status, _) in enumerate(answers) if status == 200]
        assert len(served) >= SLOTS + QUEUE
        assert len(served) < len(prompts), "it was no overload"
        for number in served[:: max(1, len(served) // 8)]:
            assert answers[number][1] == await good_request(client, prompts[number], tokens), prompts[number]


async def test_overload_is_refused_and_what_is_served_is_exact(server: ServerProcess) -> None:
    await overload(server, 4, 48)
    await asyncio.to_thread(server.wait_idle, 15)


# G2: what is not HTTP


async def test_malformed_streams_get_no_5xx_and_no_second_answer(server: ServerProcess) -> None:
    for name, data in MALFORMED.items():
        async with connected(server, data) as (reader, _):
            try:
                answer = await asyncio.wait_for(reader.read(), 20)
            except ConnectionResetError:
                answer = b""
        statuses = re.findall(rb"HTTP/1\.1 (\d)\d\d ", answer)
        assert statuses in ([], [b"4"]), (name, answer)
    async with client_of(server) as client:
        await good_request(client)


async def test_a_body_over_the_limit_is_refused_before_it_is_all_read(server: ServerProcess) -> None:
    chunk = b"10000\r\n" + b" " * 2**16 + b"\r\n"
    before = server.memory_bytes()
    for head in (b"Transfer-Encoding: chunked", b"Content-Length: 1000000000"):
        path = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        sent = 0
        async with connected(server, path + head + b"\r\n\r\n") as (_, writer):
            with pytest.raises(ConnectionError):
                while sent < 64 * 2**20:
                    writer.write(chunk)
                    await writer.drain()
                    sent += len(chunk)
        assert sent < 1.5 * 2**20 + 8 * 2**20 + 8 * 2**20  # the last for the buffers of the kernel
    assert server.memory_bytes() - before < 3 * 2**20 + 64 * 2**20
    async with client_of(server) as client:
        answer = await client.post(
            "/v1/completions", content=b" " * 2_000_000, headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "request_too_large"
        await good_request(client)


async def test_a_foreign_host_is_refused_without_keys(server: ServerProcess) -> None:
    async with client_of(server) as client:
        for host, status in (("evil.example", 403), ("localhost", 200), ("127.0.0.1:1", 200)):
            answer = await client.get("/v1/models", headers={"Host": host})
            assert answer.status_code == status and answer.headers["x-request-id"]


async def test_a_connection_is_kept_after_a_stream(server: ServerProcess) -> None:
    async with connected(server, request_bytes(LONG | {"max_tokens": 3})) as (reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"cache-control: no-cache" in head and b"connection: close" not in head
        await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.write(HIDDEN)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")


# G13: stopping


async def stop_under_load(server: ServerProcess, sig: int) -> None:
    """A short stream, a long one, an idle connection and a half-sent request; then the signal."""
    sent = [
        request_bytes(LONG | {"max_tokens": 300}),
        request_bytes(LONG),
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n",
        request_bytes(LONG)[:-5],
    ]
    async with AsyncExitStack() as stack:
        streams = [(await stack.enter_async_context(connected(server, data)))[0] for data in sent][:2]
        for reader in streams:
            await asyncio.wait_for(reader.readuntil(b"data: "), 60)
        began = time.monotonic()
        server.process.send_signal(sig)
        while "stopping" not in server.log:
            await asyncio.sleep(0.05)
        async with client_of(server) as client:
            answer = await client.post("/v1/completions", json=LONG)
            assert answer.status_code == 503 and answer.headers["connection"] == "close"
            assert int(answer.headers["retry-after"]) >= 1
        ends = await asyncio.gather(*(reader.read() for reader in streams))
        assert b'"finish_reason":"length"' in ends[0] and b"data: [DONE]" in ends[0]
        assert b'data: {"error"' in ends[1] and b"[DONE]" not in ends[1]
        assert all(end.endswith(b"0\r\n\r\n") for end in ends)  # the last chunk: ended, not cut
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    assert time.monotonic() - began < 30
    assert "Traceback" not in server.log


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_every_stream_properly(tmp_path: Path, sig: int) -> None:
    with server_process(tmp_path, *FLAGS, "--shutdown-grace", "3") as server:
        await stop_under_load(server, sig)


async def test_a_second_signal_cuts_the_grace_short(tmp_path: Path) -> None:
    with server_process(tmp_path, *FLAGS, "--shutdown-grace", "600") as server:
        async with connected(server, request_bytes(LONG)) as (reader, _):
            await asyncio.wait_for(reader.readuntil(b"data: "), 60)
            server.process.send_signal(signal.SIGTERM)
            while "stopping" not in server.log:
                await asyncio.sleep(0.05)
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 30) == 0


def test_a_signal_while_loading_ends_with_0(tmp_path: Path) -> None:
    with launched(tmp_path, "serve", str(write_tiny(tmp_path)), "--port", "0") as server:
        server.wait_listening()
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.stop() == 0
        assert "Traceback" not in server.log


# Starting


def last_lines(server: ServerProcess) -> list[str]:
    return server.log.splitlines()[-2:]


def test_a_taken_port_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with launched(tmp_path, "serve", str(write_tiny(tmp_path)), "--port", port) as server:
            assert server.process.wait(60) == 1
            cause, mend = last_lines(server)
            assert port in cause and "in use" in cause and mend.strip().startswith("mend:")
            assert "Traceback" not in server.log and "listening" not in server.log


def test_a_model_that_cannot_be_loaded_ends_the_server(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    path.write_bytes(path.read_bytes()[:5000])
    with launched(tmp_path, "serve", str(path), "--port", "0") as server:
        assert server.process.wait(60) == 1
        cause, mend = last_lines(server)
        assert path.name in cause and mend.strip().startswith("mend:")
        assert "Traceback" not in server.log


# The full figures


@pytest.fixture(scope="module")
def default_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("default")
    with server_process(folder, "--max-batch", str(SLOTS), "--max-queue", str(QUEUE)) as running:
        yield running


@pytest.mark.slow
async def test_a_hundred_slow_clients_of_each_kind(default_server: ServerProcess) -> None:
    await slow_clients(default_server, 100, 30)


@pytest.mark.slow
async def test_two_hundred_disconnects(default_server: ServerProcess) -> None:
    await disconnects(default_server, 34)


@pytest.mark.slow
async def test_five_hundred_idle_connections_do_not_slow_a_probe(default_server: ServerProcess) -> None:
    async def probes() -> float:
        times = []
        for _ in range(50):
            began = time.perf_counter()
            assert (await client.get("/v1/models")).status_code == 200
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    async with client_of(default_server) as client, AsyncExitStack() as stack:
        alone = await probes()
        for _ in range(500):
            reader, _ = await stack.enter_async_context(connected(default_server, HIDDEN))
            await reader.readuntil(b"\r\n\r\n")
        beside = await probes()
    assert beside <= 2 * alone + 0.005


@pytest.mark.slow
async def test_overload_ten_times(default_server: ServerProcess) -> None:
    await overload(default_server, 10, 128)
