"""The official Python client against a real server: everything it parses, and what only a socket can show."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from .api_server import END, MODEL, ApiServer, api_server, says
from .test_api_tools import ONE, TOOLS

HI: Any = [{"role": "user", "content": "hi"}]
ENDS = {"stop_token_ids": [END]}


@pytest.fixture(scope="module")
def running() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def server(running: ApiServer) -> ApiServer:
    engine = running.engine
    engine.reply = says(" Hello there.")
    engine.fail_after = None
    engine.submitted.clear()
    engine.cancelled.clear()
    return running


@pytest.fixture
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ApiServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread does; fails after ten seconds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.002)


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=HI, extra_body=ENDS)
    assert answer.choices[0].message.content == "Hello there." and answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None and answer.usage.total_tokens > answer.usage.completion_tokens == 14
    assert answer._request_id


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True}, extra_body=ENDS
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello there."
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 14


def test_chat_stream_helper(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=HI, extra_body=ENDS) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        final = stream.get_final_completion()
    assert "".join(deltas) == final.choices[0].message.content == "Hello there."


def test_tool_calls_through_the_stream_helper(server: ApiServer, client: openai.OpenAI) -> None:
    server.engine.reply = says(ONE)
    tools: Any = TOOLS
    with client.chat.completions.stream(model=MODEL, messages=HI, tools=tools, extra_body=ENDS) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    assert [event.name for event in done] == ["get_weather"] and json.loads(done[0].arguments) == {"city": "Zürich"}
    assert final.choices[0].finish_reason == "tool_calls"


def test_completion_and_its_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=MODEL, prompt="a", logprobs=2, echo=True, extra_body=ENDS)
    assert whole.choices[0].text == "a Hello there." and whole.choices[0].logprobs is not None
    streamed = client.completions.create(model=MODEL, prompt="a", stream=True, extra_body=ENDS)
    assert "".join(chunk.choices[0].text for chunk in streamed) == " Hello there."


async def test_many_at_once(async_client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        if number % 2:
            answer = await async_client.chat.completions.create(model=MODEL, messages=HI, extra_body=ENDS)
            return answer.choices[0].message.content or ""
        stream = await async_client.chat.completions.create(model=MODEL, messages=HI, stream=True, extra_body=ENDS)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert await asyncio.gather(*map(one, range(24))) == ["Hello there."] * 24


def test_errors_are_the_client_s_own(server: ApiServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-9", messages=HI)
    assert missing.value.code == "model_not_found" and missing.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model=MODEL, messages=HI, temperature=3)
    assert wrong.value.param == "temperature"
    server.engine.fail_after = 1
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model=MODEL, messages=HI)
    with pytest.raises(openai.APIError) as broken:
        list(client.chat.completions.create(model=MODEL, messages=HI, stream=True))
    assert broken.value.message == "the step failed"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"


def test_the_first_event_leaves_before_the_second_token_is_computed(server: ApiServer) -> None:
    engine = server.engine

    def one_step_only(request: object, choice: int) -> list[int]:
        return [*b" Hello"]

    async def hold() -> None:
        engine.gate.clear()

    async def release() -> None:
        engine.gate.set()

    pushed = 0

    def after_first(request: Any, choice: int) -> Any:
        class Reply(list[int]):
            def __getitem__(self, index: Any) -> Any:
                nonlocal pushed
                pushed += 1
                engine.gate.clear()  # one token, then nothing until the test says so
                return super().__getitem__(index)

        return Reply(one_step_only(request, choice))

    engine.reply = after_first
    body = {"model": MODEL, "messages": HI, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        assert json.loads(next(lines)[6:])["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert pushed == 1
    server.run(release)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("prompt", ["a", ["a", "b"]])
def test_a_client_that_leaves_frees_its_place(server: ApiServer, stream: bool, prompt: object) -> None:
    engine = server.engine
    engine.reply = lambda request, choice: b"x" * 30_000
    body = json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 30_000, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=10) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        if stream:
            assert connection.recv(1000)
        until(lambda: len(engine.submitted) == (1 if prompt == "a" else 2))
    until(lambda: {id for id, _ in engine.cancelled} == {request.id for request in engine.submitted})


def test_a_connection_survives_a_stream(server: ApiServer) -> None:
    with httpx.Client(base_url=server.url) as client:
        body = {"model": MODEL, "messages": HI, **ENDS}
        answers = [client.post("/v1/chat/completions", json={**body, "stream": stream}) for stream in (True, False)]
        first, second = [answer.extensions["network_stream"].get_extra_info("client_addr") for answer in answers]
        assert first == second and answers[1].json()["choices"][0]["message"]["content"] == "Hello there."
