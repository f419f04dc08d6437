"""API keys: closed by default on every route, wrong forms, Host and path tricks, tenants, nothing of a key anywhere."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message

from rookery.server.api.auth import OPEN_PATHS, read_keys, tenant_of
from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.errors import StartupError

from .api_server import MODEL, Api, api_in_process
from .fake_engine import FakeEngine

KEY, OTHER = "sk-right-0123456789abcdef", "sk-other-0123456789abcdef"
CONFIG = Config(served_model_name=(MODEL,), api_key=(KEY, OTHER))
GOOD = {"Authorization": f"Bearer {KEY}"}
WRONG: list[list[tuple[bytes, bytes]]] = [
    [],
    *(
        [(b"authorization", value)]
        for value in (
            b"",
            b"Bearer",
            b"Bearer ",
            KEY.encode(),
            b"Bearer" + KEY.encode(),
            b"Bearer  " + KEY.encode(),
            b"Bearer " + KEY.encode() + b" ",
            b"Bearer\t" + KEY.encode(),
            b" Bearer " + KEY.encode(),
            b"Basic " + KEY.encode(),
            b"Token " + KEY.encode(),
            b"Bearer " + KEY.encode()[:-1],
            b"Bearer " + KEY.encode() + b"x",
            b"Bearer " + KEY.upper().encode(),
            b"Bearer " + KEY.encode() + b"\x00",
            b"Bearer \x00" + KEY.encode(),
            b'Bearer "' + KEY.encode() + b'"',
            b"Bearer " + KEY.encode() + b"," + KEY.encode(),
            b"Bearer Bearer " + KEY.encode(),
            b"Bearer " + sha256(KEY.encode()).hexdigest().encode(),
            b"Bearer " + tenant_of(KEY.encode()).encode(),
            b"Bearer null",
            b"Bearer *",
            b"Bearer ' OR 1=1 --",
            b"Bearer " + b"a" * 100_000,
            "Bearer ключ".encode(),
            b"Bearer \xff\xfe",
        )
    ),
    [(b"authorization", b"Bearer wrong"), (b"authorization", b"Bearer " + KEY.encode())],
    [(b"authorization", b"Bearer " + KEY.encode())] * 2,
    [(b"x-api-key", KEY.encode())],
    [(b"cookie", b"Authorization=Bearer " + KEY.encode())],
    [(b"proxy-authorization", b"Bearer " + KEY.encode())],
]
HOSTS = [
    b"health", b"evil.example", b"127.0.0.1/health", b"127.0.0.1/health?", b"127.0.0.1#/health", b"@/health",
    b"x/health?y=", b"..", b"\xff", b"127.0.0.1:8000/ready#", b"[::1]/health",
]  # fmt: skip
PATHS = [
    "//v1/models", "/v1/models/", "/v1//models", "/./v1/models", "/health/../v1/models", "/health/..%2fv1/models",
    "/health;/v1/models", "/health/v1/models", "/ready/../metrics", "/%2e/v1/models", "/v1/models/.", "/V1/MODELS",
    "/health\x00/v1/models", "/health#/v1/models", "health", "", "/health?/v1/models", "/health/", "//health",
]  # fmt: skip


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process(FakeEngine(config=CONFIG), CONFIG) as api:
        yield api


async def ask(app: FastAPI, path: str, headers: list[tuple[bytes, bytes]], method: str = "GET") -> tuple[int, bytes]:
    """One request as raw ASGI, so that no client library mends it."""
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode("utf-8", "surrogateescape"),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "state": {},
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture(scope="module")
def app() -> FastAPI:
    """Of all tests that only send: describing the routes takes longer than asking them."""
    return create_app(CONFIG, FakeEngine(config=CONFIG))


async def test_every_route_but_the_open_ones_needs_a_key(app: FastAPI) -> None:
    paths = {
        *app.openapi()["paths"],
        "/docs",
        "/openapi.json",
        "/models",
        "/redoc",
        "/nothing",
        "/v1/anything",
    } - OPEN_PATHS
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/metrics", "/version"} <= paths
    for path in paths:
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "PROPFIND"):
            status, body = await ask(app, path, [(b"host", b"localhost")], method)
            assert status == 401, (method, path)
            assert b"invalid_api_key" in body
    for path in OPEN_PATHS:
        assert (await ask(app, path, []))[0] != 401


@pytest.mark.parametrize("headers", WRONG, ids=range(len(WRONG)))
async def test_wrong_forms_of_a_key_do_not_pass(
    app: FastAPI, headers: list[tuple[bytes, bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for path in {*app.openapi()["paths"], "/docs", "/openapi.json"} - OPEN_PATHS:
        status, body = await ask(app, path, [(b"host", b"localhost"), *headers])
        assert status == 401 and len(body) < 1000, path
        assert KEY.encode() not in body
    assert KEY not in caplog.text


@pytest.mark.parametrize("host", HOSTS)
async def test_the_host_header_decides_nothing(app: FastAPI, host: bytes) -> None:
    for path in {*app.openapi()["paths"], "/docs", "/openapi.json"} - OPEN_PATHS:
        assert (await ask(app, path, [(b"host", host)]))[0] == 401
        assert (await ask(app, path, [(b"host", b"localhost"), (b"host", host)]))[0] == 401
        assert (await ask(app, path, [(b"host", host), (b"x-forwarded-prefix", b"/health")]))[0] == 401


@pytest.mark.parametrize("path", PATHS)
async def test_paths_that_look_open_are_not(app: FastAPI, path: str) -> None:
    assert (await ask(app, path, [(b"host", b"localhost")]))[0] == 401


async def test_both_keys_pass_and_the_scheme_s_case_does_not_matter(api: Api) -> None:
    for value in (f"Bearer {KEY}", f"Bearer {OTHER}", f"bearer {KEY}", f"BEARER {KEY}"):
        assert (await api.client.get("/v1/models", headers={"Authorization": value})).status_code == 200
    refused = await api.client.get("/v1/models")
    assert refused.headers["www-authenticate"] == "Bearer"


async def test_each_key_is_its_own_tenant(api: Api) -> None:
    for key in (KEY, OTHER, KEY):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"model": MODEL, "prompt": "hi", "max_tokens": 1}
        assert (await api.client.post("/v1/completions", json=body, headers=headers)).status_code == 200
    tenants = [request.tenant for request in api.engine.submitted]
    assert tenants[0] == tenants[2] != tenants[1]
    assert not {KEY, OTHER, sha256(KEY.encode()).hexdigest()} & set(tenants)


async def test_a_body_is_not_read_before_the_key_is_known(app: FastAPI) -> None:
    async def receive() -> Message:
        raise AssertionError("the body was read")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 401


def test_keys_come_from_flags_and_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\n  one  \n\ntwo\r\n")
    digests = read_keys(Config(api_key=("three",), api_key_file=file))
    assert digests == {sha256(key).digest() for key in (b"one", b"two", b"three")}


@pytest.mark.parametrize("content", ["", "\n\n", "# only words\n", "has space\n", "ключ\n", "a" * 2000])
def test_a_key_file_without_a_usable_key_stops_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(StartupError) as caught:
        read_keys(Config(api_key_file=file))
    assert "ключ" not in caught.value.cause and "has space" not in caught.value.cause


def test_a_missing_key_file_or_an_empty_key_stops_the_start(tmp_path: Path) -> None:
    for config in (Config(api_key_file=tmp_path / "none"), Config(api_key_file=tmp_path), Config(api_key=("",))):
        with pytest.raises(StartupError):
            read_keys(config)
