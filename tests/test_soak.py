"""A server that has served for long takes what it took before: memory, descriptors, threads.

The figures are those of the project's reliability table (G10); `-m slow` runs its numbers of requests.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from rookery.server.model.synthetic import Plan

from .checkpoints import save_checkpoint
from .server_process import MODEL, ServerProcess, Usage, server_process

MIB = 2**20
CLIENTS = 4
RSS_GROWTH, DESCRIPTORS, THREADS = 48 * MIB, 64, 32


def assert_flat(before: Usage, after: Usage, *, allowed_bytes: int = RSS_GROWTH) -> None:
    assert after.rss_bytes - before.rss_bytes <= allowed_bytes, (before, after)
    assert after.descriptors < before.descriptors + DESCRIPTORS, (before, after)
    assert after.threads < before.threads + THREADS, (before, after)


def text(chance: random.Random, length: int) -> str:
    return "".join(chance.choices("abcdefgh ", k=length))


# all kinds of requests, again and again


def whole(http: httpx.Client, chance: random.Random) -> None:
    body = {"model": MODEL, "prompt": text(chance, 80), "max_tokens": 8, "n": chance.choice((1, 3))}
    assert http.post("/v1/completions", json=body).status_code == 200


def streamed(http: httpx.Client, chance: random.Random) -> None:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": text(chance, 60)}],
        "max_tokens": 12,
        "stream": True,
    }
    with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert "data: [DONE]" in list(answer.iter_lines())


def left_early(http: httpx.Client, chance: random.Random) -> None:
    body = {"model": MODEL, "prompt": text(chance, 20), "max_tokens": 5000, "ignore_eos": True, "stream": True}
    with http.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())


def constrained(http: httpx.Client, chance: random.Random) -> None:
    schema = {"type": "object", "properties": {f"k{chance.randrange(40)}": {"type": "integer"}}}
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "x"}],
        "max_tokens": 8,
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
    }
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def chained(http: httpx.Client, chance: random.Random) -> None:
    previous = None
    for _ in range(2):
        body = {"model": MODEL, "input": text(chance, 30), "max_output_tokens": 4, "previous_response_id": previous}
        answer = http.post("/v1/responses", json=body)
        assert answer.status_code == 200, answer.text
        previous = answer.json()["id"]
    assert http.delete(f"/v1/responses/{previous}").status_code == 200


def session(http: httpx.Client, chance: random.Random) -> None:
    id = f"s{chance.randrange(10**9)}"
    for _ in range(2):
        body = {"model": MODEL, "prompt": text(chance, 30), "max_tokens": 4, "session_id": id}
        assert http.post("/v1/completions", json=body).status_code == 200
    assert http.post(f"/v1/sessions/{id}/fork", json={"id": f"{id}-f"}).status_code in (200, 201)
    for one in (id, f"{id}-f"):
        assert http.delete(f"/v1/sessions/{one}").status_code == 200


def refused(http: httpx.Client, chance: random.Random) -> None:
    content = chance.choice((b"{", b"[]", b'{"model":"no such"}', b"\xff" * 9000))
    answer = http.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= answer.status_code < 500


def looked_at(http: httpx.Client, chance: random.Random) -> None:
    path = chance.choice(("/v1/models", "/metrics", "/v1/sessions", "/health", "/nowhere"))
    assert http.get(path).status_code == (404 if path == "/nowhere" else 200)
    body = {"model": MODEL, "input": text(chance, 30)}
    assert http.post("/v1/embeddings", json=body).status_code == 200


KINDS: tuple[Callable[[httpx.Client, random.Random], None], ...] = (
    whole, streamed, left_early, constrained, chained, session, refused, looked_at,
)  # fmt: skip


@pytest.mark.parametrize(
    "requests", [120, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "long"]
)
def test_requests_of_all_kinds_leave_nothing_behind(tmp_path: Path, requests: int) -> None:
    flags = ("--data-dir", str(tmp_path / "data"), "--chat-template", "g1", "--cache-memory", "8MiB")
    with server_process(tmp_path, *flags, "--session-memory", "8MiB") as server:

        def work(number: int) -> None:
            chance = random.Random(number)
            with httpx.Client(base_url=server.url, timeout=120) as http:  # and a connection of its own each time
                KINDS[number % len(KINDS)](http, chance)

        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(work, range(requests // 4)))
            server.wait_idle(30)
            before = server.usage()
            list(clients.map(work, range(requests // 4, requests)))
        server.wait_idle(30)
        assert_flat(before, server.usage())
        server.wait_metric("rookery_sessions", 0)
        assert server.stop() == 0


# one chat, on and on


@pytest.mark.parametrize(
    "tokens", [2000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "long"]
)
def test_a_chat_takes_the_same_however_long_it_is(tmp_path: Path, tokens: int) -> None:
    flags = ("--data-dir", str(tmp_path / "data"), "--cache-memory", "8MiB")
    with server_process(tmp_path, *flags) as server, httpx.Client(base_url=server.url, timeout=120) as http:
        chance, seconds, told, before = random.Random(1), [], 0, None
        while told < tokens:
            body = {
                "model": MODEL, "prompt": text(chance, 80), "max_tokens": 20, "session_id": "s", "ignore_eos": True,
            }  # fmt: skip
            sent = time.perf_counter()
            usage = http.post("/v1/completions", json=body).json()["usage"]
            seconds.append(time.perf_counter() - sent)
            assert usage["prompt_tokens_details"]["cached_tokens"] == told
            told += 100
            assert usage["total_tokens"] == told
            if told == tokens // 10:
                before = server.usage()
        assert before is not None
        assert_flat(before, server.usage())
        if tokens == 20_000:  # times mean something over many turns only
            assert statistics.median(seconds[-20:]) <= 4 * statistics.median(seconds[:20])


# many sessions, in little memory

BIG = Plan(version="7", layers=4, width=128, vocab_size=256, ffn_width=128, ranks=(16, 16, 16, 16))
"""A state of 135 kB: many are soon more than the budgets below."""


def write_big(folder: Path) -> Path:
    return save_checkpoint(folder / f"{MODEL}.pth", BIG)


class Talks:
    """The sessions of a server, each with a prompt of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self._http = httpx.Client(base_url=server.url, timeout=120)

    def __enter__(self) -> Talks:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def all(self, of: Callable[[int], Any], numbers: range) -> Iterator[Any]:
        with ThreadPoolExecutor(4 * CLIENTS) as clients:
            yield from clients.map(of, numbers)

    def begin(self, number: int) -> dict[str, Any]:
        return self._ask(prompt=self.words(number), session_id=f"s{number}")

    def resume(self, number: int) -> dict[str, Any]:
        return self._ask(prompt=[*b"and?"], session_id=f"s{number}")

    def replay(self, number: int, reply: list[int]) -> dict[str, Any]:
        """What `resume` answers, with nothing remembered."""
        return self._ask(prompt=[*self.words(number), *reply, *b"and?"], cache=False)

    def words(self, number: int) -> list[int]:
        return [*text(random.Random(number), 24).encode()]

    def _ask(self, **fields: object) -> dict[str, Any]:
        body = {
            "model": MODEL, "max_tokens": 4, "temperature": 0, "ignore_eos": True, "logprobs": 3,
            "return_token_ids": True, **fields,
        }  # fmt: skip
        answer = self._http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        choice: dict[str, Any] = answer.json()["choices"][0]
        return {**choice, "cached": answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]}


@pytest.mark.parametrize(
    ("count", "budget"),
    [
        pytest.param(300, 8 * MIB, id="short"),
        pytest.param(400, 16 * MIB, id="400", marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
        pytest.param(10_000, 256 * MIB, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(3 * 3600)]),
    ],
)
def test_sessions_stay_within_the_budget_and_all_resume_from_disk(tmp_path: Path, count: int, budget: int) -> None:
    half = str(budget // 2)
    flags = ("--data-dir", str(tmp_path / "data"), "--cache-memory", half, "--session-memory", half)
    with server_process(tmp_path, *flags, write=write_big) as server, Talks(server) as talks:
        replies = [answer["token_ids"] for answer in talks.all(talks.begin, range(20))]
        before = server.usage()
        replies += [answer["token_ids"] for answer in talks.all(talks.begin, range(20, count))]
        server.wait_metric("rookery_sessions", count)
        assert server.metric("rookery_state_bytes", tier="sessions") > 1.2 * budget
        for number, answer in enumerate(talks.all(talks.resume, range(count))):
            assert answer["cached"] == 24 + 4
            if number % (count // 50) == 0:
                again = talks.replay(number, replies[number])
                assert (answer["token_ids"], answer["logprobs"]) == (again["token_ids"], again["logprobs"])
        held = sum(server.metric("rookery_state_bytes", tier=tier) for tier in ("memory", "session_memory"))
        assert 0.5 * budget < held <= budget and server.metric("rookery_sessions_damaged_total") == 0
        assert_flat(before, server.usage(), allowed_bytes=budget + 24 * MIB)
