"""Tools over HTTP with the fake engine: calls in a reply, whole and streamed, and tool turns in the prompt."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from .api_server import END, Api, api_in_process, says

PATH = "/v1/chat/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks it up.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("get_weather", "get_time")
]
USER = [{"role": "user", "content": "Weather?"}]
ONE = ' ```json\n{"name":"get_weather","arguments":{"city":"Zürich"}}\n```'
TWO = ' ```json\n{"name":"get_weather","arguments":{"city":"A"}}\n{"name":"get_time","arguments":{"city":"B"}}\n```'


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


async def whole(api: Api, **fields: object) -> ChatCompletion:
    body: dict[str, Any] = {"model": "tiny", "messages": USER, "tools": TOOLS, "stop_token_ids": [END], **fields}
    answer = await api.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return ChatCompletion.model_validate(answer.json())


async def test_a_call_is_answered_as_one(api: Api) -> None:
    api.engine.reply = says(ONE)
    choice = (await whole(api)).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert choice.message.tool_calls is not None and len(choice.message.tool_calls) == 1
    call = choice.message.tool_calls[0]
    assert call.type == "function" and call.id.startswith("call_") and call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Zürich"}
    assert "get_weather" in bytes(api.engine.submitted[-1].prompt_ids).decode()


async def test_calls_stream_with_index_id_and_name_first(api: Api) -> None:
    api.engine.reply = says(TWO)
    chunks = await api.stream(PATH, messages=USER, tools=TOOLS)
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    deltas = [call for chunk in parsed for call in chunk.choices[0].delta.tool_calls or ()]
    arguments: dict[int, str] = {}
    for call in deltas:
        assert call.function is not None and call.function.arguments is not None
        if call.index not in arguments:
            assert call.id and call.type == "function" and call.function.name
        else:
            assert call.id is None and call.function.name is None
        arguments[call.index] = arguments.get(call.index, "") + call.function.arguments
    assert {index: json.loads(text) for index, text in arguments.items()} == {0: {"city": "A"}, 1: {"city": "B"}}
    assert len(deltas) > 4, "arguments come in pieces"
    assert parsed[-1].choices[0].finish_reason == "tool_calls"
    assert not any(chunk.choices[0].delta.content for chunk in parsed)


async def test_without_parallel_calls_the_second_is_never_made(api: Api) -> None:
    api.engine.reply = says(TWO + "x" * 200)
    choice = (await whole(api, parallel_tool_calls=False)).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert [call.function.name for call in choice.message.tool_calls or () if call.type == "function"] == [
        "get_weather"
    ]
    assert api.engine.cancelled


async def test_plain_answers_stay_plain(api: Api) -> None:
    api.engine.reply = says(' It is warm. ```json\n{"name":"no_tool","arguments":{}}\n```')
    choice = (await whole(api)).choices[0]
    assert choice.finish_reason == "stop" and choice.message.tool_calls is None
    assert choice.message.content is not None and "no_tool" in choice.message.content
    api.engine.reply = says(ONE)
    choice = (await whole(api, tool_choice="none")).choices[0]
    assert choice.message.tool_calls is None and choice.message.content == ONE[1:]
    assert "get_weather" not in bytes(api.engine.submitted[-1].prompt_ids).decode()


async def test_a_call_cut_by_length_says_so(api: Api) -> None:
    api.engine.reply = says(ONE)
    assert (await whole(api, max_tokens=50)).choices[0].finish_reason == "length"


async def test_a_demanded_call_cut_before_it_has_a_name_says_nothing(api: Api) -> None:
    api.engine.reply = says('\n{"name":"get_weather","arguments":{"city":"A"}}\n```')
    for fields in ({"max_tokens": 8}, {"stop": "name"}):
        choice = (await whole(api, tool_choice="required", **fields)).choices[0]
        assert choice.message.content == "" and choice.message.tool_calls is None
        assert choice.finish_reason == ("length" if "max_tokens" in fields else "stop")
    chunks = await api.stream(PATH, messages=USER, tools=TOOLS, tool_choice="required", max_tokens=8)
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)


async def test_results_of_tools_reach_the_prompt(api: Api) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"A"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"},
    ]
    await whole(api, messages=messages)
    prompt = bytes(api.engine.submitted[-1].prompt_ids).decode()
    assert '{"city":"A"}' in prompt and "12 degrees" in prompt


async def test_wrong_tools_are_refused(api: Api) -> None:
    named = {"type": "function", "function": {"name": "other"}}
    for fields, param in (
        ({"tools": TOOLS, "tool_choice": named}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
    ):
        assert (await api.refused(PATH, messages=USER, **fields))["param"] == param
