"""POST /v1/responses over the fake engine: items, events in their order, formats, tools, refusals."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from rookery.server.api.responses_answers import ItemList, ResponseObject
from rookery.server.config import Config

from .api_server import END, MODEL, Api, api_in_process, says
from .test_api_tools import ONE, TWO

PATH = "/v1/responses"
TOOLS = [
    {
        "type": "function",
        "name": name,
        "description": "Looks it up.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": False,
    }
    for name in ("get_weather", "get_time")
]
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
LIFE = ["response.created", "response.in_progress"]
TEXT = ["response.output_item.added", "response.content_part.added", "response.output_text.delta"]
TEXT_END = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
CALL = [
    "response.output_item.added",
    "response.function_call_arguments.delta",
    "response.function_call_arguments.done",
    "response.output_item.done",
]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


@pytest.fixture
async def thinker() -> AsyncIterator[Api]:
    async with api_in_process(config=Config(served_model_name=(MODEL,), chat_template="g1")) as api:
        yield api


async def respond(api: Api, input: object = "hi", **fields: object) -> Any:
    """A response that must succeed, parsed as the official package's `Response`."""
    body = {"model": MODEL, "input": input, "stop_token_ids": [END], **fields}
    answer = await api.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    return Response.model_validate(answer.json(), strict=True)


async def events(api: Api, input: object = "hi", **fields: object) -> list[Any]:
    """The events of a stream, parsed, with consecutive numbers and names that are their types."""
    body = {"model": MODEL, "input": input, "stop_token_ids": [END], "stream": True, **fields}
    answer = await api.client.post(PATH, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    blocks = [block.split("\n") for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    parsed = []
    for number, (name, data) in enumerate(blocks):
        value = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}" and value["sequence_number"] == number
        parsed.append(EVENT.validate_python(value, strict=True))
    return parsed


def prompt(api: Api) -> str:
    """What the engine was asked last."""
    return bytes(api.engine.submitted[-1].prompt_ids).decode()


def kinds(events: list[Any]) -> list[str]:
    """Types in order, a run of deltas as one."""
    names = [event.type for event in events]
    return [name for i, name in enumerate(names) if i == 0 or name != names[i - 1]]


async def test_a_text_is_answered(api: Api) -> None:
    api.engine.reply = says(" Hello there.")
    answer = await respond(api, "Grüezi", instructions="Be kind.", metadata={"a": "b"}, max_output_tokens=50)
    assert answer.output_text == "Hello there." and answer.status == "completed" and answer.error is None
    assert prompt(api) == "System: Be kind.\n\nUser: Grüezi\n\nAssistant:"
    assert answer.id.startswith("resp_") and answer.completed_at is not None
    assert answer.instructions == "Be kind." and answer.metadata == {"a": "b"} and answer.max_output_tokens == 50
    assert answer.tools == [] and answer.tool_choice == "auto" and answer.truncation == "disabled"
    assert answer.text is not None and answer.text.format is not None and answer.text.format.type == "text"
    usage = answer.usage
    assert usage is not None and usage.output_tokens == 14 and usage.input_tokens == len(prompt(api).encode())
    assert usage.total_tokens == usage.input_tokens + 14 and usage.output_tokens_details.reasoning_tokens == 0


async def test_answers_have_the_shape_that_is_documented(api: Api) -> None:
    bodies: list[dict[str, Any]] = [
        {"tools": TOOLS, "tool_choice": {"type": "function", "name": "get_time"}, "max_output_tokens": 2},
        {"metadata": {"a": "b"}, "text": {"format": {"type": "json_object"}}, "user": "me"},
    ]
    for body in bodies:
        answer = await api.client.post(PATH, json={"model": MODEL, "input": "hi", **body})
        shown = ResponseObject.model_validate(answer.json(), strict=True, extra="forbid")
        items = await api.client.get(f"{PATH}/{shown.id}/input_items")
        ItemList.model_validate(items.json(), strict=True, extra="forbid")


async def test_events_come_in_order_and_say_what_a_whole_answer_says(api: Api) -> None:
    api.engine.reply = says(" Hello there.")
    told = await events(api, metadata={"a": "b"})
    assert kinds(told) == [*LIFE, *TEXT, *TEXT_END, "response.completed"]
    assert "".join(event.delta for event in told if event.type == "response.output_text.delta") == "Hello there."
    added, last = told[2], told[-1].response
    assert added.item.content == [] and added.item.status == "in_progress" and added.output_index == 0
    assert told[0].response.status == "in_progress" and told[0].response.usage is None
    whole = await respond(api, metadata={"a": "b"})
    volatile = {"id", "created_at", "completed_at", "output"}
    assert last.model_dump(exclude=volatile) == whole.model_dump(exclude=volatile)
    assert last.output_text == whole.output_text and last.output[0].id == added.item.id
    assert {event.item_id for event in told if hasattr(event, "item_id")} == {added.item.id}


async def test_an_answer_cut_short_is_incomplete(api: Api) -> None:
    told = await events(api, max_output_tokens=3)
    assert told[-1].type == "response.incomplete" and told[-2].item.status == "incomplete"
    whole = await respond(api, max_output_tokens=3)
    for response in (told[-1].response, whole):
        assert response.status == "incomplete" and response.output_text == "Hel"
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens" and response.completed_at is None


async def test_an_answer_of_nothing_is_an_empty_message(api: Api) -> None:
    api.engine.reply = says("")
    told = await events(api)
    assert kinds(told) == [*LIFE, *TEXT[:2], *TEXT_END, "response.completed"]
    assert [item.type for item in told[-1].response.output] == ["message"] and told[-1].response.output_text == ""


async def test_thoughts_are_an_item_of_their_own(thinker: Api) -> None:
    thinker.engine.reply = says(">\nLet me see.\n</think>\n\nFour.")
    fields: dict[str, Any] = {"reasoning": {"effort": "low", "summary": "auto"}}
    told = await events(thinker, "2+2?", **fields)
    thought = [kind.replace("output_text", "reasoning_text") for kind in [*TEXT, *TEXT_END]]
    assert kinds(told) == [*LIFE, *thought, *TEXT, *TEXT_END, "response.completed"]
    assert "".join(event.delta for event in told if event.type == "response.reasoning_text.delta") == "Let me see."
    whole = await respond(thinker, "2+2?", **fields)
    for response in (told[-1].response, whole):
        assert [item.type for item in response.output] == ["reasoning", "message"]
        assert response.output[0].content[0].text == "Let me see." and response.output_text == "Four."
        assert response.usage.output_tokens_details.reasoning_tokens > 10
        assert response.reasoning.effort == "low"
    assert "(think a bit)" in prompt(thinker)


async def test_calls_are_items_and_their_arguments_stream(api: Api) -> None:
    api.engine.reply = says(TWO)
    told = await events(api, tools=TOOLS)
    assert kinds(told) == [*LIFE, *CALL, *CALL, "response.completed"]
    pieces: dict[int, str] = {}
    for event in told:
        if event.type == "response.function_call_arguments.delta":
            pieces[event.output_index] = pieces.get(event.output_index, "") + event.delta
    assert pieces == {0: '{"city":"A"}', 1: '{"city":"B"}'}
    assert told[2].item.arguments == "" and told[2].item.name == "get_weather"
    for response in (told[-1].response, await respond(api, tools=TOOLS)):
        assert [(item.name, json.loads(item.arguments)["city"]) for item in response.output] == [
            ("get_weather", "A"),
            ("get_time", "B"),
        ]
        assert all(item.status == "completed" and item.call_id.startswith("call_") for item in response.output)
        assert response.tools[0].name == "get_weather"
    one = await respond(api, tools=TOOLS, parallel_tool_calls=False)
    assert len(one.output) == 1 and one.parallel_tool_calls is False


async def test_a_call_that_was_cut_is_incomplete(api: Api) -> None:
    api.engine.reply = says(ONE)
    answer = await respond(api, tools=TOOLS, max_output_tokens=len(ONE.encode()) - 12)
    assert answer.status == "incomplete"
    call = answer.output[0]
    assert call.type == "function_call" and call.status == "incomplete" and call.arguments.startswith('{"city":"Z')


async def test_a_demanded_tool_constrains_the_answer(api: Api) -> None:
    choice = {"type": "function", "name": "get_time"}
    answer = await respond(api, tools=TOOLS, tool_choice=choice)
    grammar = api.engine.submitted[-1].sampling.grammar
    assert grammar is not None and "get_time" in grammar and "get_weather" not in grammar
    assert answer.tool_choice.model_dump() == choice


async def test_formats_constrain_the_answer(api: Api) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    shape = {"type": "json_schema", "name": "x", "schema": schema, "strict": True}
    answer = await respond(api, text={"format": shape})
    grammar = api.engine.submitted[-1].sampling.grammar
    assert grammar is not None and '"integer"' in grammar
    assert answer.text is not None and answer.text.format is not None
    assert answer.text.format.model_dump(by_alias=True, exclude_none=True) == shape
    await respond(api, text={"format": {"type": "json_object"}})
    assert '"object"' in (api.engine.submitted[-1].sampling.grammar or "")
    await respond(api, text={"format": {"type": "text"}})
    assert api.engine.submitted[-1].sampling.grammar is None


async def test_items_make_the_prompt(api: Api) -> None:
    items = [
        {"role": "developer", "content": "Short."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Rain in A?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Hmm."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I look.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "get_weather", "arguments": '{"city":"A"}'},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Sun."}]},
    ]  # fmt: skip
    answer = await respond(api, items)
    expected = (
        'System: Short.\n\nUser: Rain in A?\n\nAssistant: I look.\n```json\n{"name":"get_weather","arguments":'
        '{"city":"A"}}\n```\n\nUser: Function output:\nSun.\n\nAssistant:'
    )
    assert prompt(api) == expected
    listed = (await api.client.get(f"{PATH}/{answer.id}/input_items?order=asc")).json()["data"]
    assert [item["type"] for item in listed] == [
        "message", "message", "reasoning", "message", "function_call", "function_call_output",
    ]  # fmt: skip
    again = (await api.client.post(PATH, json={"model": MODEL, "input": listed})).json()
    assert again["status"] == "completed" and prompt(api) == expected


async def test_log_probabilities_are_those_of_the_text(thinker: Api) -> None:
    thinker.engine.reply = says(">\nSo.\n</think>\n\nFour.")
    fields: dict[str, Any] = {
        "reasoning": {"effort": "low"}, "top_logprobs": 2, "include": ["message.output_text.logprobs"],
    }  # fmt: skip
    told = await events(thinker, **fields)
    listed = [token.token for event in told if event.type == "response.output_text.delta" for token in event.logprobs]
    assert "".join(listed) == "Four."
    response = await respond(thinker, **fields)
    tokens = response.output[-1].content[0].logprobs
    assert [token.token for token in tokens] == listed and len(tokens[0].top_logprobs) == 2
    done = next(event for event in told if event.type == "response.output_text.done")
    assert [token.token for token in done.logprobs] == listed


async def test_a_failed_step_is_told(api: Api) -> None:
    api.engine.fail_after = 2
    told = await events(api)
    assert kinds(told)[-3:] == ["response.output_item.done", "error", "response.failed"]
    failed = told[-1].response
    assert failed.status == "failed" and failed.error.code == "server_error" and failed.error.message
    assert failed.output[0].status == "incomplete" and told[-2].message == failed.error.message
    assert (await api.client.get(f"{PATH}/{failed.id}")).json()["status"] == "failed"
    again = await api.client.post(PATH, json={"model": MODEL, "input": "x", "previous_response_id": failed.id})
    assert again.status_code == 400 and again.json()["error"]["param"] == "previous_response_id"
    whole = await api.client.post(PATH, json={"model": MODEL, "input": "hi"})
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"


async def test_stop_strings_and_seeds_go_through(api: Api) -> None:
    api.engine.reply = says(" one two three")
    answer = await respond(api, stop=["two"], seed=5, temperature=0.5, top_p=0.9)
    assert answer.output_text == "one " and answer.temperature == 0.5 and answer.top_p == 0.9
    sampling = api.engine.submitted[-1].sampling
    assert sampling.seed == 5 and sampling.temperature == 0.5 and sampling.top_p == 0.9


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"input": 1}, "input"),
    ({"input": None}, "input"),
    ({"input": []}, "input"),
    ({"input": [{"type": "message", "role": "user"}]}, "input.0.content"),
    ({"input": [{"role": "emperor", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
    ({"input": [{"type": "computer_call"}]}, "input"),
    ({"input": [{"type": 5}]}, "input.0"),
    ({"input": [{"type": "function_call_output", "call_id": "c9", "output": "x"}]}, "input"),
    ({"tools": [{"type": "web_search"}]}, "tools"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools"),
    ({"tools": [TOOLS[0], TOOLS[0]]}, "tools"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"not": {}}}]}, "tools.0.parameters"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {"x": [{"y": 10**30}]}}]}, "tools.0.parameters"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"maximum": -(2**64)}}}}, "text.format.schema"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}}, "tool_choice"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
    ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format.schema"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"text": {"format": {"type": "json_object"}}, "regex": "a"}, "text.format"),
    ({"reasoning": {"effort": "high"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"background": True}, "background"),
    ({"truncation": "auto"}, "truncation"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"n": 2}, "n"),
    ({"include": ["everything"]}, "include.0"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_output_tokens": 10**6}, "max_output_tokens"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
    ({"store": "yes"}, "store"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"previous_response_id": "../x"}, "previous_response_id"),
    ({"previous_response_id": "resp_1", "conversation": "conv_1"}, "conversation"),
    ({"conversation": 5}, "conversation"),
    ({"temperature": 3}, "temperature"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=range(len(REFUSED)))
async def test_refusals_name_the_field(api: Api, fields: dict[str, Any], param: str) -> None:
    error = await api.refused(PATH, **{"input": "hi", **fields})
    assert error["param"] == param, error
    assert not api.engine.submitted


async def test_a_prompt_that_is_too_long_is_the_input_s_fault() -> None:
    async with api_in_process(config=Config(served_model_name=(MODEL,), max_prompt_tokens=20)) as api:
        error = await api.refused(PATH, input="a" * 100)
        assert error["code"] == "context_length_exceeded" and error["param"] == "input"


async def test_unknown_models_are_404(api: Api) -> None:
    answer = await api.client.post(PATH, json={"model": "gpt-9", "input": "hi"})
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
