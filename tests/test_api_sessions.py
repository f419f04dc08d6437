"""Sessions over HTTP, through a real server: turns, forks, files, keys, and what happens when one is left."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from .server_process import MODEL, ServerProcess, server_process

MESSAGE = {"role": "user", "content": "Tell me something about rooks and their rookeries."}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    flags = ("--api-key", "one", "--api-key", "two", "--data-dir", str(folder / "data"), "--max-sessions", "12")
    with server_process(folder, *flags) as running:
        yield running


class Client:
    """One key's view of the server."""

    def __init__(self, server: ServerProcess, key: str = "one") -> None:
        self.http = httpx.Client(
            base_url=server.url,
            headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
            timeout=60,
        )

    def chat(self, *contents: str, session: str | None = None, **fields: object) -> dict[str, Any]:
        body = {"session_id": session} if session is not None else {}
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
        return self.ok(self.post("/v1/chat/completions", messages=messages, **{"max_tokens": 8, **body, **fields}))

    def complete(self, prompt: str | list[int], **fields: object) -> dict[str, Any]:
        return self.ok(self.post("/v1/completions", prompt=prompt, **{"max_tokens": 6, **fields}))

    def post(self, path: str, **body: object) -> httpx.Response:
        return self.http.post(path, json={"model": MODEL, "temperature": 0, **body})

    def show(self, id: str) -> dict[str, Any]:
        return self.ok(self.http.get(f"/v1/sessions/{id}"))

    def ids(self) -> list[str]:
        return [one["id"] for one in self.ok(self.http.get("/v1/sessions?limit=1000"))["data"]]

    @staticmethod
    def ok(answer: httpx.Response) -> dict[str, Any]:
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result


@pytest.fixture
def one(server: ServerProcess) -> Iterator[Client]:
    """The first key, without sessions afterwards."""
    client = Client(server)
    yield client
    for id in client.ids():
        client.ok(client.http.delete(f"/v1/sessions/{id}"))
    client.http.close()


def code(answer: httpx.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


def content(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def usage(answer: dict[str, Any]) -> tuple[int, int]:
    return answer["usage"]["prompt_tokens"], answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_a_session_answers_as_the_chat_sent_in_full(one: Client) -> None:
    asked = ["Tell me something about rooks.", "And of ravens?", "Then of jackdaws, at last."]
    history: list[str] = []
    for number, text in enumerate(asked):
        history.append(text)
        plain = one.chat(*history, cache=False)
        answer = one.chat(text, session="chat")
        assert content(answer) == content(plain)
        assert usage(answer)[0] == usage(plain)[0]
        assert (usage(answer)[1] > 0) == (number > 0)
        history.append(content(answer))
    shown = one.show("chat")
    assert shown["turns"] == 3 and shown["object"] == "session" and shown["forked_from"] is None


def test_a_completion_goes_on_where_the_session_is(one: Client) -> None:
    first = one.complete("Once upon a time", session_id="text", return_token_ids=True)
    second = one.complete(" and then", session_id="text")
    drawn = first["choices"][0]["token_ids"]
    plain = one.complete([*b"Once upon a time", *drawn, *b" and then"], cache=False)
    assert second["choices"][0]["text"] == plain["choices"][0]["text"]
    assert usage(second) == (usage(plain)[0], 16 + 6) and one.show("text")["tokens"] == 16 + 6 + 9 + 6


def test_what_follows_a_stop_string_is_not_remembered(one: Client) -> None:
    free = one.complete("Here is a list: ", max_tokens=12)["choices"][0]["text"]
    stop = free[4:6]
    cut = one.complete("Here is a list: ", max_tokens=12, session_id="cut", stop=stop)["choices"][0]
    assert cut["finish_reason"] == "stop" and cut["text"] == free[: free.find(stop)]
    assert one.show("cut")["tokens"] == len(("Here is a list: " + cut["text"]).encode())


def test_the_header_names_the_session_where_the_body_names_none(one: Client) -> None:
    body = {"model": MODEL, "messages": [MESSAGE], "max_tokens": 4}
    for fields in ({}, {"session_id": "body"}, {}):
        answer = one.http.post("/v1/chat/completions", json={**body, **fields}, headers={"x-session-id": "head"})
        assert answer.status_code == 200, answer.text
    one.ok(one.http.post("/v1/completions", json={**body, "prompt": "x"}, headers={"x-session-id": "text"}))
    assert {id: one.show(id)["turns"] for id in one.ids()} == {"head": 2, "body": 1, "text": 1}


@pytest.mark.parametrize(
    ("header", "fields", "param"),
    [("../up", {}, "x-session-id"), ("", {}, "x-session-id"), ("a" * 200, {}, "x-session-id"), ("s", {"n": 2}, "n")],
)
def test_a_bad_session_header_is_refused(one: Client, header: str, fields: dict[str, object], param: str) -> None:
    body = {"model": MODEL, "messages": [MESSAGE], **fields}
    answer = one.http.post("/v1/chat/completions", json=body, headers={"x-session-id": header})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param
    assert one.ids() == []


def test_a_stream_ends_after_the_commit(one: Client) -> None:
    body = {"model": MODEL, "messages": [MESSAGE], "stream": True, "max_tokens": 5, "session_id": "s"}
    with one.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        for line in answer.iter_lines():
            if '"finish_reason":"length"' in line:
                assert one.show("s")["turns"] == 1
    assert one.show("s")["turns"] == 1


def test_a_turn_that_its_client_leaves_changes_nothing(one: Client) -> None:
    one.chat("Hello.", session="left")
    before = one.show("left")
    body = {"model": MODEL, "messages": [MESSAGE], "stream": True, "max_tokens": 20_000, "session_id": "left"}
    with one.http.stream("POST", "/v1/chat/completions", json=body) as answer:
        lines = answer.iter_lines()
        next(lines)
        assert code(one.post("/v1/chat/completions", messages=[MESSAGE], session_id="left")) == (409, "session_busy")
        assert code(one.http.delete("/v1/sessions/left")) == (409, "session_busy")
    deadline = time.monotonic() + 30
    while (again := one.post("/v1/completions", prompt="x", max_tokens=0, session_id="left")).status_code == 409:
        assert time.monotonic() < deadline
    assert again.json()["usage"]["prompt_tokens"] == before["tokens"] + 1
    assert one.show("left")["turns"] == before["turns"] + 1


def test_a_refused_request_leaves_the_session_to_the_next(one: Client) -> None:
    wrong: list[dict[str, Any]] = [{"n": 2}, {"logit_bias": {"999999": 1}}, {"messages": []}, {"model": "nobody"}]
    for fields in wrong:
        body = {"messages": [MESSAGE], "session_id": "s", **fields}
        assert one.post("/v1/chat/completions", **body).status_code in (400, 404)
    assert one.ids() == []
    assert one.chat("Hello.", session="s")["choices"]


def test_of_many_writers_one_wins_each_time(one: Client) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: one.post("/v1/chat/completions", messages=[MESSAGE], session_id="crowd", max_tokens=30),
                range(8),
            )
        )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) <= {200, 409} and 200 in statuses
    assert one.show("crowd")["turns"] == statuses.count(200)


def test_a_fork_goes_its_own_way(one: Client) -> None:
    one.chat("Hello, my name is Ada.", session="root")
    forked = one.ok(one.http.post("/v1/sessions/root/fork", json={"id": "branch"}))
    assert forked["forked_from"] == "root" and forked["tokens"] == one.show("root")["tokens"]
    unnamed = one.ok(one.http.post("/v1/sessions/root/fork"))
    answers = [content(one.chat("Who am I?", session=id)) for id in ("branch", "root", unnamed["id"])]
    assert len(set(answers)) == 1
    assert code(one.http.post("/v1/sessions/root/fork", json={"id": "branch"}))[0] == 400
    one.ok(one.http.delete("/v1/sessions/root"))
    assert one.chat("Still there?", session="branch")["choices"]


def test_an_exported_state_can_be_imported_and_a_damaged_one_cannot(one: Client) -> None:
    one.chat("Hello, my name is Ada.", session="a")
    answer = one.http.get("/v1/sessions/a/state")
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/octet-stream"
    headers = {"Content-Type": "application/octet-stream"}
    imported = one.ok(one.http.put("/v1/sessions/b/state", content=answer.content, headers=headers))
    assert imported["tokens"] == one.show("a")["tokens"]
    assert content(one.chat("Who am I?", session="b")) == content(one.chat("Who am I?", session="a"))
    damaged = bytearray(answer.content)
    damaged[len(damaged) // 2] ^= 1
    for data in (bytes(damaged), answer.content[:-1], b"", b"{}", answer.content[:100]):
        assert code(one.http.put("/v1/sessions/c/state", content=data, headers=headers)) == (400, "invalid_state")
    assert one.http.put("/v1/sessions/c/state", content=answer.content).status_code in (400, 415)
    assert sorted(one.ids()) == ["a", "b"]


def test_another_key_sees_nothing_of_it(one: Client, server: ServerProcess) -> None:
    two = Client(server, "two")
    one.chat("The word is jackdaw.", session="mine")
    assert two.ids() == []
    unknown = [code(two.http.get("/v1/sessions/mine")), code(two.http.get("/v1/sessions/nothing"))]
    assert unknown == [(404, "not_found")] * 2
    for method, path in (
        ("GET", "/v1/sessions/mine/state"), ("DELETE", "/v1/sessions/mine"), ("POST", "/v1/sessions/mine/fork"),
    ):  # fmt: skip
        assert code(two.http.request(method, path)) == (404, "not_found"), path
    fresh = two.chat("The word is jackdaw.", session="mine")
    assert usage(fresh)[1] == 0 and two.show("mine")["turns"] == 1 == one.show("mine")["turns"]
    two.ok(two.http.delete("/v1/sessions/mine"))
    two.http.close()
    assert one.show("mine")["turns"] == 1


@pytest.mark.parametrize("id", ["..", "a/b", "%2e%2e%2fetc", "a b", "x" * 129, "Ü", "."])
def test_a_name_is_never_a_path(one: Client, id: str) -> None:
    answer = one.http.get(f"/v1/sessions/{id}/state")
    assert answer.status_code in (404, 405)
    if id != ".":
        assert one.post("/v1/chat/completions", messages=[MESSAGE], session_id=id, max_tokens=1).status_code == 400


def test_pages_of_the_list(one: Client) -> None:
    for number in range(5):
        one.complete("x", max_tokens=1, session_id=f"s{number}")
    first = one.ok(one.http.get("/v1/sessions?limit=2"))
    assert first["has_more"] and [first["first_id"], first["last_id"]] == ["s0", "s1"]
    rest = one.ok(one.http.get("/v1/sessions?limit=9&after=s1"))
    assert not rest["has_more"] and [view["id"] for view in rest["data"]] == ["s2", "s3", "s4"]


def test_a_key_has_its_limit(one: Client) -> None:
    for number in range(12):
        one.complete("x", max_tokens=1, session_id=f"s{number}")
    for answer in (
        one.post("/v1/completions", prompt="x", max_tokens=1, session_id="s12"),
        one.http.post("/v1/sessions/s0/fork"),
    ):
        assert code(answer) == (429, "too_many_sessions")
    one.complete("x", max_tokens=1, session_id="s0")


def test_sessions_are_there_after_a_restart(tmp_path: Any) -> None:
    flags = ("--data-dir", str(tmp_path / "data"))
    with server_process(tmp_path, *flags) as server:
        one = Client(server)
        one.chat("Hello, my name is Ada.", session="a")
        shown = one.show("a")
        state = one.http.get("/v1/sessions/a/state").content
        one.http.close()
        assert server.stop() == 0
    with server_process(tmp_path, *flags) as server:
        one = Client(server)
        assert one.show("a") == shown and one.http.get("/v1/sessions/a/state").content == state
        assert server.metric("rookery_sessions") == 1
        assert one.chat("Who am I?", session="a")["choices"]
        one.http.close()


def test_the_command_line_moves_sessions(one: Client, server: ServerProcess, tmp_path: Path) -> None:
    def rookery(*arguments: str, key: str = "one") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rookery.server", "sessions", *arguments, "--base-url", server.url]
        return subprocess.run([*command, "--api-key", key], capture_output=True, text=True, timeout=120)

    one.chat("Hello.", session="a")
    file = tmp_path / "a.safetensors"
    for arguments in (("export", "a", str(file)), ("import", "b", str(file)), ("fork", "a", "c"), ("delete", "a")):
        done = rookery(*arguments)
        assert done.returncode == 0, done.stderr
    listed = rookery("list")
    assert listed.returncode == 0 and "b" in listed.stdout and one.ids() == ["b", "c"]
    refused = rookery("show", "b", key="two")
    assert refused.returncode == 1 and "there is no such session" in refused.stderr
