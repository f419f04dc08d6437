"""The parts of the terminal chat: conversations, input, markdown blocks, the client."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rookery.clients.chat import talk
from rookery.clients.client import Client, Measures, ServerError
from rookery.clients.terminal.conversation import Conversation, ConversationError
from rookery.clients.terminal.markdown import AnswerView, finished_blocks, printable
from rookery.clients.terminal.prompt import read_question


def talked(*questions: str) -> Conversation:
    conversation = Conversation()
    for question in questions:
        conversation.say("user", question)
        conversation.say("assistant", question.upper())
    return conversation


def test_a_fork_leaves_its_origin_as_it_was() -> None:
    conversation = talked("a", "b")
    assert conversation.fork() == "fork-1"
    assert conversation.undo() == "b"
    assert conversation.turns == 1
    conversation.switch("main")
    assert conversation.turns == 2
    with pytest.raises(ConversationError, match="already"):
        conversation.fork("fork-1")
    with pytest.raises(ConversationError, match="there is no branch"):
        conversation.switch("nowhere")


def test_undo_takes_an_unanswered_question_too() -> None:
    conversation = talked("a")
    conversation.say("user", "b")
    assert conversation.undo() == "b" and conversation.undo() == "a"
    with pytest.raises(ConversationError, match="nothing"):
        conversation.undo()


def test_the_system_prompt_survives_a_reset() -> None:
    conversation = talked("a")
    conversation.system = "s"
    conversation.system = "t"
    conversation.reset()
    assert conversation.messages == [{"role": "system", "content": "t"}]
    conversation.system = None
    assert conversation.messages == []


def test_saved_is_loaded(tmp_path: Path) -> None:
    conversation = talked("a", "ü")
    conversation.fork("x")
    conversation.save(tmp_path / "chat.json")
    assert Conversation.load(tmp_path / "chat.json") == conversation


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "{}", '{"format": "rookery-chat", "current": "main", "branches": {}}',
     '{"format": "rookery-chat", "current": "a", "branches": {"a": [{"role": "root", "content": "x"}]}}'],
)  # fmt: skip
def test_what_is_no_conversation_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(text)
    with pytest.raises(ConversationError, match="not a saved conversation"):
        Conversation.load(file)
    with pytest.raises(ConversationError, match="cannot be read"):
        Conversation.load(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    ("typed", "question"),
    [
        (["one"], "one"),
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "a", "", "b", '"""'], "a\n\nb"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a"""'], "a"),
        (["one\\"], "one\n"),
        (['"""a'], "a"),
    ],
)
def test_questions_of_several_lines(typed: list[str], question: str) -> None:
    lines = iter(typed)

    def read_line(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration as error:
            raise EOFError from error

    assert read_question(read_line, "> ") == question
    with pytest.raises(EOFError):
        read_question(read_line, "> ")


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("a", ""),
        ("a\n\nb", "a\n\n"),
        ("a\n\n```py\nx\n\ny\n", "a\n\n"),
        ("```\nx\n\n```\n\nb", "```\nx\n\n```\n\n"),
        ("````\n```\n\n", ""),
        ("~~~\n```\n\n~~~\n\n", "~~~\n```\n\n~~~\n\n"),
        ("a\n ", ""),
    ],
)
def test_blocks_are_finished_at_blank_lines_outside_code(text: str, finished: str) -> None:
    assert text[: finished_blocks(text)] == finished


@given(st.text(alphabet="a`~ \n-", max_size=60), st.text(alphabet="a`~ \n", max_size=20))
def test_what_is_finished_stays_finished(text: str, more: str) -> None:
    end = finished_blocks(text)
    assert finished_blocks(text + more) >= end
    assert finished_blocks(text[:end]) == end


@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    assert not any((ord(c) < 32 and c not in "\t\n") or 127 <= ord(c) < 160 for c in printable(text))


@given(st.lists(st.sampled_from(["word ", "\n\n", "```\n", "- x\n", "# h\n"]), max_size=30))
def test_every_word_is_shown_once(pieces: list[str]) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=400, height=10, _environ={"TERM": "xterm"})
    marked = [piece.replace("word", f"w{number}w") for number, piece in enumerate(pieces)]
    with AnswerView(console) as view:
        for piece in marked:
            view.show(piece)
    final = _screen(out.getvalue())
    for piece in marked:
        if piece.startswith("w"):
            assert final.count(piece.strip()) == 1


def _screen(output: str) -> str:
    """What stays on the screen: erased lines are gone. Understands what `rich.live` writes."""
    lines = [""]
    at = index = 0
    while index < len(output):
        char = output[index]
        index += 1
        if char == "\n":
            at += 1
            lines += [""] * (at + 1 - len(lines))
        elif char == "\r":
            continue  # always followed by an erase of the line, or at its end
        elif char == "\x1b":
            end = index
            while not output[end].isalpha():
                end += 1
            if output[end] == "A":
                at -= int(output[index + 1 : end] or 1)
            elif output[end] == "K":
                lines[at] = ""
            index = end + 1
        else:
            lines[at] += char
    return "\n".join(lines)


class _Odd(http.server.BaseHTTPRequestHandler):
    """A server with manners of its own."""

    loading = 2
    """How often it is asked for its models before it has them."""

    def do_GET(self) -> None:
        if self.path.startswith("/late"):
            type(self).loading -= 1
            if self.loading >= 0:
                self._send(503, "application/json", b'{"error": {"message": "still loading"}}')
            else:
                self._send(200, "application/json", b'{"data": [{"id": "late"}]}')
            return
        if self.path.startswith("/page"):
            self._send(404, "text/html", b"<!doctype html><title>Not found</title>")
            return
        self._send(200, "application/json", b'{"data": []}' if self.path.startswith("/none") else b"<html>")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if "stream_options" in body:
            self._send(400, "application/json", b'{"error": {"message": "unknown field stream_options"}}')
            return
        events = [
            ": hello",
            'data: {"choices": [{"delta": {"role": "assistant"}}]}',
            'data: {"choices": [{"delta": {"reasoning": "hm"}}]}',
            'data: {"choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}',
            "data: [DONE]" if body["model"] != "broken" else 'data: {"error": {"message": "out of breath"}}',
        ]
        self._send(200, "text/event-stream", "\n\n".join(events).encode() + b"\n\n")

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        return


@pytest.fixture(scope="module")
def odd() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_servers_without_usage_and_with_other_names(odd: str) -> None:
    measures = Measures()
    pieces = list(Client(odd).chat("m", [{"role": "user", "content": "?"}], {}, measures))
    assert [(piece.text, piece.thought) for piece in pieces] == [("hm", True), ("yes", False)]
    assert (measures.chunks, measures.completion_tokens, measures.finish) == (2, None, "stop")


def test_a_server_that_loads_is_waited_for(odd: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk(f"{odd}/late/v1", None, question="there?", options={}) == 0
    shown = capsys.readouterr()
    assert shown.err.count("HTTP 503: still loading; waiting for it") == 1 and "yes" in shown.out


def test_errors_say_what_the_server_said(odd: str) -> None:
    with pytest.raises(ServerError, match="out of breath"):
        list(Client(odd).chat("broken", [], {}, Measures()))
    with pytest.raises(ServerError, match="not a list of models"):
        Client(odd).models()
    with pytest.raises(ServerError, match="has no model"):
        Client(f"{odd}/none/v1").models()
    with pytest.raises(ServerError, match="HTTP 404: a page, not an answer of an OpenAI-compatible API"):
        Client(f"{odd}/page/v1").models()
    with pytest.raises(ServerError, match="not the address"):
        Client("ftp://x")


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1/", "http://h:1/v1"),
        ("h:1", "http://h:1/v1"),
        ("https://h/api/v2", "https://h/api/v2"),
    ],
)
def test_addresses_with_and_without_version(given: str, used: str) -> None:
    assert Client(given).base_url == used
