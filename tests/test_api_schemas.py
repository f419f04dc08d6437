"""What a body may hold: strict types, ranges, and fields that are refused or ignored; in front of the engine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from .api_server import MODEL, Api, api_in_process

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

WRONG: list[tuple[str, Any]] = [
    ("n", 0), ("n", 129), ("n", 1.5), ("n", "2"), ("n", True),
    ("temperature", -0.1), ("temperature", 2.1), ("temperature", "hot"), ("temperature", True),
    ("top_p", 1.1), ("top_p", -1), ("top_k", -2), ("top_k", 1.0), ("min_p", 2), ("typical_p", 0),
    ("presence_penalty", 2.5), ("frequency_penalty", -2.5), ("repetition_penalty", 0), ("penalty_decay", 1.5),
    ("sampling_order", "random"), ("seed", 2**63), ("seed", 1.5), ("max_tokens", -1), ("max_tokens", "5"),
    ("max_tokens", 10**6), ("min_tokens", -1), ("stop", ""), ("stop", ["a"] * 17), ("stop", [1]), ("stop", {}),
    ("stop", "x" * 513), ("stop_token_ids", [-1]), ("stop_token_ids", [256]), ("stop_token_ids", "0"),
    ("logit_bias", {"a": 1}), ("logit_bias", {"1": 101}), ("logit_bias", {"256": 1}), ("logit_bias", {"-1": 1}),
    ("logit_bias", [1]), ("stream", 1), ("stream", "true"), ("stream_options", {"include_usage": True}),
    ("ignore_eos", "yes"), ("state", "nope"), ("session_id", "../s1"), ("grammar", ""), ("regex", 5),
    ("user", 5), ("return_token_ids", 1), ("response_format", {"type": "xml"}),
    ("response_format", {"type": "json_schema"}), ("guided_json", {"type": "integer"}), ("guided_regex", "a"),
    ("guided_choice", ["a"]), ("structured_outputs", {"regex": "a"}), ("json_schema", {"type": "integer"}),
    ("ebnf", "a"), ("allowed_token_ids", [1]), ("bad_words", ["a"]), ("use_beam_search", True),
]  # fmt: skip
WRONG_CHAT: list[tuple[str, Any]] = [
    ("messages", []), ("messages", "hi"), ("messages", None), ("messages", [{"role": "wizard", "content": "a"}]),
    ("messages", [{"content": "a"}]), ("messages", [{"role": "user", "content": 5}]), ("messages", [5]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://a"}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("logprobs", 1), ("top_logprobs", 3), ("max_tokens", 0), ("max_completion_tokens", 0),
    ("modalities", ["text", "audio"]), ("audio", {"voice": "x", "format": "wav"}),
    ("prediction", {"type": "content", "content": "x"}), ("functions", [{"name": "f"}]),
    ("tool_choice", {"type": "allowed_tools", "allowed_tools": {}}),
    ("web_search_options", {"x": 1}),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]),
    ("reasoning_effort", "extreme"), ("continue_final_message", True), ("chat_template_kwargs", []),
]  # fmt: skip
WRONG_TEXT: list[tuple[str, Any]] = [
    ("prompt", []), ("prompt", [[]]), ("prompt", 5), ("prompt", {}), ("prompt", [1, "a"]), ("prompt", ["a", 1]),
    ("prompt", [256]), ("prompt", [-1]), ("prompt", [1.0]), ("prompt", [True]), ("prompt", ["a"] * 257),
    ("logprobs", 21), ("logprobs", -1), ("logprobs", True), ("best_of", 0), ("best_of", 129), ("suffix", "end"),
]  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        *((path, field, value) for path in (CHAT, TEXT) for field, value in WRONG),
        *((CHAT, field, value) for field, value in WRONG_CHAT),
        *((TEXT, field, value) for field, value in WRONG_TEXT),
    ],
)
async def test_a_wrong_value_is_refused_and_named(api: Api, path: str, field: str, value: object) -> None:
    good: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
    before = len(api.engine.submitted)
    error = await api.refused(path, **{**good, field: value})
    assert str(error["param"]).split(".")[0] == field and error["type"] == "invalid_request_error"
    assert len(api.engine.submitted) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (TEXT, {"n": 3, "best_of": 2}, "best_of"),
        (TEXT, {"best_of": 2, "stream": True}, "best_of"),
        (TEXT, {"grammar": "start: /a/", "regex": "a"}, "regex"),
        (TEXT, {"response_format": {"type": "json_object"}, "grammar": "start: /a/"}, "response_format"),
        (TEXT, {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        (CHAT, {"response_format": {"type": "json_object"}, "regex": "a"}, "response_format"),
        (CHAT, {"tool_choice": "required"}, "tool_choice"),
    ],
)
async def test_values_that_contradict_each_other(api: Api, path: str, fields: dict[str, Any], param: str) -> None:
    good: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
    assert (await api.refused(path, **good, **fields))["param"] == param


@pytest.mark.asyncio(loop_scope="module")
async def test_what_says_nothing_is_accepted(api: Api) -> None:
    harmless: tuple[dict[str, Any], ...] = (
        {"novelty_of_next_year": 1, "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"stop": None, "n": None, "temperature": None, "tools": None, "logit_bias": None, "stream_options": None},
        {"stop": [], "logit_bias": {}, "tools": [], "functions": [], "suffix": "", "tool_choice": "none"},
        {
            "response_format": {"type": "text"},
            "regex": None,
            "guided_json": None,
            "bad_words": [],
            "use_beam_search": False,
        },
        {"cache": False, "top_k": -1, "user": "u", "parallel_tool_calls": True, "modalities": ["text"]},
    )
    for fields in harmless:
        await api.chat(**fields)
        await api.complete(**fields)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_missing_field_is_named(api: Api) -> None:
    answer = await api.client.post(CHAT, json={"model": MODEL})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "messages"
    for path, good in ((CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "hi"})):
        answer = await api.client.post(path, json=good)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == "model"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_giant_list_of_wrong_tokens_costs_one_error(api: Api) -> None:
    answer = await api.client.post(TEXT, json={"model": MODEL, "prompt": [0.5] * 200_000})
    assert answer.status_code == 400 and len(answer.content) < 500


@pytest.mark.asyncio(loop_scope="module")
async def test_faults_are_said_in_the_words_of_json(api: Api) -> None:
    said = {
        (CHAT, "messages"): ([5], "messages.0: must be an object"),
        (CHAT, "tools"): ({}, "tools: must be an array"),
        (TEXT, "logit_bias"): ([1], "logit_bias: must be an object"),
        (TEXT, "prompt"): ([], "prompt: must not be empty"),
        (TEXT, "stop"): ("", "stop: must not be empty"),
        (TEXT, "guided_json"): ({"a": 1}, "guided_json is not a field of this server; use response_format"),
    }
    for (path, field), (value, message) in said.items():
        good: dict[str, Any] = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
        assert (await api.refused(path, **{**good, field: value}))["message"] == message
    nothing = await api.client.post(TEXT)
    assert nothing.status_code == 400 and nothing.json()["error"]["message"] == "the request has no body"
