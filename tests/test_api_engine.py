"""The API over a real engine process and a small random model: what the client is promised of tokens and numbers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from rookery.server.app import create_app
from rookery.server.config import Config
from rookery.server.engine.client import EngineClient

from .api_server import MODEL, chunks_of
from .server_process import write_tiny

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    path: Path = write_tiny(tmp_path_factory.mktemp("model"))
    config = Config(served_model_name=(MODEL,), max_batch=8)
    app = create_app(config, EngineClient(config, path))
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://api", timeout=60)
    async with app.router.lifespan_context(app), client:
        await app.state.service.load()
        yield client


async def post(client: httpx.AsyncClient, path: str, **fields: object) -> dict[str, Any]:
    answer = await client.post(path, json={"model": MODEL, **fields})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


@pytest.mark.asyncio(loop_scope="module")
async def test_the_same_seed_gives_the_same_answer_streamed_or_whole(client: httpx.AsyncClient) -> None:
    fields: dict[str, Any] = {"prompt": "Once", "max_tokens": 24, "seed": 11, "logprobs": 3, "return_token_ids": True}
    first, second = [(await post(client, TEXT, **fields))["choices"][0] for _ in range(2)]
    assert first == second
    other = (await post(client, TEXT, **{**fields, "seed": 12}))["choices"][0]
    assert other["token_ids"] != first["token_ids"]
    answer = await client.post(TEXT, json={"model": MODEL, "stream": True, **fields})
    chunks = [chunk["choices"][0] for chunk in chunks_of(answer.text)]
    assert [id for chunk in chunks for id in chunk["token_ids"]] == first["token_ids"]
    assert "".join(chunk["text"] for chunk in chunks) == first["text"]
    assert [x for chunk in chunks for x in chunk["logprobs"]["token_logprobs"]] == first["logprobs"]["token_logprobs"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("path", [TEXT, CHAT])
async def test_choices_differ_and_none_depends_on_the_others(client: httpx.AsyncClient, path: str) -> None:
    """Choice k of four is choice k of k + 1, the only other way to ask for it; streamed and whole."""
    fields: dict[str, Any] = {"max_tokens": 12, "seed": 5, "return_token_ids": True}
    fields |= {"prompt": "Once"} if path == TEXT else {"messages": USER}
    four = (await post(client, path, n=4, **fields))["choices"]
    tokens = [choice["token_ids"] for choice in four]
    assert len(set(map(tuple, tokens))) == 4
    for n in (1, 2, 3):
        fewer = (await post(client, path, n=n, **fields))["choices"]
        assert [choice["token_ids"] for choice in fewer] == tokens[:n]
    answer = await client.post(path, json={"model": MODEL, "stream": True, "n": 4, **fields})
    streamed: dict[int, list[int]] = {index: [] for index in range(4)}
    for chunk in chunks_of(answer.text):
        for choice in chunk["choices"]:
            streamed[choice["index"]] += choice.get("token_ids", [])
    assert list(streamed.values()) == tokens


@pytest.mark.asyncio(loop_scope="module")
async def test_greedy_choice_is_the_top_logprob_and_scoring_agrees_with_it(client: httpx.AsyncClient) -> None:
    greedy = (await post(client, TEXT, prompt="Once", max_tokens=8, temperature=0, logprobs=2, return_token_ids=True))[
        "choices"
    ][0]
    for logprob, top in zip(greedy["logprobs"]["token_logprobs"], greedy["logprobs"]["top_logprobs"], strict=True):
        assert logprob == max(top.values())
    ids = [*b"Once", *greedy["token_ids"]]
    scored = (await post(client, TEXT, prompt=ids, max_tokens=0, echo=True, logprobs=2))["choices"][0]["logprobs"]
    assert scored["token_logprobs"][0] is None and len(scored["token_logprobs"]) == len(ids)
    assert scored["token_logprobs"][4:] == pytest.approx(greedy["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_random_model_says_valid_json(client: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"enum": [1, 2]}, "b": {"type": "boolean"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    body = await post(client, CHAT, messages=USER, response_format=shape, max_tokens=400, seed=1, n=2)
    for choice in body["choices"]:
        if choice["finish_reason"] == "stop":
            value = json.loads(choice["message"]["content"])
            assert value["a"] in (1, 2) and isinstance(value["b"], bool)
    assert any(choice["finish_reason"] == "stop" for choice in body["choices"])


@pytest.mark.asyncio(loop_scope="module")
async def test_a_random_model_calls_the_tool_it_must_call(client: httpx.AsyncClient) -> None:
    city = {"type": "object", "properties": {"city": {"enum": ["A", "B"]}}, "required": ["city"]}
    closed = {**city, "additionalProperties": False}
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": closed}}
    body = await post(
        client, CHAT, messages=USER, tools=[tool], tool_choice="required", parallel_tool_calls=False, max_tokens=400
    )
    choice = body["choices"][0]
    assert choice["finish_reason"] in ("tool_calls", "length")
    call = choice["message"]["tool_calls"][0]["function"]
    assert call["name"] == "get_weather"
    if choice["finish_reason"] == "tool_calls":
        assert json.loads(call["arguments"])["city"] in ("A", "B")
