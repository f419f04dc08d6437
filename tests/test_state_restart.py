"""Stored states over a restart, through a real server: what a turn costs afterwards, and that keys stay apart."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from .server_process import MODEL, ServerProcess, server_process

HEADER = 24
"""More than the bytes, which are tokens here, that a template writes around a message."""
FIRST = "Please tell me about rooks, and about ravens too, at some length; I have the whole afternoon to listen to you."


@contextmanager
def serving(folder: Path) -> Iterator[ServerProcess]:
    flags = ("--data-dir", str(folder / "data"), "--chat-template", "g1", "--api-key", "one", "--api-key", "two")
    with server_process(folder, *flags) as server:
        yield server


def ask(server: ServerProcess, method: str, path: str, key: str = "one", **body: object) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}{path}", json=body or None, headers=headers, timeout=120)


def post(server: ServerProcess, path: str, key: str = "one", **body: object) -> dict[str, Any]:
    answer = ask(server, "POST", path, key, model=MODEL, temperature=0, **body)
    assert answer.status_code == 200, answer.text
    result: dict[str, Any] = answer.json()
    return result


def new(answer: dict[str, Any]) -> int:
    """Prompt tokens that were computed."""
    usage = answer["usage"]
    if "input_tokens" in usage:
        return int(usage["input_tokens"] - usage["input_tokens_details"]["cached_tokens"])
    return int(usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"])


def metric(server: ServerProcess, name: str) -> float:
    text = ask(server, "GET", "/metrics").text
    return float(next(line for line in text.splitlines() if line.startswith(name)).rpartition(" ")[2])


class Talk:
    """A stateless chat, a chain of responses and a conversation of one key, each a turn at a time."""

    def __init__(self, server: ServerProcess, key: str) -> None:
        self.server, self.key = server, key
        self.messages: list[dict[str, str]] = []
        self.response: str | None = None
        self.conversation: str = ask(server, "POST", "/v1/conversations", key, metadata={}).json()["id"]

    def turn(self, text: str) -> list[int]:
        """What the turn computed of each of the three's prompts."""
        self.messages.append({"role": "user", "content": text})
        chat = post(
            self.server, "/v1/chat/completions", self.key, messages=self.messages, max_tokens=8, reasoning_effort="low"
        )
        self.messages.append({"role": "assistant", "content": "Fine, and what would you like to hear?"})
        body = {"input": text, "max_output_tokens": 8, "reasoning": {"effort": "low"}}
        chained = post(self.server, "/v1/responses", self.key, **body, previous_response_id=self.response)
        self.response = chained["id"]
        talked = post(self.server, "/v1/responses", self.key, **body, conversation=self.conversation)
        return [new(chat), new(chained), new(talked)]


@pytest.mark.timeout(600)
def test_a_restart_costs_nothing_and_shows_nobody_anything(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        talk = Talk(server, "one")
        assert min(talk.turn(FIRST)) >= 0 and max(talk.turn("And jays?")) <= 8 + 40 + 9 + 3 * HEADER
        states = metric(server, 'rookery_state_bytes{tier="disk"}')
        assert server.stop() == 0 and states > 0
    for turn, how in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGTERM)):
        with serving(tmp_path) as server:
            talk.server = server
            text = f"And number {turn}?"
            computed = talk.turn(text)
            # thoughts are no part of a history, and replies come back as text: all before the last reply is there
            assert max(computed) <= 8 + 40 + len(text) + 3 * HEADER, computed
            assert metric(server, 'rookery_state_hits_total{tier="disk"}') >= 1
            if turn == 0:
                other_key_finds_nothing(server, talk)
            assert server.stop(how) == (0 if how == signal.SIGTERM else -how)


def other_key_finds_nothing(server: ServerProcess, talk: Talk) -> None:
    own = post(server, "/v1/chat/completions", "two", messages=talk.messages[:1], max_tokens=1, reasoning_effort="low")
    assert own["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    unknown = {"resp": "resp_" + "0" * 32, "conv": "conv_" + "0" * 32, "sess": "nothing"}
    foreign = {"resp": talk.response or "", "conv": talk.conversation, "sess": "mine"}
    post(server, "/v1/completions", prompt="x", max_tokens=1, session_id="mine")
    calls: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("GET", "/v1/responses/{resp}", {}),
        ("DELETE", "/v1/responses/{resp}", {}),
        ("POST", "/v1/responses/{resp}/cancel", {}),
        ("GET", "/v1/responses/{resp}/input_items", {}),
        ("POST", "/v1/responses", {"model": MODEL, "input": "x", "previous_response_id": "{resp}"}),
        ("POST", "/v1/responses", {"model": MODEL, "input": "x", "conversation": "{conv}"}),
        ("GET", "/v1/conversations/{conv}", {}),
        ("POST", "/v1/conversations/{conv}", {"metadata": {"a": "b"}}),
        ("DELETE", "/v1/conversations/{conv}", {}),
        ("GET", "/v1/conversations/{conv}/items", {}),
        ("GET", "/v1/conversations/{conv}/items/msg_1", {}),
        ("POST", "/v1/conversations/{conv}/items", {"items": [{"role": "user", "content": "x"}]}),
        ("POST", "/v1/responses/input_tokens", {"model": MODEL, "input": "x", "conversation": "{conv}"}),
        ("GET", "/v1/sessions/{sess}", {}),
        ("GET", "/v1/sessions/{sess}/state", {}),
        ("DELETE", "/v1/sessions/{sess}", {}),
        ("POST", "/v1/sessions/{sess}/fork", {}),
    )
    for method, path, body in calls:
        told = []
        for ids in (unknown, foreign):
            filled = {name: value.format(**ids) if isinstance(value, str) else value for name, value in body.items()}
            answer = ask(server, method, path.format(**ids), "two", **filled)
            text = answer.text
            for id in ids.values():
                text = text.replace(id, "ID")
            told.append((answer.status_code, text))
        assert told[0] == told[1] and told[0][0] == 404, (method, path, told)
    assert ask(server, "GET", "/v1/sessions", "two").json()["data"] == []
