"""POST /v1/chat/completions over the fake engine: shapes, roles, reasoning, stop strings, log-probabilities."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from rookery.server.config import Config

from .api_server import END, MODEL, Api, api_in_process, says
from .fake_engine import BYTE_MODEL, FakeEngine

PATH = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


@pytest.fixture
async def thinker() -> AsyncIterator[Api]:
    """A model whose template knows thinking."""
    async with api_in_process(config=Config(served_model_name=(MODEL,), chat_template="g1")) as api:
        yield api


def prompt_of(api: Api) -> str:
    return bytes(api.engine.submitted[-1].prompt_ids).decode()


async def test_answer_has_openai_s_shape(api: Api) -> None:
    api.engine.reply = says(" Hello.")
    body = await api.chat("hi")
    parsed = ChatCompletion.model_validate(body, strict=True)
    assert parsed.id.startswith("chatcmpl-") and parsed.object == "chat.completion"
    choice = parsed.choices[0]
    assert choice.message.role == "assistant" and choice.message.content == "Hello."
    assert choice.message.tool_calls is None and choice.message.refusal is None
    assert choice.finish_reason == "stop" and choice.logprobs is None
    assert parsed.usage is not None and parsed.usage.prompt_tokens == len(prompt_of(api))
    assert parsed.usage.completion_tokens == len(" Hello.") + 1
    assert parsed.usage.prompt_tokens_details is not None and parsed.usage.completion_tokens_details is not None


async def test_chunks_have_openai_s_shape(api: Api) -> None:
    api.engine.reply = says(" Hé.")
    chunks = await api.stream(PATH, messages=USER, stream_options={"include_usage": True})
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    assert len({chunk.id for chunk in parsed}) == 1 and all(chunk.object == "chat.completion.chunk" for chunk in parsed)
    deltas = [chunk.choices[0].delta for chunk in parsed[:-1]]
    assert deltas[0].role == "assistant" and all(delta.role is None for delta in deltas[1:])
    assert [delta.content for delta in deltas] == ["", "H", "é", ".", None]
    reasons = [chunk.choices[0].finish_reason for chunk in parsed[:-1]]
    assert reasons == [None] * 4 + ["stop"]
    assert parsed[-1].choices == [] and parsed[-1].usage is not None and parsed[-1].usage.completion_tokens == 6


async def test_every_role_and_kind_of_content_reaches_the_prompt(api: Api) -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "name": "Al"},
        {"role": "assistant", "content": None},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "three"},
    ]
    answer = await api.client.post(PATH, json={"model": MODEL, "messages": messages})
    assert answer.status_code == 200, answer.text
    prompt = prompt_of(api)
    for text in ("Be brief.", "one two", "no", "three"):
        assert text in prompt
    assert prompt.endswith("Assistant:")


async def test_the_model_s_turn_ends_where_it_speaks_for_the_user(api: Api) -> None:
    api.engine.reply = says(" Fine.\n\nUser: and you?" + "x" * 200)
    body = await api.chat()
    assert body["choices"][0]["message"]["content"] == "Fine." and body["choices"][0]["finish_reason"] == "stop"
    assert api.engine.cancelled
    body = await api.chat(ignore_eos=True, max_tokens=22)
    assert body["choices"][0]["message"]["content"] == "Fine.\n\nUser: and you?"[:21]


async def test_the_separator_of_turns_is_not_part_of_a_reply(api: Api) -> None:
    api.engine.reply = says(" One.\n\nTwo.\n\n")
    whole = await api.chat("hi", logprobs=True)
    assert whole["choices"][0]["message"]["content"] == "One.\n\nTwo."
    assert "".join(entry["token"] for entry in whole["choices"][0]["logprobs"]["content"]) == " One.\n\nTwo."
    chunks = await api.stream(PATH, messages=USER)
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == "One.\n\nTwo."


async def test_a_reply_cut_by_its_length_keeps_its_newlines(api: Api) -> None:
    api.engine.reply = says(" One.\n\nTwo.")
    whole = await api.chat("hi", max_tokens=len(" One.\n\n"))
    assert whole["choices"][0]["message"]["content"] == "One.\n\n"


@pytest.mark.parametrize(
    ("limit", "content"), [("\n\nUse", "One.\n\nUse"), ("\n\nUser", "One."), ("\n\nUser:", "One.")]
)
async def test_a_heading_cut_off_before_its_colon_is_not_shown(api: Api, limit: str, content: str) -> None:
    api.engine.reply = says(" One.\n\nUser: Two?")
    most = len(f" One.{limit}")
    choice = (await api.chat("hi", max_tokens=most))["choices"][0]
    assert choice["message"]["content"] == content
    assert choice["finish_reason"] == ("stop" if limit.endswith(":") else "length")
    assert "".join(_content(await api.stream(PATH, messages=USER, max_tokens=most))) == content


async def test_stop_strings_of_the_client_do_not_leak(api: Api) -> None:
    api.engine.reply = says(" abcSTOPdef")
    for stop in ("STOP", ["x", "STOP"]):
        assert (await api.chat(stop=stop))["choices"][0]["message"]["content"] == "abc"
        chunks = await api.stream(PATH, messages=USER, stop=stop)
        assert "".join(_content(chunks)) == "abc"
    assert (await api.chat(stop="STOPS"))["choices"][0]["message"]["content"] == "abcSTOPdef"
    api.engine.reply = says(" abcSTO")
    assert (await api.chat(stop="STOP"))["choices"][0]["message"]["content"] == "abcSTO"


async def test_choices_are_separate(api: Api) -> None:
    api.engine.reply = lambda request, choice: [*b" x" * (choice + 1), END]
    body = await api.chat(n=3)
    assert [choice["message"]["content"] for choice in body["choices"]] == ["x", "x x", "x x x"]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 3 + 5 + 7
    assert body["usage"]["prompt_tokens"] == len(prompt_of(api))
    chunks = await api.stream(PATH, messages=USER, n=3)
    roles = [c["choices"][0]["index"] for c in chunks if "role" in c["choices"][0]["delta"]]
    ends = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(roles) == sorted(ends) == [0, 1, 2]


async def test_logprobs_belong_to_the_content(api: Api) -> None:
    api.engine.reply = says("h€y!")
    choice = (await api.chat(logprobs=True, top_logprobs=2, stop="!"))["choices"][0]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == choice["message"]["content"] == "h€y"
    assert entries[0] == {
        "token": "h",
        "logprob": -0.5,
        "bytes": [104],
        "top_logprobs": [
            {"token": "\0", "logprob": -1.0, "bytes": [0]},
            {"token": "\x01", "logprob": -2.0, "bytes": [1]},
        ],
    }
    none = (await api.chat(logprobs=True))["choices"][0]["logprobs"]["content"][0]
    assert none["top_logprobs"] == []
    assert api.engine.submitted[-1].sampling.logprobs == 0


async def test_limits_of_the_completion(api: Api) -> None:
    api.engine.reply = says("x" * 100)
    for field in ("max_tokens", "max_completion_tokens"):
        body = await api.chat(**{field: 7})
        assert len(body["choices"][0]["message"]["content"]) == 7 and body["choices"][0]["finish_reason"] == "length"
    await api.chat()
    assert api.engine.submitted[-1].sampling.max_tokens == Config().max_completion_tokens


async def test_a_final_assistant_message_can_be_continued(api: Api) -> None:
    api.engine.reply = says(" world.")
    body = await api.chat("hi", "Hello", continue_final_message=True)
    assert prompt_of(api).endswith("Assistant: Hello")
    assert body["choices"][0]["message"]["content"] == " world."


async def test_reasoning_is_apart_from_content(thinker: Api) -> None:
    thinker.engine.reply = says(">Two\n\nUser: and two.</think>\n\nFour.\n\nUser: x" + "y" * 99)
    body = await thinker.chat("2+2?", reasoning_effort="high")
    assert prompt_of(thinker).endswith("<think")
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == "Two\n\nUser: and two." and message["content"] == "Four."
    details = body["usage"]["completion_tokens_details"]
    assert details["reasoning_tokens"] == len(">Two\n\nUser: and two.</think>")
    chunks = await thinker.stream(PATH, messages=USER, reasoning_effort="high")
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == message["reasoning_content"]
    assert "".join(_content(chunks)) == message["content"]


async def test_without_reasoning_the_closed_tag_does_not_show(thinker: Api) -> None:
    thinker.engine.reply = says(">\nFour.")
    body = await thinker.chat("2+2?", reasoning_effort="none")
    assert prompt_of(thinker).endswith("</think")
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Four.", "refusal": None}
    assert body["usage"]["completion_tokens_details"]["reasoning_tokens"] == 0


async def test_reasoning_that_is_cut_short_is_not_lost(thinker: Api) -> None:
    thinker.engine.reply = says(">so far")
    body = await thinker.chat("2+2?", reasoning_effort="low", max_tokens=5)
    message = body["choices"][0]["message"]
    assert message["reasoning_content"] == "so f" and message["content"] == ""
    assert body["choices"][0]["finish_reason"] == "length"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(
        st.sampled_from([">", "</think>", "<think>", " ", "\n\n", "User:", "a", "é", "😀", "STOP", "ST", "</thi"]),
        max_size=8,
    ),
    effort=st.sampled_from(["none", "high"]),
    limit=st.integers(1, 60),
    logprobs=st.booleans(),
)
async def test_streamed_and_whole_answers_are_equal(
    thinker: Api, pieces: list[str], effort: str, limit: int, logprobs: bool
) -> None:
    thinker.engine.reply = says("".join(pieces))
    fields: dict[str, Any] = {
        "messages": USER, "stop": "STOP", "reasoning_effort": effort, "max_tokens": limit,
        "logprobs": logprobs, "top_logprobs": 1 if logprobs else None,
    }  # fmt: skip
    chunks = await thinker.stream(PATH, **fields, stream_options={"include_usage": True})
    answer = await thinker.client.post(PATH, json={"model": MODEL, "stop_token_ids": [END], **fields})
    body = answer.json()
    choice, deltas = body["choices"][0], [chunk["choices"][0]["delta"] for chunk in chunks[:-1]]
    assert "".join(_content(chunks[:-1])) == choice["message"]["content"]
    thought = "".join(delta.get("reasoning_content", "") for delta in deltas)
    assert thought == choice["message"].get("reasoning_content", "")
    assert chunks[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
    assert chunks[-1]["usage"] == body["usage"]
    listed = [entry for c in chunks[:-1] for entry in (c["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert listed == (choice["logprobs"]["content"] if logprobs else [])
    assert "STOP" not in choice["message"]["content"]


async def test_tuned_states_are_models_of_their_own() -> None:
    info = dataclasses.replace(BYTE_MODEL, tuned_states=("poet",))
    config = Config(served_model_name=(MODEL, "alias"))
    async with api_in_process(FakeEngine(info=info, config=config), config) as api:
        for fields, state in (
            ({}, None),
            ({"model": "alias"}, None),
            ({"model": f"{MODEL}:poet"}, "poet"),
            ({"state": "poet"}, "poet"),
            ({"model": "alias:poet", "state": "poet"}, "poet"),
        ):
            body = await api.chat(**fields)
            assert api.engine.submitted[-1].tuned_state == state
            assert body["model"] == fields.get("model", MODEL)
        answer = await api.client.post(PATH, json={"model": "tiny:bard", "messages": USER})
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "model_not_found"
        assert (await api.refused(PATH, messages=USER, state="bard"))["param"] == "state"


async def test_long_chats_are_refused_by_length() -> None:
    async with api_in_process(config=Config(served_model_name=(MODEL,), max_prompt_tokens=100)) as api:
        error = await api.refused(PATH, messages=[{"role": "user", "content": "x" * 101}])
        assert error["code"] == "context_length_exceeded" and error["param"] == "messages"
        error = await api.refused(PATH, messages=[{"role": "user", "content": "x" * 95}])
        assert error["code"] == "context_length_exceeded"


async def test_an_engine_failure_ends_the_stream_with_an_error(api: Api) -> None:
    api.engine.fail_after = 1
    answer = await api.client.post(PATH, json={"model": MODEL, "messages": USER, "stream": True})
    assert answer.status_code == 200 and "[DONE]" not in answer.text
    assert answer.text.strip().split("\n\n")[-1].startswith('data: {"error":{"message":"the step failed"')


def _content(chunks: list[dict[str, Any]]) -> list[str]:
    return [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]


async def test_a_grammar_that_fails_midway_is_the_request_s_fault(api: Api) -> None:
    api.engine.fail_after, api.engine.fault = 1, "refused"
    body = {"model": MODEL, "messages": USER, "response_format": {"type": "json_object"}}
    answer = await api.client.post(PATH, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == (
        "invalid_request_error", "response_format", "unsupported_grammar"
    )  # fmt: skip
    streamed = await api.client.post(PATH, json={**body, "stream": True})
    last = streamed.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: ")) == {"error": error}
