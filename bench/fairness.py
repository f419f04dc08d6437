"""What others feel of one long prompt, and of one key's flood: python -m bench.fairness --json FILE

A server of the seeded 0.1B checkpoint, with two API keys and as many slots as clients of a flood half fill. First a
prompt of 100,000 tokens is sent while four streams run: the longest silence of a stream, the time to the first token of
short new requests, and the time of GET /v1/models, until it is done or `--seconds` are over. Then one key sends
64 requests at once, and the other key one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from rookery.server.bench.compare import write_checkpoint
from rookery.server.bench.machine import machine

from .cpu.servers import Server

PRESET = "rwkv7-0.1b"
LIMITS = {"longest_silence_s": 2.0, "short_ttft_s": 5.0, "models_s": 1.0, "second_key_ttft_s": 5.0}
"""What the project asks of itself, the worst of each."""
STREAMS, FLOOD, SLOTS = 4, 64, 32


class Caller:
    """One key's requests."""

    def __init__(self, http: httpx.AsyncClient, key: str) -> None:
        self._http = http
        self._headers = {"Authorization": f"Bearer {key}"}

    async def tokens(self, prompt_tokens: int, max_tokens: int) -> AsyncIterator[float]:
        """When each event of a streamed completion of random tokens came, in seconds of `perf_counter`."""
        prompt = [random.randrange(1, 60_000) for _ in range(prompt_tokens)]
        body = {"model": PRESET, "prompt": prompt, "max_tokens": max_tokens, "ignore_eos": True, "stream": True}
        async with self._http.stream("POST", "/v1/completions", json=body, headers=self._headers) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    yield time.perf_counter()

    async def ttft_s(self, prompt_tokens: int, max_tokens: int) -> float:
        """Seconds from sending a request to its first token; the request runs to its end."""
        sent, first = time.perf_counter(), 0.0
        async for came in self.tokens(prompt_tokens, max_tokens):
            first = first or came - sent
        return first

    async def models_s(self) -> float:
        sent = time.perf_counter()
        (await self._http.get("/v1/models", headers=self._headers)).raise_for_status()
        return time.perf_counter() - sent


async def beside_a_long_prompt(caller: Caller, tokens: int, seconds: float) -> dict[str, float]:
    """The worst that streams, short requests and lookups see while a long prompt is computed."""
    silences: list[float] = []

    async def stream() -> None:
        before = None
        async for came in caller.tokens(16, 30_000):
            if before is not None:
                silences.append(came - before)
            before = came

    streams = [asyncio.create_task(stream()) for _ in range(STREAMS)]
    while len(silences) < 20 * STREAMS:
        await asyncio.sleep(0.1)
    silences.clear()
    began = time.perf_counter()
    long = asyncio.create_task(caller.ttft_s(tokens, 1))
    short, lookups = [], []
    while not long.done() and time.perf_counter() - began < seconds:
        short.append(await caller.ttft_s(16, 4))
        lookups.append(await caller.models_s())
        await asyncio.sleep(0.2)
    for task in (long, *streams):
        task.cancel()
    await asyncio.gather(long, *streams, return_exceptions=True)
    return {
        "watched_s": time.perf_counter() - began,
        "longest_silence_s": max(silences),
        "short_ttft_s": max(short),
        "models_s": max(lookups),
    }


async def beside_a_flood(one: Caller, other: Caller) -> dict[str, float]:
    """When a second key gets its first token, after the first has sent twice what there are slots for."""
    flood = [asyncio.create_task(one.ttft_s(256, 256)) for _ in range(FLOOD)]
    await asyncio.sleep(2)
    ttft = await other.ttft_s(16, 4)
    for task in flood:
        task.cancel()
    await asyncio.gather(*flood, return_exceptions=True)
    return {"second_key_ttft_s": ttft}


async def measure(url: str, tokens: int, seconds: float) -> dict[str, float]:
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits(max_connections=None)) as http:
        one, other = Caller(http, "one"), Caller(http, "other")
        figures = await beside_a_long_prompt(one, tokens, seconds)
        return figures | await beside_a_flood(one, other)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60, help="longest time to watch the long prompt")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, socket.socket() as free:
        path = Path(work) / f"{PRESET}.pth"
        write_checkpoint(PRESET, path)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [
            sys.executable, "-m", "rookery.server", "serve", str(path), "--device", "cpu", "--dtype", args.dtype,
            "--port", str(port), "--max-batch", str(SLOTS), "--api-key", "one", "--api-key", "other",
        ]  # fmt: skip
        server = Server(command, f"http://127.0.0.1:{port}", "/ready", args.threads)
        try:
            figures = asyncio.run(measure(server.url, args.tokens, args.seconds))
        finally:
            server.stop()
    report = {
        "benchmark": "fairness", "machine": machine(), "preset": PRESET, "dtype": args.dtype,
        "prompt_tokens": args.tokens, "streams": STREAMS, "flood": FLOOD, "slots": SLOTS,
        "figures": {name: round(value, 3) for name, value in figures.items()}, "limits": LIMITS,
    }  # fmt: skip
    print(json.dumps(report["figures"], indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(figures[name] > limit for name, limit in LIMITS.items()))


if __name__ == "__main__":
    sys.exit(main())
