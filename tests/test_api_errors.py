"""Error answers: the envelope for everything, nothing of the inside in it, and a good request is served after each."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Request
from starlette.types import Message, Receive, Scope, Send

from rookery.server.config import Config
from rookery.server.edge.body import BodyGuard, check_json
from rookery.server.edge.host import HostGuard
from rookery.server.errors import InvalidRequest, QueueFull

from .api_server import MODEL, Api, api_in_process
from .fake_engine import FakeEngine
from .hostile.requests import GENERATING, Hostile, base, hostile_requests

HOSTILE = hostile_requests(MODEL)
INSIDE = re.compile(r"Traceback|\.py\b|site-packages|/home/|/usr/|/root/|line \d+, in |0x[0-9a-f]{6,}|pydantic|fastapi")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


async def assert_refused(api: Api, hostile: Hostile) -> None:
    answer = await api.client.request(
        hostile.method, hostile.path, content=hostile.body or None, headers=hostile.headers
    )
    where = (hostile.name, answer.status_code, answer.text[:500])
    assert 400 <= answer.status_code < 500, where
    assert len(answer.content) <= 16 * 1024, where
    assert answer.headers["x-request-id"]
    if hostile.method == "HEAD":
        return
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, where
    assert error["message"] and error["type"] == "invalid_request_error", where
    assert not INSIDE.search(answer.text), where
    if hostile.param is not None:
        assert str(error["param"]).partition(".")[0] == hostile.param, where
    if answer.status_code == 405:
        assert answer.headers["allow"], where


def test_there_are_enough_hostile_requests_and_all_differ() -> None:
    distinct = {(one.method, one.path, one.body, tuple(one.headers.items())) for one in HOSTILE}
    assert len(distinct) >= 529, len(distinct)
    assert len({one.name for one in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("batch", range(8))
async def test_hostile_requests_get_4xx_and_a_good_one_is_served_after_each(api: Api, batch: int) -> None:
    for hostile in HOSTILE[batch::8]:
        await assert_refused(api, hostile)
        answer = await api.complete("hi", max_tokens=1)
        assert answer["choices"][0]["finish_reason"] == "length", hostile.name
    assert all(len(request.prompt_ids) == 2 for request in api.engine.submitted)  # no hostile one went through


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ("/v1/chat/completions", {"messages": [{"content": "hi"}]}, "messages.0.role"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
         "messages.0.content.0.text"),
        ("/v1/completions", {"prompt": ["a", 1]}, "prompt.1"),
        ("/v1/completions", {"prompt": "a", "logit_bias": {"5": 1000}}, "logit_bias.5"),
        ("/v1/completions", {"prompt": "a", "temperature": "hot"}, "temperature"),
    ],
)  # fmt: skip
async def test_param_is_the_dotted_path_of_the_field(api: Api, path: str, body: dict[str, Any], param: str) -> None:
    error = await api.refused(path, **body)
    assert error["param"] == param


async def test_a_missing_field_is_named(api: Api) -> None:
    answer = await api.client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "model", "missing_required_parameter")


async def test_a_body_that_is_no_object_is_told_so(api: Api) -> None:
    bodies: list[object] = [[], "text", 5]
    for body in bodies:
        answer = await api.client.post("/v1/completions", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["message"] == "the body must be a JSON object"


async def test_input_is_not_repeated(api: Api) -> None:
    for body in (
        {"prompt": "a", "temperature": "s3cret" * 9},
        {"prompt": {"s3cret": 1}},
        {"prompt": "a", "n": ["s3cret"]},
    ):
        answer = await api.client.post("/v1/completions", json={"model": MODEL, **body})
        assert answer.status_code == 400 and "s3cret" not in answer.text


async def test_405_allows_what_the_route_takes(api: Api) -> None:
    assert (await api.client.get("/v1/completions")).headers["allow"] == "POST"
    assert (await api.client.post("/health", json={})).headers["allow"] == "GET, HEAD"


async def test_a_full_queue_says_when_to_come_back(api: Api) -> None:
    api.engine.refusal = QueueFull("the queue is full", retry_after_s=7)
    for path in GENERATING:
        body = base(path, MODEL) | {"stream": True}
        answer = await api.client.post(path, json=body)
        assert answer.status_code == 429 and answer.headers["retry-after"] == "7"
        assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_an_unforeseen_error_is_a_plain_500_and_the_server_goes_on(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.engine.refusal = ZeroDivisionError("s3cret detail")  # type: ignore[assignment]
    answer = await api.client.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
    assert answer.status_code == 500 and "s3cret" not in answer.text
    assert answer.json()["error"]["code"] == "internal_error" and answer.headers["x-request-id"]
    assert "ZeroDivisionError" in caplog.text
    api.engine.refusal = None
    await api.complete("hi", max_tokens=1)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("my-id_1.2:3", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("", False), ("a\x7fb", False)],
)
async def test_request_ids(api: Api, sent: str, kept: bool) -> None:
    got = (await api.client.get("/nothing", headers={"x-request-id": sent})).headers.get_list("x-request-id")
    assert len(got) == 1 and (got[0] == sent) is kept
    if not kept:
        assert re.fullmatch(r"req_[0-9a-f]{32}", got[0])


async def test_other_origins_are_not_allowed_by_default(api: Api) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        await api.client.options("/v1/chat/completions", headers=headers),
        await api.client.get("/v1/models", headers=headers),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_configured_origin_is_allowed_without_a_key_in_the_preflight() -> None:
    config = Config(served_model_name=(MODEL,), cors_origin=("https://app.example",), api_key=("sk-1",))
    async with api_in_process(FakeEngine(config=config), config) as api:
        headers = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        answer = await api.client.options("/v1/chat/completions", headers=headers)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
        assert (await api.client.post("/v1/completions", json={}, headers=headers)).status_code == 401
        evil = await api.client.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in evil.headers
        foreign = {**headers, "Origin": "https://evil.example"}
        refused = await api.client.options("/v1/chat/completions", headers=foreign)
        assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"
        assert "access-control-allow-origin" not in refused.headers


async def test_a_closed_gate_refuses_everything_but_health() -> None:
    async with api_in_process() as api:
        app = api.client._transport.app  # type: ignore[attr-defined]
        app.state.gate.closed = True
        for path in ("/v1/models", "/ready", "/nothing"):
            answer = await api.client.get(path)
            assert answer.status_code == 503 and answer.headers["connection"] == "close"
            assert "retry-after" in answer.headers
        assert (await api.client.get("/health")).status_code == 200


# The body guard by itself


async def guarded(
    headers: list[tuple[bytes, bytes]], chunks: list[bytes], *, limit: int = 100, memory: int = 1000
) -> tuple[int, int, bytes | None]:
    """(status, chunks taken, body that the application saw)."""
    seen: list[bytes] = []
    sent: list[Message] = []
    waiting = list(chunks)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(await Request(scope, receive).body())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message: Message) -> None:
        sent.append(message)

    guard = BodyGuard(app, limit_bytes=limit, memory_bytes=memory)
    await guard({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive, send)
    assert guard._free == memory  # all of it is given back
    return sent[0]["status"], len(chunks) - len(waiting), seen[0] if seen else None


TYPE = (b"content-type", b"application/json; charset=utf-8")


async def test_a_body_arrives_whole() -> None:
    assert await guarded([TYPE], [b'{"a"', b":1", b"}"]) == (200, 3, b'{"a":1}')
    assert await guarded([], [b""]) == (200, 1, b"")


async def test_a_declared_length_over_the_limit_is_refused_unread() -> None:
    assert await guarded([TYPE, (b"content-length", b"101")], [b"x" * 101]) == (413, 0, None)
    assert await guarded([TYPE, (b"content-length", b"9" * 4000)], [b"x"]) == (413, 0, None)


async def test_a_body_over_the_limit_is_refused_while_it_comes() -> None:
    assert await guarded([TYPE], [b"x" * 60] * 10) == (413, 2, None)


async def test_an_imported_state_has_a_limit_of_its_own() -> None:
    async def status(size: int, method: str) -> int:
        sent: list[Message] = []

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})

        async def receive() -> Message:
            return {"type": "http.request", "body": b"x" * size, "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        guard = BodyGuard(app, limit_bytes=100, memory_bytes=100, file_bytes=lambda: 500)
        headers = [(b"content-type", b"application/octet-stream")]
        scope = {"type": "http", "method": method, "path": "/v1/sessions/a/state", "headers": headers}
        await guard(scope, receive, send)
        return int(sent[0]["status"])

    assert [await status(size, "PUT") for size in (500, 501)] == [200, 413]
    assert await status(500, "POST") == 413


async def test_bodies_together_are_bounded() -> None:
    assert (await guarded([TYPE], [b"x" * 60] * 2, memory=50))[:2] == (503, 1)


def test_json_is_strict_and_its_nesting_bounded() -> None:
    check_json(b"[" * 128 + b"]" * 128)
    check_json(json.dumps({"a": [{}] * 500, "b": "[" * 500}).encode())
    for body in (
        b"[" * 130 + b"]" * 130,
        b'{"a":' * 130 + b"1" + b"}" * 130,
        b"NaN",
        b'"\xff"',
        b'"\\ud800"',
        b"{",
        b"",
    ):
        with pytest.raises(InvalidRequest) as caught:
            check_json(body)
        assert caught.value.code == "invalid_json"


# The host guard by itself


@pytest.mark.parametrize(
    ("hosts", "allowed"),
    [
        ([b"127.0.0.1"], True), ([b"127.0.0.1:8000"], True), ([b"localhost:1"], True), ([b"[::1]:8000"], True),
        ([b"LOCALHOST"], True), ([b"a.localhost"], True), ([b"127.8.8.8"], True), ([b"localhost."], True),
        ([b"evil.example"], False), ([b"127.0.0.1.evil.example"], False), ([b"localhost.evil.example"], False),
        ([b"127.0.0.1@evil.example"], False), ([b"evil.example:80@127.0.0.1"], False), ([b"10.0.0.1"], True),
        ([b""], False), ([], False), ([b"127.0.0.1", b"evil.example"], False), ([b"[fe80::1]:8000"], True),
        ([b"rookery-2:8000"], True), ([b"ROOKERY-2."], True), ([b"rookery-3"], False), ([b"10.0.0.1.nip.io"], False),
        ([b"127.0.0.1:8000:1"], False), ([b"localhost/"], False), ([b"xlocalhost"], False), ([b"[::1"], False),
    ],
)  # fmt: skip
async def test_a_keyless_server_answers_to_names_no_foreign_page_has(hosts: list[bytes], allowed: bool) -> None:
    sent: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "headers": [(b"host", host) for host in hosts]}
    await HostGuard(app, ("Rookery-2",))(scope, receive, send)
    assert sent[0]["status"] == (200 if allowed else 403)
