"""POST /v1/completions over the fake engine: shapes, echo and scoring, stop strings, batches, best_of."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai.types import Completion

from rookery.server.config import Config
from rookery.server.engine.request import Request
from rookery.server.errors import EngineError, NotReady, QueueFull

from .api_server import END, MODEL, Api, api_in_process, chunks_of, says

PATH = "/v1/completions"


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    async with api_in_process() as api:
        yield api


async def test_answer_has_openai_s_shape(api: Api) -> None:
    api.engine.reply = says("Hello.")
    body = await api.complete(max_tokens=20)
    parsed = Completion.model_validate(body, strict=True)
    assert parsed.object == "text_completion" and parsed.id.startswith("cmpl-") and parsed.model == MODEL
    assert parsed.system_fingerprint and parsed.created > 1_600_000_000
    assert [choice.text for choice in parsed.choices] == ["Hello."]
    assert parsed.choices[0].finish_reason == "stop" and parsed.choices[0].logprobs is None
    assert parsed.usage is not None and parsed.usage.prompt_tokens == 2
    assert parsed.usage.completion_tokens == len("Hello.") + 1 and parsed.usage.total_tokens == 9


async def test_sixteen_tokens_are_the_default(api: Api) -> None:
    api.engine.reply = says("x" * 100)
    body = await api.complete()
    assert body["choices"][0]["text"] == "x" * 16 and body["choices"][0]["finish_reason"] == "length"


async def test_scoring_with_echo_lists_every_prompt_token_and_the_first_is_null(api: Api) -> None:
    body = await api.complete("abc", max_tokens=0, echo=True, logprobs=1)
    choice = body["choices"][0]
    assert choice["text"] == "abc" and choice["finish_reason"] == "length"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0, -1.0]
    assert choice["logprobs"]["top_logprobs"] == [None, {"b": -1.0}, {"c": -1.0}]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert body["usage"]["completion_tokens"] == 0
    assert api.engine.submitted[-1].sampling.max_tokens == 0


async def test_echo_with_logprobs_lists_prompt_completion_and_the_end_token(api: Api) -> None:
    api.engine.reply = says("de")
    choice = (await api.complete("abc", echo=True, logprobs=0))["choices"][0]
    assert choice["text"] == "abcde"
    assert choice["logprobs"]["tokens"] == ["a", "b", "c", "d", "e", "\0"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 5]
    assert len(choice["logprobs"]["token_logprobs"]) == 6 and choice["logprobs"]["token_logprobs"][0] is None


async def test_the_chosen_token_is_among_the_top_logprobs(api: Api) -> None:
    api.engine.reply = says("z")
    choice = (await api.complete(logprobs=2))["choices"][0]
    assert choice["logprobs"]["top_logprobs"][0] == {"\0": -1.0, "\x01": -2.0, "z": -0.5}


async def test_tokens_that_are_parts_of_a_character_keep_their_own_names(api: Api) -> None:
    api.engine.reply = says("a€b")
    choice = (await api.complete(logprobs=0))["choices"][0]
    tokens = ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b", "\0"]
    assert choice["text"] == "a€b" and choice["logprobs"]["tokens"] == tokens
    assert choice["logprobs"]["text_offset"] == [0, 1, 1, 1, 2, 3]


async def test_echo_comes_first_in_a_stream_too(api: Api) -> None:
    api.engine.reply = says("de")
    chunks = await api.stream(PATH, prompt="abc", echo=True, logprobs=0)
    assert chunks[0]["choices"][0]["text"] == "abcd"
    assert _gathered(chunks) == _plain(await api.complete("abc", echo=True, logprobs=0))


async def test_a_batch_is_answered_in_order_with_usage_over_all(api: Api) -> None:
    api.engine.reply = lambda request, choice: [*request.prompt_ids, ord("0") + choice, END]
    body = await api.complete(["ab", "c", "def"], n=2)
    assert [choice["text"] for choice in body["choices"]] == ["ab0", "ab1", "c0", "c1", "def0", "def1"]
    assert [choice["index"] for choice in body["choices"]] == list(range(6))
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 2 * 6 + 6 * 2
    streamed = _gathered(await api.stream(PATH, prompt=["ab", "c", "def"], n=2))
    assert streamed == _plain(body)


@pytest.mark.parametrize(
    ("prompt", "ids"),
    [
        ("ab", [(97, 98)]),
        ("", [(0,)]),
        (None, [(0,)]),
        (["a", "b"], [(97,), (98,)]),
        ([97, 98], [(97, 98)]),
        ([[97], [98, 99]], [(97,), (98, 99)]),
    ],
)
async def test_every_shape_of_prompt(api: Api, prompt: object, ids: list[tuple[int, ...]]) -> None:
    await api.complete(prompt)
    assert [request.prompt_ids for request in api.engine.submitted] == ids


async def test_token_ids_are_returned_when_asked_for(api: Api) -> None:
    api.engine.reply = says("yo")
    body = await api.complete([104, 105], return_token_ids=True)
    assert body["choices"][0]["prompt_token_ids"] == [104, 105]
    assert body["choices"][0]["token_ids"] == [*b"yo", END]
    chunks = await api.stream(PATH, prompt=[104, 105], return_token_ids=True)
    assert chunks[0]["choices"][0]["prompt_token_ids"] == [104, 105]
    assert [id for chunk in chunks for id in chunk["choices"][0]["token_ids"]] == [*b"yo", END]
    assert not any("prompt_token_ids" in chunk["choices"][0] for chunk in chunks[1:])


async def test_best_of_gives_the_likeliest_and_counts_all(api: Api) -> None:
    api.engine.reply = lambda request, choice: [ord("a") + choice] * (choice + 1) + [END]
    body = await api.complete(best_of=3, n=2)
    assert len(body["choices"]) == 2 and [choice["index"] for choice in body["choices"]] == [0, 1]
    assert body["usage"]["completion_tokens"] == 2 + 3 + 4
    assert api.engine.submitted[0].choices == 3 and api.engine.submitted[0].sampling.logprobs == 0
    assert body["choices"][0]["logprobs"] is None


async def test_a_stop_string_ends_the_choice_and_its_work(api: Api) -> None:
    api.engine.reply = says("one two three" + "x" * 500)
    body = await api.complete(stop=[" three", "never"], max_tokens=400, logprobs=0)
    choice = body["choices"][0]
    assert choice["text"] == "one two" and choice["finish_reason"] == "stop"
    assert "".join(choice["logprobs"]["tokens"]) == "one two"
    assert api.engine.cancelled and api.engine.cancelled[0] == (api.engine.submitted[0].id, 0)
    assert body["usage"]["completion_tokens"] == len("one two three")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="ab é€😀", max_size=12),
    stop=st.lists(st.text(alphabet="ab é😀", min_size=1, max_size=3), max_size=3),
    logprobs=st.sampled_from([None, 2]),
    echo=st.booleans(),
    limit=st.integers(0, 40),
)
async def test_streamed_and_whole_answers_are_equal(
    api: Api, text: str, stop: list[str], logprobs: int | None, echo: bool, limit: int
) -> None:
    api.engine.reply = says(text)
    fields: dict[str, Any] = {"prompt": "pé", "stop": stop, "logprobs": logprobs, "echo": echo, "max_tokens": limit}
    fields["stream_options"] = {"include_usage": True}
    chunks = await api.stream(PATH, **fields)
    del fields["stream_options"]
    body = await api.complete(**fields)
    assert _gathered(chunks[:-1]) == _plain(body)
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"] == body["usage"]
    whole = text.encode()[:limit].decode(errors="replace")
    cuts = [whole.find(one) for one in stop if one in whole]
    completion = body["choices"][0]["text"].removeprefix("pé" if echo else "")
    assert whole.startswith(completion) and all(one not in completion for one in stop)
    assert completion == whole if not cuts else len(completion) <= max(cuts)


async def test_usage_comes_only_when_asked_for(api: Api) -> None:
    chunks = await api.stream(PATH, prompt="a")
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)
    chunks = await api.stream(PATH, prompt="a", stream_options={"include_usage": True})
    assert all(chunk["usage"] is None for chunk in chunks[:-1]) and chunks[-1]["choices"] == []
    assert chunks[-2]["choices"][0]["finish_reason"] == "length"


async def test_sampling_parameters_reach_the_engine(api: Api) -> None:
    await api.complete(
        temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, typical_p=0.8, sampling_order="top_p_first",
        presence_penalty=0.4, frequency_penalty=-1, repetition_penalty=1.1, logit_bias={"65": -100, "66": 2.5},
        seed=-3, stop_token_ids=[1, 0], min_tokens=2, max_tokens=9,
    )  # fmt: skip
    got = api.engine.submitted[-1].sampling
    assert (got.temperature, got.top_p, got.top_k, got.min_p, got.typical_p) == (0.5, 0.9, 7, 0.1, 0.8)
    assert got.sampling_order == "top_p_first" and got.penalty_decay == 0.996
    assert (got.presence_penalty, got.frequency_penalty, got.repetition_penalty) == (0.4, -1.0, 1.1)
    assert got.logit_bias == {65: -100.0, 66: 2.5} and got.stop_token_ids == (0, 1)
    assert got.seed == 2**63 - 3 and (got.min_tokens, got.max_tokens, got.token_limit) == (2, 9, 256)
    await api.complete(temperature=None, seed=None, stop=None, n=None, logit_bias=None)
    other = api.engine.submitted[-1].sampling
    assert (other.temperature, other.top_p, other.penalty_decay, other.logit_bias) == (1.0, 1.0, 1.0, {})


async def test_penalties_leave_spaces_and_digits_uncounted_unless_they_never_decay(api: Api) -> None:
    uncounted = tuple(sorted(b" \t0123456789"))
    for fields, expected in (
        ({"frequency_penalty": 0.5}, uncounted),
        ({"presence_penalty": 0.5, "penalty_decay": 0.9}, uncounted),
        ({"frequency_penalty": 0.5, "penalty_decay": 1}, ()),
        ({"repetition_penalty": 1.2}, ()),
    ):
        await api.complete("a", **fields)
        assert api.engine.submitted[-1].sampling.uncounted_ids == expected


async def test_without_a_seed_every_request_has_its_own(api: Api) -> None:
    await api.complete(["a", "a"])
    await api.complete()
    seeds = [request.sampling.seed for request in api.engine.submitted]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**63 for seed in seeds)
    await api.complete(["a", "a"], seed=5)
    assert [request.sampling.seed for request in api.engine.submitted[-2:]] == [5, 5]


async def test_engine_refusals_keep_their_status(api: Api) -> None:
    for refusal in (QueueFull("full", retry_after_s=2), NotReady("loading", retry_after_s=3)):
        api.engine.refusal = refusal
        answer = await api.client.post(PATH, json={"model": MODEL, "prompt": "a", "stream": True})
        assert answer.status_code == refusal.status
        assert answer.headers["retry-after"] == str(refusal.retry_after_s)
        assert answer.json()["error"]["code"] == refusal.code


async def test_a_refused_batch_leaves_nothing_running(api: Api) -> None:
    taken: list[Request] = []
    submit = api.engine.submit

    async def second_is_refused(request: Request) -> Any:
        if taken:
            raise QueueFull("full")
        taken.append(request)
        return await submit(request)

    api.engine.submit = second_is_refused  # type: ignore[method-assign]
    answer = await api.client.post(PATH, json={"model": MODEL, "prompt": ["a", "b"]})
    assert answer.status_code == 429
    assert api.engine.cancelled == [(taken[0].id, None)]


async def test_an_engine_failure_is_a_500_or_an_event_of_the_stream(api: Api) -> None:
    api.engine.fail_after = 2
    answer = await api.client.post(PATH, json={"model": MODEL, "prompt": "a"})
    assert answer.status_code == EngineError.status and answer.json()["error"]["code"] == "engine_error"
    answer = await api.client.post(PATH, json={"model": MODEL, "prompt": "a", "stream": True})
    assert answer.status_code == 200
    events = answer.text.strip().split("\n\n")
    assert len(events) == 3 and '"error":{"message":"the step failed"' in events[-1]
    assert "[DONE]" not in answer.text


async def test_a_request_that_takes_too_long_ends(api: Api) -> None:
    async with api_in_process(config=Config(served_model_name=(MODEL,), request_timeout=0.05)) as slow:
        slow.engine.gate.clear()
        answer = await slow.client.post(PATH, json={"model": MODEL, "prompt": "a"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "timeout"
        answer = await slow.client.post(PATH, json={"model": MODEL, "prompt": ["a", "b"], "stream": True})
        assert answer.status_code == 200 and '"code":"timeout"' in answer.text
        assert len(slow.engine.cancelled) == 3


async def test_prompt_and_completion_limits(api: Api) -> None:
    config = Config(served_model_name=(MODEL,), max_prompt_tokens=8, max_completion_tokens=10)
    async with api_in_process(config=config) as small:
        await small.complete("x" * 8, max_tokens=10)
        for prompt in ("x" * 9, [1] * 9, ["a", "y" * 9], "é" * 5):
            error = await small.refused(PATH, prompt=prompt)
            assert error["code"] == "context_length_exceeded" and error["param"] == "prompt"
        error = await small.refused(PATH, prompt="a", max_tokens=11)
        assert error["param"] == "max_tokens" and "10" in error["message"]
        assert (await small.complete("a"))["choices"][0]["finish_reason"] == "length"
        assert small.engine.submitted[-1].sampling.max_tokens == 10


async def test_stream_headers(api: Api) -> None:
    answer: httpx.Response = await api.client.post(PATH, json={"model": MODEL, "prompt": "a", "stream": True})
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-request-id"] and chunks_of(answer.text)


def _gathered(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream as a whole answer has them."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for part in chunk["choices"]:
            choice = choices.setdefault(
                part["index"], {"index": part["index"], "text": "", "logprobs": None, "finish_reason": None}
            )
            assert choice["finish_reason"] is None, "nothing follows the finish reason"
            choice["text"] += part["text"]
            choice["finish_reason"] = part["finish_reason"]
            for name, values in (part["logprobs"] or {}).items():
                choice["logprobs"] = choice["logprobs"] or {}
                choice["logprobs"].setdefault(name, []).extend(values)
    return [choices[index] for index in sorted(choices)]


def _plain(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {name: choice[name] for name in ("index", "text", "logprobs", "finish_reason")} for choice in body["choices"]
    ]
