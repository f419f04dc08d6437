"""What the built-in model is for: a session that was told a name still knows it after much talk and a restart."""

from __future__ import annotations

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from .server_process import ServerProcess, launched

TALK = (
    "How are you?",
    "What is 23 + 45?",
    "Spell the word lantern.",
    "Who are you?",
    "Sort these numbers: 9 3 7 1 4 8",
    "Thank you!",
    "What is 61 + 17?",
    "Who painted the Mona Lisa?",
)


def say(server: ServerProcess, text: str) -> dict[str, Any]:
    """One turn of the session."""
    body = {
        "model": "gosling",
        "session_id": "remembering",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 64,
    }
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def told(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("turns", [30, pytest.param(200, marks=pytest.mark.slow)])
def test_a_name_is_known_after_much_talk_and_a_restart(turns: int, tmp_path: Path) -> None:
    arguments = ("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    with launched(tmp_path, *arguments) as server:
        server.wait_ready()
        assert "Maris" in told(say(server, "Hello! My name is Maris."))
        for text in islice(cycle(TALK), turns):
            assert told(say(server, text))
        held = httpx.get(f"{server.url}/v1/sessions/remembering").json()
        assert server.stop() == 0
    with launched(tmp_path, *arguments) as server:
        server.wait_ready()
        assert httpx.get(f"{server.url}/v1/sessions/remembering").json()["tokens"] == held["tokens"] > 20 * turns
        answer = say(server, "What is my name?")
        assert "Maris" in told(answer)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= held["tokens"]
        meta = httpx.get(f"{server.url}/v1/models").json()["data"][0]["meta"]
        assert meta["demo"] is True and meta["state_bytes"] < 150_000
