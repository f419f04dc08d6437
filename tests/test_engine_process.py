"""The engine as a real process: round trip, crash and restart, death of the parent, files that cannot be loaded."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from llguidance import LLMatcher

from rookery.server.config import Config
from rookery.server.engine.client import EngineClient
from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.engine.spawn import EngineProcess
from rookery.server.engine.stream import EventStream
from rookery.server.errors import InvalidRequest, NotReady, QueueFull, StartupError
from rookery.server.model.synthetic import synthetic_tensors

from .tiny_model import TINY_PLAN, tiny_rwkv7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.pth"
    torch.save(synthetic_tensors(TINY_PLAN, dtype=torch.float32), path)
    return path


def config(max_batch: int = 4, max_queue: int = 4) -> Config:
    return Config(device="cpu", dtype="float32", max_batch=max_batch, max_queue=max_queue, prefill_budget=32)


def request(id: str, max_tokens: int = 12, *, choices: int = 1, seed: int = 0) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, seed=seed)
    return Request(id=id, prompt_ids=tuple(id.encode()), sampling=sampling, choices=choices)


@asynccontextmanager
async def running(path: Path, settings: Config | None = None) -> AsyncIterator[EngineClient]:
    client = EngineClient(settings or config(), path)
    await client.start()
    try:
        await client.ready()
        yield client
    finally:
        await client.close(0)
        assert not children()


def children() -> list[psutil.Process]:
    """Engine processes of this one, zombies too."""
    return [child for child in psutil.Process().children() if "python" in child.name()]


async def collect(stream: EventStream) -> dict[int, list[TokenEvent]]:
    choices = defaultdict(list)
    async for events in stream:
        for event in events:
            choices[event.choice].append(event)
    return dict(choices)


async def generate(client: EngineClient, one: Request) -> dict[int, list[int | None]]:
    choices = await collect(await client.submit(one))
    return {index: [event.token_id for event in events] for index, events in choices.items()}


async def settled(client: EngineClient) -> None:
    """Until the engine has said that no slot is in use."""
    while client.stats.slots_used:
        await asyncio.sleep(0.01)


async def test_round_trip(checkpoint: Path) -> None:
    requests = [request(f"request {index}", 5 + index, choices=1 + index % 2, seed=index) for index in range(4)]
    engine = Engine(tiny_rwkv7(), max_batch=8, max_queue=8, prefill_budget=64)
    expected: dict[str, dict[int, list[int | None]]] = {one.id: defaultdict(list) for one in requests}
    for one in requests:
        engine.submit(one)
    while engine.busy:
        for event in engine.step():
            expected[event.request_id][event.choice].append(event.token_id)

    client = EngineClient(config(), checkpoint)
    with pytest.raises(NotReady):
        await client.submit(requests[0])
    await client.start()
    info = await client.ready()
    assert (info.version, info.vocab_size, info.max_batch) == ("7", 256, 4)
    (process,) = children()

    process.send_signal(signal.SIGTERM)  # the parent decides when it ends
    process.send_signal(signal.SIGINT)
    got = await asyncio.gather(*(generate(client, one) for one in requests))
    assert dict(zip(expected, got, strict=True)) == expected

    digits = SamplingParams(max_tokens=20, grammar=LLMatcher.grammar_from_regex("[0-9]{4}"))
    events = (await collect(await client.submit(replace(requests[0], id="digits", sampling=digits))))[0]
    assert bytes(event.token_id or 0 for event in events).isdigit() and len(events) == 4
    assert events[-1].finish == "stop"

    with pytest.raises(InvalidRequest, match="choices"):
        await client.submit(request("five", choices=5))
    busy = [await client.submit(request(f"busy {index}", 10**6)) for index in range(8)]
    with pytest.raises(QueueFull):
        await client.submit(request("one too many"))
    with pytest.raises(InvalidRequest, match="is running"):
        await client.submit(request("busy 0"))

    async with busy[0] as stream:
        async for events in stream:
            assert events
            break  # leaving early cancels
    for stream in busy[1:]:
        stream.cancel()
        assert [events[-1].finish for events in (await collect(stream)).values()] == ["cancelled"]
    await settled(client)

    slow = asyncio.create_task(client.submit(request("abandoned", 10**6)))
    await asyncio.sleep(0)
    slow.cancel()
    await asyncio.wait([slow])
    assert await generate(client, requests[0]) == expected[requests[0].id]
    await settled(client)

    finishing = await client.submit(request("finishing", 50))
    endless = await client.submit(request("endless", 10**9))
    ends = asyncio.gather(collect(finishing), collect(endless))
    closing = asyncio.create_task(client.close(3600))
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="shutting down"):
        await client.ready()
    with pytest.raises(NotReady):
        await client.submit(request("late"))
    while finishing.running:
        await asyncio.sleep(0.01)
    await client.close(0)
    await closing
    finished, cut = await ends
    assert len(finished[0]) == 50 and finished[0][-1].finish == "length"
    assert cut[0][-1].finish == "error" and cut[0][-1].error == "the server is shutting down"
    assert not process.is_running()


async def test_a_crash_ends_requests_with_an_error_and_the_engine_comes_back(checkpoint: Path) -> None:
    async with running(checkpoint) as client:
        stream = await client.submit(request("cut", 10**9, choices=2))
        assert await anext(stream)
        (process,) = children()
        process.kill()
        ends = {index: events[-1] for index, events in (await collect(stream)).items()}
        assert {index: end.finish for index, end in ends.items()} == {0: "error", 1: "error"}
        assert "started again" in str(ends[0].error)
        with pytest.raises(NotReady):
            await client.submit(request("too early"))
        assert client.status.phase == "restarting"
        assert client.status.error is not None and "signal 9" in client.status.error.cause
        await client.ready()
        assert [len(tokens) for tokens in (await generate(client, request("after", 7))).values()] == [7]


@pytest.mark.parametrize("content", [b"", b"no checkpoint at all" * 100])
async def test_a_file_that_cannot_be_loaded_says_why(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    client = EngineClient(config(), path)
    await client.start()
    with pytest.raises(StartupError) as failed:
        await client.ready()
    assert "broken.pth" in failed.value.cause and failed.value.mend and failed.value.exit_code == 1
    assert client.status.phase == "failed" and client.status.error is failed.value
    with pytest.raises(NotReady):
        await client.submit(request("r"))
    await client.close(0)
    assert not children()


async def test_close_while_loading_leaves_nothing(checkpoint: Path) -> None:
    client = EngineClient(config(), checkpoint)
    await client.start()
    waiting = asyncio.create_task(client.ready())
    while not children():
        await asyncio.sleep(0.01)
    await client.close(10)
    with pytest.raises(NotReady):
        await waiting
    assert not children()


async def test_a_process_that_was_started_before_is_taken_or_ended(checkpoint: Path) -> None:
    early = EngineProcess.start(config(), checkpoint)
    folder = Path(early.endpoint.removeprefix("ipc://")).parent
    client = EngineClient(config(), checkpoint, early)
    await client.start()
    await client.ready()
    assert [child.pid for child in children()] == [early.pid]
    await client.close(0)
    client.discard()  # nothing to do: it was taken
    never = EngineProcess.start(config(), checkpoint)
    EngineClient(config(), checkpoint, never).discard()
    assert not children() and not folder.exists()


def test_the_engine_ends_with_its_parent(checkpoint: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(checkpoint)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        engine = psutil.Process(int(parent.stdout.readline()))
        assert engine.is_running()
        parent.kill()
    engine.wait(60)  # raises when it is still there
    assert not psutil.pid_exists(engine.pid) or engine.status() == psutil.STATUS_ZOMBIE


_PARENT = """
import asyncio, psutil, sys
from pathlib import Path
from rookery.server.config import Config
from rookery.server.engine.client import EngineClient
from rookery.server.engine.request import Request, SamplingParams

async def main():
    client = EngineClient(Config(device="cpu"), Path(sys.argv[1]))
    await client.start()
    await client.ready()
    stream = await client.submit(Request(id="r", prompt_ids=(1,), sampling=SamplingParams(max_tokens=10**9)))
    await anext(stream)
    print(psutil.Process().children()[0].pid, flush=True)
    async for events in stream:
        assert events

asyncio.run(main())
"""


def test_the_client_does_not_import_torch() -> None:
    code = "import sys, rookery.server.engine.client; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=dict(os.environ), check=False).returncode == 0
