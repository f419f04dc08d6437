"""Stored states through a real server: what usage tells, and that histories find their states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from .server_process import MODEL, ServerProcess, server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with server_process(folder, "--api-key", "one", "--api-key", "two") as running:
        yield running


def post(server: ServerProcess, path: str, key: str = "one", **body: object) -> dict[str, Any]:
    answer = httpx.post(
        f"{server.url}{path}",
        json={"model": MODEL, "temperature": 0, "max_tokens": 8, **body},
        headers={"Authorization": f"Bearer {key}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def tokens(answer: dict[str, Any]) -> tuple[int, int]:
    """Prompt tokens, and how many of them were cached."""
    usage = answer["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_a_chat_sent_again_in_full_computes_its_new_turn(server: ServerProcess) -> None:
    messages = [{"role": "user", "content": "Tell me about rooks, and about ravens too, at some length, please."}]
    before = 0
    for turn in range(4):
        answer = post(server, "/v1/chat/completions", messages=messages)
        prompt, cached = tokens(answer)
        assert cached == 0 if turn == 0 else cached >= before - 20, (turn, prompt, cached, before)
        reply = answer["choices"][0]["message"]["content"]
        messages += [{"role": "assistant", "content": reply}, {"role": "user", "content": f"And then, {turn}?"}]
        before = prompt


def test_other_keys_find_nothing(server: ServerProcess) -> None:
    prompt = "A sentence that only the first key has ever sent to this server."
    first = [tokens(post(server, "/v1/completions", prompt=prompt))[1] for _ in range(2)]
    other = [tokens(post(server, "/v1/completions", "two", prompt=prompt))[1] for _ in range(2)]
    assert first == other == [0, len(prompt)]


def test_cache_false_neither_reads_nor_writes(server: ServerProcess) -> None:
    prompt = "Something that should not be kept in any memory at all."
    assert [tokens(post(server, "/v1/completions", prompt=prompt, cache=False))[1] for _ in range(2)] == [0, 0]
    assert [tokens(post(server, "/v1/completions", prompt=prompt))[1] for _ in range(2)] == [0, len(prompt)]
    assert tokens(post(server, "/v1/completions", prompt=prompt, cache=False))[1] == 0


def test_metrics_tell_what_is_held(server: ServerProcess) -> None:
    post(server, "/v1/completions", prompt="One more sentence to be held.")
    text = httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer one"}, timeout=30).text
    line = next(line for line in text.splitlines() if line.startswith('rookery_state_bytes{tier="memory"}'))
    assert float(line.split()[1]) > 1000
