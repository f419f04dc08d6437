"""The official Python client drives /v1/responses: whole and streamed, helpers, tools in a loop, conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel

from .api_server import END, MODEL, ApiServer, api_server, says
from .test_api_responses import TOOLS
from .test_api_tools import ONE

ENDS = {"stop_token_ids": [END]}


class Weather(BaseModel):
    city: str
    degrees: int


@pytest.fixture(scope="module")
def running() -> Iterator[ApiServer]:
    with api_server() as server:
        yield server


@pytest.fixture
def server(running: ApiServer) -> ApiServer:
    running.engine.reply = says(" Hello there.")
    running.engine.fail_after = None
    return running


@pytest.fixture
def client(server: ApiServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(server: ApiServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_create_retrieve_and_delete(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="hi", extra_body=ENDS)
    assert answer.output_text == "Hello there." and answer.status == "completed"
    assert client.responses.retrieve(answer.id).output == answer.output
    listed = list(client.responses.input_items.list(answer.id, limit=1))
    assert len(listed) == 1 and listed[0].type == "message" and listed[0].role == "user"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError) as gone:
        client.responses.retrieve(answer.id)
    assert gone.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel(answer.id)


def test_stream_and_its_helper(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model=MODEL, input="hi", stream=True, extra_body=ENDS))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "Hello there."
    assert [event.sequence_number for event in events] == list(range(len(events)))
    with client.responses.stream(model=MODEL, input="hi", extra_body=ENDS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert snapshots[-1] == final.output_text == "Hello there." and final.usage is not None


def test_parse_whole_and_streamed(server: ApiServer, client: openai.OpenAI) -> None:
    server.engine.reply = says(' {"city":"Zürich","degrees":21}')
    expected = Weather(city="Zürich", degrees=21)
    assert (
        client.responses.parse(model=MODEL, input="?", text_format=Weather, extra_body=ENDS).output_parsed == expected
    )
    with client.responses.stream(model=MODEL, input="?", text_format=Weather, extra_body=ENDS) as stream:
        done = [event.parsed for event in stream if event.type == "response.output_text.done"]
        assert done == [expected] and stream.get_final_response().output_parsed == expected
    grammar = server.engine.submitted[-1].sampling.grammar
    assert grammar is not None and '"degrees"' in grammar


def test_a_tool_loop(server: ApiServer, client: openai.OpenAI) -> None:
    tools: Any = TOOLS
    server.engine.reply = says(ONE)
    with client.responses.stream(model=MODEL, input="Weather?", tools=tools, extra_body=ENDS) as stream:
        deltas = [event.snapshot for event in stream if event.type == "response.function_call_arguments.delta"]
        first = stream.get_final_response()
    call = first.output[0]
    assert call.type == "function_call" and deltas[-1] == call.arguments
    assert json.loads(call.arguments) == {"city": "Zürich"}
    server.engine.reply = says(" Sunny.")
    output: Any = [{"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}]
    second = client.responses.create(
        model=MODEL, input=output, tools=tools, previous_response_id=first.id, extra_body=ENDS
    )
    assert second.output_text == "Sunny."
    prompt = bytes(server.engine.submitted[-1].prompt_ids).decode()
    assert 'Assistant: ```json\n{"name":"get_weather"' in prompt and "Function output:\n21 degrees" in prompt
    resent: Any = [{"role": "user", "content": "Weather?"}, *(item.to_dict() for item in first.output), *output]
    client.responses.create(model=MODEL, input=resent, tools=tools, store=False, extra_body=ENDS)
    assert bytes(server.engine.submitted[-1].prompt_ids).decode() == prompt


def test_conversations(client: openai.OpenAI) -> None:
    conversation = client.conversations.create(metadata={"topic": "birds"})
    for text in ("One?", "Two?"):
        client.responses.create(model=MODEL, input=text, conversation=conversation.id, extra_body=ENDS)
    items = list(client.conversations.items.list(conversation.id, order="asc", limit=3))
    assert [item.type for item in items] == ["message"] * 4
    assert client.conversations.update(conversation.id, metadata={}).metadata == {}
    assert client.conversations.delete(conversation.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.conversations.retrieve(conversation.id)


def test_errors_are_the_client_s_own(server: ApiServer, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as wrong:
        client.responses.create(model=MODEL, input="hi", background=True)
    assert wrong.value.param == "background" and wrong.value.code == "unsupported_parameter"
    server.engine.fail_after = 1
    with pytest.raises(openai.InternalServerError):
        client.responses.create(model=MODEL, input="hi")
    events = list(client.responses.create(model=MODEL, input="hi", stream=True))
    assert events[-1].type == "response.failed" and events[-1].response.error is not None


async def test_many_at_once(async_client: openai.AsyncOpenAI) -> None:
    async def one(number: int) -> str:
        if number % 3 == 0:
            answer = await async_client.responses.create(model=MODEL, input="hi", extra_body=ENDS)
            return answer.output_text
        if number % 3 == 1:
            stream = await async_client.responses.create(model=MODEL, input="hi", stream=True, extra_body=ENDS)
            return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
        async with async_client.responses.stream(model=MODEL, input="hi", extra_body=ENDS) as helper:
            return (await helper.get_final_response()).output_text

    assert await asyncio.gather(*map(one, range(12))) == ["Hello there."] * 12


async def test_a_stream_left_early_leaves_nothing(server: ApiServer, async_client: openai.AsyncOpenAI) -> None:
    server.engine.reply = lambda request, choice: b" x" * 20_000
    conversation = await async_client.conversations.create()
    stream = await async_client.responses.create(model=MODEL, input="hi", conversation=conversation.id, stream=True)
    async for event in stream:
        if event.type == "response.created":
            id = event.response.id
        if event.type == "response.output_text.delta":
            break
    await stream.close()
    deadline = asyncio.get_running_loop().time() + 20
    while f"{id}-0" not in {request for request, _ in server.engine.cancelled}:
        assert asyncio.get_running_loop().time() < deadline, "it was never cancelled"
        await asyncio.sleep(0.01)
    with pytest.raises(openai.NotFoundError):
        while asyncio.get_running_loop().time() < deadline:  # until the stream's task has ended
            assert (await async_client.responses.retrieve(id)).status == "in_progress"
    server.engine.reply = says(" Yes.")
    answer = await async_client.responses.create(
        model=MODEL, input="Two?", conversation=conversation.id, extra_body=ENDS
    )
    assert answer.output_text == "Yes."
    assert bytes(server.engine.submitted[-1].prompt_ids).decode() == "User: Two?\n\nAssistant:"
