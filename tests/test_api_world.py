"""The World vocabulary end to end: a small random model of 65,536 ids behind a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from .server_process import MODEL, ServerProcess, server_process, write_world

HI: Any = [{"role": "user", "content": "Wie ist das Wetter in Zürich?"}]


class Weather(pydantic.BaseModel):
    """What a schema can demand of a model that knows nothing."""

    city: str = pydantic.Field(pattern="^(Bern|Zürich|東京)$")
    degrees: int = pydantic.Field(ge=-9, le=40)
    rain: bool


TOOL: Any = openai.pydantic_function_tool(Weather, name="report")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(
        tmp_path_factory.mktemp("world"), "--max-batch", "8", "--dtype", "float32", write=write_world
    ) as server:
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_chat_is_the_same_streamed_and_whole(client: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": HI, "max_tokens": 60, "seed": 4, "extra_body": {"cache": False}}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    *parts, end, usage = chunks
    text = "".join(chunk.choices[0].delta.content or "" for chunk in parts)
    assert text == whole.choices[0].message.content
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason == "length"
    assert not usage.choices and usage.usage == whole.usage


def test_a_pydantic_model_is_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=HI, response_format=Weather, max_tokens=200, n=3, seed=1, temperature=1.5
    )
    assert [choice.finish_reason for choice in answer.choices] == ["stop"] * 3
    for choice in answer.choices:
        assert isinstance(choice.message.parsed, Weather)


def test_a_tool_goes_there_and_back(client: openai.OpenAI) -> None:
    demands: list[Any] = ["required", {"type": "function", "function": {"name": "report"}}]
    for demand in demands:
        asked: Any = {"model": MODEL, "tools": [TOOL], "max_tokens": 300, "seed": 2, "parallel_tool_calls": False}
        answer = client.chat.completions.parse(messages=HI, tool_choice=demand, **asked)
        [call] = answer.choices[0].message.tool_calls or []
        assert answer.choices[0].finish_reason == "tool_calls"
        assert call.function.name == "report" and isinstance(call.function.parsed_arguments, Weather)
        result = {"role": "tool", "tool_call_id": call.id, "content": "noted"}
        history = [*HI, answer.choices[0].message.model_dump(exclude_none=True), result]
        again = client.chat.completions.create(messages=history, **{**asked, "max_tokens": 8, "tool_choice": "none"})
        assert again.choices[0].message.tool_calls is None


def test_a_tool_is_streamed(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HI, tools=[TOOL], tool_choice="required", parallel_tool_calls=False, max_tokens=300
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert [event.name for event in done] == ["report"]
    assert isinstance(done[0].parsed_arguments, Weather)


def test_a_regex_and_a_grammar(client: openai.OpenAI) -> None:
    for fields in (
        {"regex": "(北京|東京)[0-9]{3}"},
        {"grammar": 'start: CITY DIGITS\nCITY: "北京" | "東京"\nDIGITS: /[0-9]{3}/'},
    ):
        answer = client.completions.create(model=MODEL, prompt="a", max_tokens=30, extra_body=fields)
        text = answer.choices[0].text
        assert text[:2] in ("北京", "東京") and len(text) == 5 and text[2:].isdigit()


def test_a_json_object(client: openai.OpenAI) -> None:
    for choice in client.chat.completions.create(
        model=MODEL, messages=HI, response_format={"type": "json_object"}, max_tokens=200, n=4, seed=3
    ).choices:
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content or ""), dict)


async def test_asynchronous_clients_share_the_batch(server: ServerProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def one(seed: int) -> str:
            parts = []
            stream = await client.completions.create(model=MODEL, prompt="x", max_tokens=12, seed=seed, stream=True)
            async for chunk in stream:
                parts.append(chunk.choices[0].text)
            return "".join(parts)

        together = await asyncio.gather(*(one(seed) for seed in range(6)))
        assert together == [await one(seed) for seed in range(6)]


def test_a_choice_is_the_same_whatever_its_neighbours(client: openai.OpenAI) -> None:
    def texts(n: int) -> list[str]:
        answer = client.completions.create(model=MODEL, prompt="x", max_tokens=10, seed=6, n=n)
        return [choice.text for choice in answer.choices]

    four = texts(4)
    assert len(set(four)) == 4
    assert [texts(n)[n - 1] for n in (1, 2, 3)] == four[:3]
