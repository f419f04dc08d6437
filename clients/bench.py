"""`rookery bench serve`: load on a running OpenAI-compatible server, measured as its users feel it.

Every stream is a client that sends one streaming completion after the other. Clocks (`perf_counter`): TTFT from
sending a request to its first token, ITL between the tokens of a stream, E2E to the end of the answer. Prompts are
random token ids, or letters where a server takes no ids, all different, so that no prefix cache answers for the engine.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from string import ascii_lowercase
from typing import Any

import aiohttp
from rich.table import Table


@dataclass(slots=True)
class Answer:
    """What one request measured, in seconds."""

    ttft_s: float
    gaps_s: list[float]
    total_s: float
    tokens: int


@dataclass(slots=True)
class Load:
    """What to send: `requests` in all over `streams` concurrent clients."""

    base_url: str
    streams: int
    requests: int
    prompt_tokens: int = 64
    output_tokens: int = 64
    model: str | None = None
    api_key: str | None = None
    vocabulary: int = 256
    """Prompt ids are drawn below it."""
    text: bool = False
    """Prompts are letters between spaces, for servers that take no ids: a token each, nearly everywhere."""
    seed: int = 0
    keep_alive: bool = True
    """Whether a client sends its next request over the connection of the last; some servers promise it and hang up."""
    errors: list[str] = field(default_factory=list)


def percentiles(values: Iterable[float], scale: float = 1000.0) -> dict[str, float]:
    """p50, p95, p99 and mean, in milliseconds by default; empty when there is nothing."""
    ordered = sorted(values)
    if not ordered:
        return {}

    def at(share: float) -> float:
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))] * scale

    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "mean": statistics.fmean(ordered) * scale}


async def _one(session: aiohttp.ClientSession, load: Load, model: str, numbers: random.Random) -> Answer:
    ids = [numbers.randrange(1, load.vocabulary) for _ in range(load.prompt_tokens)]
    body = {
        "model": model,
        "prompt": " ".join(ascii_lowercase[i % 26] for i in ids) if load.text else ids,
        "max_tokens": load.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    start = last = time.perf_counter()
    ttft, gaps, tokens = 0.0, [], 0
    async with session.post(f"{load.base_url}/v1/completions", json=body) as answer:
        if answer.status != 200:
            raise RuntimeError(f"HTTP {answer.status}: {(await answer.text())[:300]}")
        async for line in answer.content:
            if not line.startswith(b"data:") or line.startswith(b"data: [DONE]"):
                continue
            now = time.perf_counter()
            chunk: dict[str, Any] = json.loads(line[5:])
            if "error" in chunk:
                raise RuntimeError(str(chunk["error"])[:300])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                if not tokens and chunk["choices"][0].get("finish_reason") == "length":
                    tokens = load.output_tokens  # of a server that does not count them
                if ttft == 0.0:
                    ttft = now - start
                else:
                    gaps.append(now - last)
                last = now
    return Answer(ttft, gaps, time.perf_counter() - start, tokens)


async def run(load: Load) -> dict[str, Any]:
    """Send the load; a JSON-ready report. Failed requests are counted, never averaged in."""
    headers = {"Authorization": f"Bearer {load.api_key}"} if load.api_key else {}
    timeout = aiohttp.ClientTimeout(total=None, sock_read=300)
    connector = aiohttp.TCPConnector(limit=load.streams, force_close=not load.keep_alive)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        model = load.model
        if model is None:
            async with session.get(f"{load.base_url}/v1/models") as answer:
                model = (await answer.json())["data"][0]["id"]
        numbers = random.Random(load.seed)
        left = iter(range(load.requests))
        answers: list[Answer] = []

        async def client() -> None:
            for _ in left:
                try:
                    answers.append(await _one(session, load, model, numbers))
                except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
                    load.errors.append(str(error))

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(load.streams)))
        wall_s = time.perf_counter() - start
    tokens = sum(answer.tokens for answer in answers)
    return {
        "streams": load.streams,
        "requests": load.requests,
        "failed": len(load.errors),
        "errors": load.errors[:3],
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "wall_s": wall_s,
        "tokens_per_s": tokens / wall_s,
        "requests_per_s": len(answers) / wall_s,
        "ttft_ms": percentiles(a.ttft_s for a in answers),
        "itl_ms": percentiles(gap for a in answers for gap in a.gaps_s),
        "e2e_ms": percentiles(a.total_s for a in answers),
    }


def render(reports: list[dict[str, Any]]) -> Table:
    """The reports as a table, one row a load."""
    table = Table("streams", "tok/s", "TTFT p50 ms", "p99", "ITL p50 ms", "p99", "E2E p50 ms", "failed")
    for report in reports:
        row = [f"{report['streams']}", f"{report['tokens_per_s']:.1f}"]
        for name, keys in (("ttft_ms", ("p50", "p99")), ("itl_ms", ("p50", "p99")), ("e2e_ms", ("p50",))):
            row += [f"{report[name][key]:.1f}" if report[name] else "-" for key in keys]
        table.add_row(*row, str(report["failed"]))
    return table
