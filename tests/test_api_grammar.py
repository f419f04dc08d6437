"""Constrained answers over HTTP: what reaches the engine is a grammar that admits exactly what was asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from llguidance import LLMatcher
from pydantic import BaseModel

from rookery.server.text.grammar import check_grammar
from rookery.server.text.tokenizer import ByteTokenizer, Tokenizer

from .api_server import END, MODEL, Api, api_in_process, says
from .test_api_tools import TOOLS

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = [{"role": "user", "content": "hi"}]


class City(BaseModel):
    """A schema as the official client sends it."""

    name: str
    people: int


SCHEMA = {"type": "json_schema", "json_schema": {"name": "City", "strict": True, "schema": City.model_json_schema()}}


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


def admits(api: Api, reply: str) -> bool:
    """Whether the grammar of the last request lets the model say exactly this."""
    grammar = api.engine.submitted[-1].sampling.grammar
    assert grammar is not None
    matcher = LLMatcher(ByteTokenizer().llguidance, grammar, log_level=0)
    return bool(matcher.consume_tokens(list(reply.encode()))) and bool(matcher.is_accepting())


async def test_a_schema_is_enforced(api: Api) -> None:
    api.engine.reply = says(' {"name":"Bern","people":7}')
    body = await api.chat(response_format=SCHEMA)
    assert City.model_validate_json(body["choices"][0]["message"]["content"]).name == "Bern"
    assert admits(api, ' {"name":"Bern","people":7}')
    assert not admits(api, ' {"name":"Bern"}') and not admits(api, ' {"name":1,"people":7}')


async def test_any_object_a_regex_and_a_grammar(api: Api) -> None:
    await api.chat(response_format={"type": "json_object"})
    assert admits(api, ' {"a":[1]}') and not admits(api, " [1]")
    await api.chat(regex="[ab]{2}")
    assert admits(api, " ab") and not admits(api, " abc")
    await api.complete(regex="[ab]{2}")
    assert admits(api, "ab") and not admits(api, " ab")
    await api.complete(response_format=SCHEMA)
    assert admits(api, '{"name":"Bern","people":7}') and not admits(api, ' {"name":"Bern","people":7}')
    await api.complete(grammar='start: "yes" | "no"')
    assert admits(api, "yes") and not admits(api, "maybe")
    await api.chat(response_format={"type": "text"})
    assert api.engine.submitted[-1].sampling.grammar is None


async def test_a_demanded_tool_call_is_enforced(api: Api) -> None:
    call = '\n{"name":"get_time","arguments":{"city":"B"}}\n```'
    api.engine.reply = says(call)
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    for choice in ("required", named):
        body = await api.chat(tools=TOOLS, tool_choice=choice)
        answer = body["choices"][0]
        assert answer["finish_reason"] == "tool_calls"
        assert json.loads(answer["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "B"}
        assert admits(api, call) and not admits(api, "\nI would rather not.")
    assert not admits(api, call.replace("get_time", "get_weather"))
    await api.chat(tools=TOOLS)
    assert api.engine.submitted[-1].sampling.grammar is None


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (TEXT, {"regex": "("}, "regex"),
        (TEXT, {"regex": "(?=a)b"}, "regex"),
        (TEXT, {"grammar": "start: missing"}, "grammar"),
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}},
            "response_format",
        ),
        (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"if": {}}}}]}, "tools"),
    ],
)
async def test_what_cannot_be_enforced_is_refused(api: Api, path: str, fields: dict[str, Any], param: str) -> None:
    good: dict[str, Any] = {"messages": USER} if path == CHAT else {"prompt": "hi"}
    error = await api.refused(path, **good, **fields)
    assert error["param"].startswith(param) and len(error["message"]) < 1000
    assert not api.engine.submitted


async def test_faults_are_told_without_what_was_made_of_them(api: Api) -> None:
    dangling = {"type": "object", "properties": {"a": {"$ref": "#/nope"}}}
    function = {"name": "f", "parameters": dangling}
    overlapping = {"oneOf": [{"type": "integer"}, {"type": "number"}]}
    for fields, reason in (
        (
            {"regex": "("},
            'regex cannot be enforced: invalid regex "(" (in regex): regex parse error: ( ^ error: unclosed',
        ),
        (
            {"tools": [{"type": "function", "function": function}], "tool_choice": "required"},
            "tools cannot be enforced: Pointer '/nope' does not exist",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": overlapping}}},
            "response_format cannot be enforced: alternatives of oneOf that may overlap; use anyOf",
        ),
        ({"grammar": "start: nope"}, 'grammar cannot be enforced: at 1(8): unknown name: "nope" 1 | start: nope ^'),
    ):
        message = (await api.refused(CHAT, messages=USER, **fields))["message"]
        assert message.startswith(reason) and len(message) <= len(reason) + len(" group")


async def test_the_same_grammar_is_compiled_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from rookery.server import answer_grammar

    compiled: list[str] = []
    monkeypatch.setattr(answer_grammar, "check_grammar", lambda tokenizer, grammar, *, param: compiled.append(grammar))
    for _ in range(3):
        await api.complete(regex="a+")
    await api.complete(regex="b+")
    assert len(compiled) == 2


async def test_a_grammar_that_is_given_up_costs_its_work_once(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    from rookery.server import answer_grammar

    compiled: list[str] = []

    def compile_(tokenizer: Tokenizer, grammar: str, *, param: str) -> None:
        compiled.append(grammar)
        check_grammar(tokenizer, grammar, param=param)

    monkeypatch.setattr(answer_grammar, "check_grammar", compile_)
    first, again = [await api.refused(TEXT, prompt="hi", regex="(") for _ in range(2)]
    assert first == again and first["param"] == "regex"
    assert len(compiled) == 1


async def test_constrained_streams_equal_whole_answers(api: Api) -> None:
    reply = ' {"name":"Bern","people":7}'
    api.engine.reply = says(reply)
    answer = await api.client.post(
        CHAT, json={"model": MODEL, "messages": USER, "stop_token_ids": [END], "response_format": SCHEMA}
    )
    chunks = await api.stream(CHAT, messages=USER, response_format=SCHEMA)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == answer.json()["choices"][0]["message"]["content"] == reply[1:]
