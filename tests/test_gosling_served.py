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


def say(http: httpx.Client, text: str) -> dict[str, Any]:
    """One turn of the session."""
    body = {
        "model": "gosling",
        "session_id": "remembering",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 64,
    }
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def talking(server: ServerProcess) -> httpx.Client:
    """A client of a server that is ready."""
    server.wait_ready()
    return httpx.Client(base_url=server.url, timeout=60)


def told(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


@pytest.mark.parametrize("turns", [30, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_a_name_is_known_after_much_talk_and_a_restart(turns: int, tmp_path: Path) -> None:
    arguments = ("serve", "--port", "0", "--data-dir", str(tmp_path / "data"))
    with launched(tmp_path, *arguments) as server, talking(server) as http:
        assert "Maris" in told(say(http, "Hello! My name is Maris."))
        for text in islice(cycle(TALK), turns):
            assert told(say(http, text))
        held = http.get("/v1/sessions/remembering").json()
        assert server.stop() == 0
    with launched(tmp_path, *arguments) as server, talking(server) as http:
        assert http.get("/v1/sessions/remembering").json()["tokens"] == held["tokens"] > 20 * turns
        answer = say(http, "What is my name?")
        assert "Maris" in told(answer)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= held["tokens"]
        meta = http.get("/v1/models").json()["data"][0]["meta"]
        assert meta["demo"] is True and meta["state_bytes"] < 150_000
