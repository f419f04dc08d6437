"""kill -9 under load, again and again: every turn that a client saw end is there afterwards, and nothing is broken."""

from __future__ import annotations

import os
import random
import signal
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import orjson
import psutil
import pytest

from ..server_process import MODEL, ServerProcess, launched, write_tiny

CLIENTS = 6


@dataclass
class Chat:
    """One session, as its client knows it."""

    id: str
    tokens: int = 0
    """After the last turn whose end was received."""
    state: bytes | None = None
    """Exported after that turn; None when the server died before."""
    asked: int = 0
    """Tokens that a turn without an end would have added."""
    turns: int = 0


@dataclass
class Load:
    """Clients that write their sessions until the server is gone."""

    url: str
    chats: list[Chat]
    seed: int
    threads: list[threading.Thread] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def start(self) -> None:
        for index, chat in enumerate(self.chats):
            thread = threading.Thread(target=self._talk, args=(chat, random.Random(self.seed + index)))
            thread.start()
            self.threads.append(thread)

    def join(self) -> None:
        for thread in self.threads:
            thread.join(60)

    def _talk(self, chat: Chat, chance: random.Random) -> None:
        with suppress(httpx.TransportError), httpx.Client(base_url=self.url, timeout=60) as http:
            while True:
                prompt = "".join(chance.choices("abcdefgh ", k=chance.randint(1, 60)))
                limit = chance.randint(1, 12)
                chat.asked = len(prompt) + limit
                total = self._turn(http, chat.id, prompt, limit)
                if total is None:
                    return  # the answer broke off
                if total != chat.tokens + chat.asked:
                    self.errors.append(f"{chat.id} has {total} tokens, not {chat.tokens} + {chat.asked}")
                chat.tokens, chat.asked, chat.state = total, 0, None
                chat.turns += 1
                chat.state = http.get(f"/v1/sessions/{chat.id}/state").content

    def _turn(self, http: httpx.Client, id: str, prompt: str, limit: int) -> int | None:
        body = {
            "model": MODEL, "prompt": prompt, "max_tokens": limit, "session_id": id, "ignore_eos": True,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        total = None
        with http.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line == "data: [DONE]":
                    return total
                if line.startswith("data: "):
                    event = orjson.loads(line[6:])
                    if "error" in event:
                        return None
                    total = event["usage"]["total_tokens"] if event["usage"] else total
        return None


def kill(server: ServerProcess, chance: random.Random) -> None:
    """The HTTP process, its engine, or both, without any warning."""
    engines = psutil.Process(server.process.pid).children()
    victims = [server.process.pid, *(engine.pid for engine in engines)]
    if chance.random() < 0.5:
        victims.reverse()
    for pid in victims:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    server.process.wait(30)
    psutil.wait_procs(engines, timeout=30)


def check(server: ServerProcess, chats: list[Chat]) -> None:
    """Every session is what its last end said, or one whole turn further: never less, never something between."""
    with httpx.Client(base_url=server.url, timeout=60) as http:
        known = {one["id"]: one for one in http.get("/v1/sessions?limit=1000").json()["data"]}
        for chat in chats:
            there = known.pop(chat.id, None)
            tokens = there["tokens"] if there else 0
            assert tokens in (chat.tokens, chat.tokens + chat.asked), (chat.id, tokens, chat.tokens, chat.asked)
            if there:
                state = http.get(f"/v1/sessions/{chat.id}/state")
                assert state.status_code == 200, state.text
                assert chat.state is None or tokens != chat.tokens or state.content == chat.state
                chat.state = state.content
            chat.tokens, chat.asked = tokens, 0
        assert not known
        assert "damaged" not in server.log.lower() and "missing" not in server.log


@pytest.mark.parametrize(
    "rounds", [2, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])], ids=["short", "long"]
)
def test_killed_under_load(tmp_path: Path, rounds: int) -> None:
    model = write_tiny(tmp_path)
    chats = [Chat(f"chat-{number}") for number in range(CLIENTS)]
    chance = random.Random(rounds)
    data = tmp_path / "data"
    arguments = ("serve", str(model), "--port", "0", "--device", "cpu", "--data-dir", str(data))
    for number in range(rounds + 1):
        with launched(tmp_path, *arguments) as server:
            server.wait_ready()
            check(server, chats)
            assert len(list((data / "states").glob("*.tmp"))) == 0
            if number == rounds:
                break
            load = Load(server.url, chats, seed=1000 * number)
            load.start()
            wanted = sum(chat.turns for chat in chats) + chance.randint(3, 25)
            while sum(chat.turns for chat in chats) < wanted:
                assert server.process.poll() is None and any(thread.is_alive() for thread in load.threads), load.errors
                load.threads[0].join(chance.random() / 50)
            kill(server, chance)
            load.join()
            assert not load.errors
    assert sum(chat.turns for chat in chats) >= 3 * rounds
