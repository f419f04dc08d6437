"""Requests that are wrong in one way each; the right answer to all of them is a 4xx in OpenAI's error envelope."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
GENERATING = (CHAT, COMPLETIONS, RESPONSES)
JSON = {"content-type": "application/json"}

NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
}
"""Fields with a least and a greatest value."""
COUNTS = ("n", "max_tokens", "min_tokens", "seed")
FLAGS = ("stream", "ignore_eos", "return_token_ids")
HUGE = 10**30
DEEP = b"[" * 100_000


@dataclass(frozen=True)
class Hostile:
    """One request. `param` is what the error must name, where that is known."""

    name: str
    path: str
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: dict(JSON))
    method: str = "POST"
    param: str | None = None


def base(path: str, model: str) -> dict[str, Any]:
    """A good body for a generating route."""
    if path == RESPONSES:
        return {"model": model, "max_output_tokens": 1, "input": "hi"}
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if path == CHAT else {"prompt": "hi"}
    return {"model": model, "max_tokens": 1, **prompt}


def hostile_requests(model: str) -> list[Hostile]:
    """All of them, each different from the others."""
    return [*_fields(model), *_bodies(model), *_texts(model), *_routes(model)]


def _fields(model: str) -> Iterator[Hostile]:
    """A good body with one bad value in one field."""
    bad: dict[str, list[Any]] = {
        "model": [None, "", 1, True, [], {}, ["a"], "no-such", "a" * 100_000, "../../etc/passwd"]
    }
    for name, (least, greatest) in NUMBERS.items():
        bad[name] = [least - 0.1, greatest + 0.1, -HUGE, HUGE, "1", "", [], [1], {}, {"a": 1}, True, "NaN"]
    for name in COUNTS:
        bad[name] = [1.5, "1", "", [], [1], {}, {"a": 1}, True, HUGE, -HUGE, 10**20]
    for name in ("n", "max_tokens", "min_tokens"):
        bad[name] += [-1, -(2**63), 2**63]
    bad["n"] += [0, 129, 10**6]
    for name in FLAGS:
        bad[name] = ["true", "", 1, 0, 2, 0.5, [], {}, [True]]
    bad["top_k"] = [-2, 1.5, "1", [], {}, HUGE, True]
    bad["repetition_penalty"] = [0, -1, 11, HUGE, "1", [], {}, True]
    bad["stop"] = [1, True, {}, {"a": "b"}, "", [""], [1], [None], ["a", 1], ["x"] * 17, [["a"]], "a" * 100_000]
    bad["logit_bias"] = [1, "a", [], [1], True, {"a": 1}, {"-1": 1}, {"1": "1"}, {"1": 101}, {"1": -101},
                         {"1": None}, {"1": [1]}, {"1": {}}, {"99999999": 1}, {"1.5": 1},
                         {str(i): 1 for i in range(2000)}]  # fmt: skip
    bad["stop_token_ids"] = [1, "1", {}, [-1], ["1"], [1.5], [None], [[1]], [2**40], [99_999_999], [0] * 1000]
    bad["stream_options"] = [1, "a", [], True, {"include_usage": True}, {"include_usage": "yes"}]
    bad["sampling_order"] = ["", "random", 1, [], {}]
    bad["user"] = [1, [], {}, True, "a" * 5000]
    bad["state"] = [1, [], {}, True, "nobody", "../../etc/passwd", "a" * 1000]
    for path in GENERATING:
        for name, values in bad.items():
            if path == RESPONSES and name in ("n", "max_tokens", "return_token_ids"):
                continue
            for number, value in enumerate(values):
                body = base(path, model) | {name: value}
                yield Hostile(f"{path}:{name}:{number}", path, _dump(body), param=name)
    chat_only: dict[str, list[Any]] = {
        "messages": [None, "hi", 1, {}, [], [1], ["hi"], [None], [[]], [{}], [{"role": "user", "content": 1}],
                     [{"role": "user", "content": {}}], [{"role": "user", "content": [1]}], [{"content": "hi"}],
                     [{"role": "user", "content": [{}]}], [{"role": "user", "content": [{"type": "text"}]}],
                     [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/"}}]}],
                     [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}],
                     [{"role": "user", "content": [{"type": "text", "text": 1}]}],
                     [{"role": "emperor", "content": "hi"}],
                     [{"role": "", "content": "hi"}], [{"role": None, "content": "hi"}], [{"role": 1, "content": "hi"}],
                     [{"role": ["user"], "content": "hi"}], [{"role": "user", "content": "hi", "name": 1}],
                     [{"role": "assistant", "tool_calls": "x"}], [{"role": "assistant", "tool_calls": [1]}],
                     [{"role": "assistant", "tool_calls": [{"function": {}}]}],
                     [{"role": "tool", "tool_call_id": 1, "content": "x"}]],
        "max_completion_tokens": [0, -1, 1.5, "1", [], {}, True, HUGE],
        "logprobs": [1, 0, "true", [], {}],
        "top_logprobs": [1, -1, 21, 1.5, "1", [], {}, True],
        "tools": [1, "x", {}, [1], ["x"], [{}], [{"type": "function"}], [{"type": "function", "function": {}}],
                  [{"type": "function", "function": {"name": ""}}], [{"type": "function", "function": {"name": "a b"}}],
                  [{"type": "function", "function": {"name": "f", "parameters": 1}}], [{"type": "custom"}],
                  [{"type": "function", "function": {"name": "f"}}] * 2],
        "tool_choice": ["required", "maybe", 1, [], {}, {"type": "function"},
                        {"type": "function", "function": {"name": "f"}}],
        "response_format": [1, "json", [], {}, {"type": "xml"}, {"type": 1}, {"type": "json_schema"},
                            {"type": "json_schema", "json_schema": {}}, {"type": "json_schema", "json_schema": 1}],
        "reasoning_effort": ["", "extreme", 1, [], {}, True],
        "continue_final_message": [True, 1, "yes", []],
        "chat_template_kwargs": [1, "x", [], {str(i): i for i in range(100)}],
        "audio": [{"voice": "x"}], "functions": [[{"name": "f"}]],
        "function_call": ["auto"], "modalities": [["audio"], ["text", "audio"], "text", 1],
    }  # fmt: skip
    completions_only: dict[str, list[Any]] = {
        "prompt": [1, True, {}, {"a": "b"}, [], [[]], [""] * 300, [1, "a"], ["a", 1], [1.5], [-1], [True], [None],
                   [[1], "a"],
                   [[[1]]], [2**40], [99_999_999], [{"a": 1}], [[-1]], [[1.5]]],
        "best_of": [0, -1, 129, 1.5, "1", [], {}, True, HUGE],
        "logprobs": [-1, 21, 1.5, "1", [], {}, True],
        "echo": ["true", 1, [], {}],
        "suffix": ["end", 1, [1], True],
    }  # fmt: skip
    responses_only: dict[str, list[Any]] = {
        "input": [None, 1, True, {}, [], [1], ["hi"], [None], [[]], [{}], [{"role": "user"}],
                  [{"role": 1, "content": ""}],
                  [{"type": "message"}], [{"type": 1}], [{"type": []}], [{"type": "x" * 10_000}],
                  [{"role": "user", "content": [1]}], [{"role": "user", "content": [{"type": "input_file"}]}],
                  [{"type": "function_call"}],
                  [{"type": "function_call", "call_id": 1, "name": "f", "arguments": "{}"}],
                  [{"type": "function_call_output", "call_id": "nobody", "output": "x"}],
                  [{"type": "reasoning", "summary": "x"}], [{"type": "item_reference", "id": "msg_1"}],
                  [{"role": "user", "content": "hi", "id": ""}]],
        "instructions": [1, [], {}, True],
        "max_output_tokens": [0, -1, 1.5, "1", [], {}, True, HUGE, 10**20],
        "previous_response_id": [1, "", "no such", "../../etc/passwd", "resp_nobody", "a" * 1000, [], {}, "'; --"],
        "conversation": [1, "", "conv_nobody", {}, {"id": 1}, {"id": "../x"}, [], True, "a" * 1000],
        "store": [1, "yes", [], {}],
        "metadata": [1, "x", [], {"a": 1}, {"a": None}, {"": "x"}, {"a" * 65: "x"}, {"a": "x" * 513},
                     {str(i): "" for i in range(17)}],
        "tools": [1, "x", {}, [1], [{}], [{"type": "function"}], [{"type": "function", "name": ""}],
                  [{"type": "function", "name": "a b"}], [{"type": "function", "name": "f", "parameters": 1}],
                  [{"type": "web_search"}], [{"type": "mcp"}], [{"type": "function", "name": "f"}] * 2],
        "tool_choice": ["required", "maybe", 1, [], {}, {"type": "function"}, {"type": "function", "name": "f"},
                        {"type": "file_search"}],
        "text": [1, "json", [], {"format": 1}, {"format": {"type": "xml"}}, {"format": {"type": "json_schema"}},
                 {"format": {"type": "json_schema", "name": "x", "schema": 1}}, {"verbosity": "loud"}],
        "reasoning": [1, "high", [], {"effort": "extreme"}, {"effort": 1}, {"summary": "poem"}],
        "include": [1, "x", {}, ["x"], [1], [None]],
        "top_logprobs": [-1, 21, 1.5, "1", [], {}, True],
        "truncation": ["auto", "some", 1, [], {}],
        "background": [True, "yes", 1], "prompt": [{"id": "x"}, "x"], "n": [2, "1", [1]], "session_id": ["x"],
    }  # fmt: skip
    for path, fields in ((CHAT, chat_only), (COMPLETIONS, completions_only), (RESPONSES, responses_only)):
        for name, values in fields.items():
            for number, value in enumerate(values):
                yield Hostile(f"{path}:{name}:{number}", path, _dump(base(path, model) | {name: value}), param=name)


def _bodies(model: str) -> Iterator[Hostile]:
    """Bodies that are no JSON object, or not JSON."""
    for path in GENERATING:
        good = _dump(base(path, model))
        raw = {
            "empty": b"",
            "space": b"   ",
            "null": b"null",
            "number": b"1",
            "string": b'"hi"',
            "list": b"[]",
            "true": b"true",
            "truncated": good[:-1],
            "truncated_half": good[: len(good) // 2],
            "trailing": good + b"x",
            "twice": good + good,
            "trailing_comma": good[:-1] + b",}",
            "single_quotes": good.replace(b'"', b"'"),
            "comment": b"/* hi */" + good,
            "bom": b"\xef\xbb\xbf" + good,
            "utf16": good.decode().encode("utf-16"),
            "utf32": good.decode().encode("utf-32"),
            "latin1": good[:-1] + b', "user": "\xe9"}',
            "overlong": good[:-1] + b', "user": "\xc0\xaf"}',
            "raw_surrogate": good[:-1] + b', "user": "\xed\xa0\x80"}',
            "lone_high": good[:-1] + b', "user": "\\ud800"}',
            "lone_low": good[:-1] + b', "user": "\\udc00"}',
            "surrogates_swapped": good[:-1] + b', "user": "\\udc00\\ud800"}',
            "bad_escape": good[:-1] + b', "user": "\\x41"}',
            "control": good[:-1] + b', "user": "\x01"}',
            "newline_in_string": good[:-1] + b', "user": "a\nb"}',
            "null_byte": good[:-1] + b', "user": "a\x00b"}',
            "nan": good[:-1] + b', "temperature": NaN}',
            "infinity": good[:-1] + b', "temperature": Infinity}',
            "minus_infinity": good[:-1] + b', "temperature": -Infinity}',
            "huge_exponent": good[:-1] + b', "temperature": 1e999}',
            "leading_zero": good[:-1] + b', "top_k": 01}',
            "plus": good[:-1] + b', "top_k": +1}',
            "hex": good[:-1] + b', "top_k": 0x1}',
            "half_number": good[:-1] + b', "temperature": 1.}',
            "deep_list": DEEP,
            "deep_closed": DEEP + b"]" * len(DEEP),
            "deep_object": b'{"a":' * 50_000,
            "deep_field": good[:-1] + b', "x": ' + b"[" * 500 + b"]" * 500 + b"}",
            "many_digits": good[:-1] + b', "seed": ' + b"9" * 5000 + b"}",
            "garbage": bytes(range(256)) * 10,
            "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>",
            "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
            "form": b"model=a&prompt=b",
        }
        for name, body in raw.items():
            yield Hostile(f"{path}:body:{name}", path, body)
        for name, headers in {
            "no_type": {},
            "text": {"content-type": "text/plain"},
            "form": {"content-type": "application/x-www-form-urlencoded"},
            "multipart": {"content-type": "multipart/form-data; boundary=x"},
            "xml": {"content-type": "application/xml"},
            "gzip": JSON | {"content-encoding": "gzip"},
            "deflate": JSON | {"content-encoding": "deflate"},
            "br": JSON | {"content-encoding": "br"},
            "zstd": JSON | {"content-encoding": "identity, zstd"},
        }.items():
            yield Hostile(f"{path}:header:{name}", path, good, headers)


def _texts(model: str) -> Iterator[Hostile]:
    """Parameters that do not go together."""
    together: dict[str, tuple[str, dict[str, Any]]] = {
        "best_of_below_n": (COMPLETIONS, {"n": 3, "best_of": 2}),
        "best_of_streamed": (COMPLETIONS, {"best_of": 2, "stream": True}),
        "min_over_max": (COMPLETIONS, {"max_tokens": 1, "min_tokens": 2}),
        "min_over_max_chat": (CHAT, {"max_tokens": 1, "min_tokens": 2}),
        "usage_without_stream": (CHAT, {"stream_options": {"include_usage": True}, "stream": False}),
        "top_logprobs_alone": (CHAT, {"top_logprobs": 2, "logprobs": False}),
        "grammar_and_regex": (CHAT, {"grammar": "start: \"a\"", "regex": "a"}),
    }  # fmt: skip
    for name, (path, fields) in together.items():
        yield Hostile(f"together:{name}", path, _dump(base(path, model) | fields))


def _routes(model: str) -> Iterator[Hostile]:
    """Methods and paths that are not there."""
    good = _dump(base(CHAT, model))
    for method in ("GET", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE"):
        for path in GENERATING:
            yield Hostile(f"method:{method}:{path}", path, b"", {}, method)
    for path in ("/v1/models", "/health", "/ready", "/metrics", "/version", "/docs"):
        for method in ("POST", "DELETE"):
            yield Hostile(f"method:{method}:{path}", path, good if method == "POST" else b"", dict(JSON), method)
    for path in (
        "/nothing", "/v1", "/v1/", "/v2/chat/completions", "/v1/chat", "/v1/chat/completions/", "/v1/completions/x",
        "/v1/engines", "/v1/files", "/v1/models/nobody", "/v1/models/..%2f..%2fetc%2fpasswd", "/v1/models/%00",
        "/v1/models/" + "a" * 5000, "/..%2f..%2fetc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/static/../../etc/passwd",
        "/.git/config", "/.env", "/server-status", "/v1/models/%F0%28%8C%28", "/v1/models/%ff", "/v1/models/{model}",
        "/admin", "/debug/pprof", "/redoc", "/invocations", "/pause", "/abort_requests", "/update_weights",
        "/v1/mödels", "/v1/responses/nobody", "/v1/responses/%00", "/v1/responses/" + "a" * 5000,
        "/v1/responses/..%2fx/input_items", "/v1/conversations/nobody", "/v1/conversations/%ff/items",
    ):  # fmt: skip
        yield Hostile(f"path:{path[:40]}", path, b"", {}, "GET")


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()
