"""`rookery chat` at a pseudo-terminal and in a pipe, against the real HTTP side over a socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .api_server import ApiServer, api_server, says
from .terminal import Terminal, terminal

PROMPT = r"(^|\n)(\x07|\S+)?> "


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with api_server() as running:
        yield running


def piped(*arguments: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rookery.server", "chat", *arguments],
        input=text, capture_output=True, text=True, timeout=60, env={**os.environ, **environment},
    )  # fmt: skip


def asked(server: ApiServer, number: int = -1) -> str:
    """The prompt of a request the engine got."""
    return bytes(server.engine.submitted[number].prompt_ids).decode()


def ask(screen: Terminal, text: str, answer: str) -> None:
    screen.expect(r"> $")
    screen.type(text + "\n")
    screen.expect(answer)


def test_a_conversation_at_a_terminal(server: ApiServer, tmp_path: Path) -> None:
    server.engine.reply = says("# Title\n\nSome **bold** words.\n\n- one\n- two\n")
    file = tmp_path / "chat.json"
    with terminal(["chat", "--base-url", server.url]) as screen:
        screen.expect("tiny at http")
        ask(screen, "/system Be brief.", "system prompt: Be brief.")
        ask(screen, "first", "Some bold words")
        screen.expect("• two")
        assert "**" not in screen.text
        ask(screen, '"""second line one', r"\.")
        screen.type('line two"""\n')
        screen.expect("• two")
        assert "second line one\nline two" in asked(server) and "Be brief." in asked(server)
        ask(screen, "/stats", r"time to first token +\d+ ms")
        screen.expect(r"speed +[\d.]+ tokens/s")
        screen.expect("0.00 MB on the server, at any length")
        ask(screen, f"/save {file}", "saved to")
        ask(screen, "/fork other", "now in other")
        ask(screen, "/undo", "taken back: second line one")
        ask(screen, "/switch main", "now in main, after 2 questions")
        ask(screen, "/reset", "forgotten")
        ask(screen, f"/load {file}", "1 branches, 2 questions")
        ask(screen, "/nonsense", "there is no command /nonsense")
        ask(screen, "/help", "/fork")
        screen.expect("Ctrl-C")
        screen.expect(r"> $")
        screen.type("\x04")
        assert screen.wait() == 0
    saved = json.loads(file.read_text())["branches"]["main"]
    assert [message["role"] for message in saved] == ["system", "user", "assistant", "user", "assistant"]


def test_ctrl_c_stops_the_answer_and_not_the_program(server: ApiServer) -> None:
    server.engine.reply = lambda request, choice: b"again and " * 20_000
    with terminal(["chat", "--base-url", server.url]) as screen:
        ask(screen, "go on", "again and")
        screen.type("\x03")
        screen.expect("stopped")
        screen.expect(r"> $")
        server.engine.reply = says("Here I am.")
        screen.type("\x03")  # at the prompt it clears the line
        ask(screen, "still there?", r"Here I am\.")
        assert "go on" in asked(server) and "again and again" in asked(server)  # what had come stays
        screen.expect(r"> $")
        screen.type("/quit\n")
        assert screen.wait() == 0
    assert server.engine.cancelled


def test_a_hostile_answer_cannot_steer_the_terminal(server: ApiServer) -> None:
    server.engine.reply = says("\x1b]0;owned\x07\x1b[2Jcalm \u202egnp.exe")
    with terminal(["chat", "hi", "--base-url", server.url]) as screen:
        screen.expect("calm gnp.exe")
        assert screen.wait() == 0
    assert b"\x1b]0;" not in screen.raw and b"\x1b[2J" not in screen.raw and "\u202e" not in screen.text


def test_no_colour_where_none_is_wanted(server: ApiServer) -> None:
    server.engine.reply = says("`code` and text")
    for environment, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        with terminal(["chat", "hi", "--base-url", server.url], environment) as screen:
            screen.expect("code and text")
            assert screen.wait() == 0
        assert (b"\x1b[1;36;40m" in screen.raw) is coloured


def test_in_a_pipe_it_prints_the_answer_alone(server: ApiServer) -> None:
    server.engine.reply = says("**plain** words")
    done = piped("--base-url", server.url, "hi")
    assert (done.returncode, done.stdout, done.stderr) == (0, "**plain** words\n", "")
    done = piped("--base-url", server.url, text="one\ntwo\\\nthree\n")
    assert done.stdout == "**plain** words\n" * 2
    assert "two\nthree" in asked(server)


def test_address_and_key_come_from_the_environment(server: ApiServer) -> None:
    done = piped("hi", OPENAI_BASE_URL=f"{server.url}/v1", OPENAI_API_KEY="sk-secret")
    assert done.returncode == 0 and done.stdout


def test_what_goes_wrong_is_said_in_two_lines(server: ApiServer) -> None:
    done = piped("hi", "--base-url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "no answer from http://127.0.0.1:9/v1" in done.stderr and "rookery serve" in done.stderr
    done = piped("hi", "--base-url", server.url, "--model", "other")
    assert done.returncode == 1 and "has no model other; it has: tiny" in done.stderr
    done = piped("hi", "--base-url", server.url, "--max-tokens", "999999999")
    assert done.returncode == 1 and "HTTP 400" in done.stdout
