"""Tool calls: read back as they were written, the same for any cutting, and nothing else is taken for one."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.server.text.tool_blocks import read_keywords
from rookery.server.text.tool_stream import ToolCallSplitter, new_call_id
from rookery.server.text.tools import DIALECTS, Tool, ToolCall, ToolCallDelta

TOOLS = [Tool("get"), Tool("set_it")]
Calls = list[tuple[str, str]]


def read(dialect: str, chunks: Sequence[str]) -> tuple[str, Calls]:
    """Content and calls, with the rules of the stream checked on the way."""
    splitter = ToolCallSplitter(DIALECTS[dialect], TOOLS)
    parts = [part for chunk in chunks for part in splitter.push(chunk)] + splitter.flush()
    content = ""
    calls: list[list[str]] = []
    for part in parts:
        if isinstance(part, str):
            assert part
            content += part
        elif part.name is not None:
            assert part.index == len(calls) and part.id is not None and part.id.startswith("call_")
            calls.append([part.name, part.arguments])
        else:
            assert part.index == len(calls) - 1 and part.id is None and part.arguments
            calls[-1][1] += part.arguments
    assert splitter.calls == len(calls)
    return content, [(name, arguments) for name, arguments in calls]


def g1(*objects: str) -> str:
    return "```json\n" + "\n".join(objects) + "\n```"


GET = '{"name":"get","arguments":{"a":"}\\"","b":[{}]}}'
GET_CALL = ("get", '{"a":"}\\"","b":[{}]}')
CASES: list[tuple[str, str, str, Calls]] = [
    ("g1", g1(GET), "", [GET_CALL]),
    ("g1", f"Let me look.\n\n{g1(GET)}\n", "Let me look.", [GET_CALL]),
    ("g1", g1(GET, '{"arguments": {"x": 1}, "name": "set_it"}'), "", [GET_CALL, ("set_it", '{"x":1}')]),
    ("g1", g1(f"[{GET},", f"{GET}]"), "", [GET_CALL, GET_CALL]),
    ("g1", f"{g1(GET)}\n{g1(GET)} Done.", " Done.", [GET_CALL, GET_CALL]),
    ("g1", g1('{ "name" : "get" , "parameters" : { "a" : 1 } }'), "", [("get", '{ "a" : 1 }')]),
    ("g1", g1('{"name":"get","arguments":"{}"}'), "", [("get", "{}")]),
    ("g1", g1('{"name":"get"}'), "", [("get", "{}")]),
    ("g1", '```json\n{"name":"get","arguments":{"a":', "", [("get", '{"a":')]),
    ("g1", f"```json{GET} and text", "and text", [GET_CALL]),
    ("g1", g1('{"name":"other","arguments":{}}'), g1('{"name":"other","arguments":{}}'), []),
    ("g1", g1('{"a":1}'), g1('{"a":1}'), []),
    ("g1", g1("{broken}}"), g1("{broken}}"), []),
    ("g1", g1('{"name":"get","arguments":[1]}'), g1('{"name":"get","arguments":[1]}'), []),
    ("g1", "```python\nx\n```\n ", "```python\nx\n```\n ", []),
    ("g1", "no ``", "no ``", []),
    ("g1", '```json\n{"name":"ge', '```json\n{"name":"ge', []),
    ("g1", "", "", []),
    ("fenced", f"Hm.\n**Tool Call:**\n{g1(GET)}", "Hm.", [GET_CALL]),
    ("fenced", g1(GET), g1(GET), []),
    ("fenced", "**Tool** Call", "**Tool** Call", []),
    ("runner", 'get\n```python\ntool_call("a"="x)", "b"={"c": [1]})\n```', "", [("get", '{"a":"x)","b":{"c":[1]}}')]),
    ("runner", "set_it\n```python\ntool_call(n=1, s='(', t=True)\n```", "", [("set_it", '{"n":1,"s":"(","t":true}')]),
    ("runner", "Now get\n```python\ntool_call()\n```", "Now", [("get", "{}")]),
    ("runner", "budget\n```python\ntool_call()\n```", "budget\n```python\ntool_call()\n```", []),
    ("runner", "get\n```python\ntool_call(x)\n```", "get\n```python\ntool_call(x)\n```", []),
    ("runner", "get\n```python\ntool_call(", "get\n```python\ntool_call(", []),
    ("runner", "I get it", "I get it", []),
]


@pytest.mark.parametrize(("dialect", "text", "content", "calls"), CASES)
def test_calls_are_found(dialect: str, text: str, content: str, calls: Calls) -> None:
    assert read(dialect, [text]) == (content, calls)
    assert read(dialect, list(text)) == (content, calls)


PIECES = [
    "```",
    "json",
    "\n",
    "{",
    "}",
    '"name":"get"',
    ",",
    '"arguments":',
    '{"a":1}',
    "[",
    "]",
    " ",
    "x",
    GET,
    '"',
    "\\",
]
RUNNER_PIECES = ["get", "set_it", "\n```python\n", "tool_call(", ")", "\n```", '"a"=', '"v"', "'", ",", "1", " ", "x"]
FENCED_PIECES = ["**Tool Call:**\n", "**", "```json", "\n```", GET, "x", "\n"]


@given(
    case=st.one_of(
        *(
            st.tuples(st.just(dialect), st.lists(st.sampled_from(pieces), max_size=14))
            for dialect, pieces in (("g1", PIECES), ("runner", RUNNER_PIECES), ("fenced", FENCED_PIECES))
        )
    )
)
def test_cutting_does_not_matter(case: tuple[str, list[str]]) -> None:
    dialect, chunks = case
    text = "".join(chunks)
    content, calls = read(dialect, [text])
    assert read(dialect, chunks) == (content, calls)
    assert read(dialect, list(text)) == (content, calls)
    if not calls:
        assert content == text  # what is no call is never lost


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.mark.parametrize("dialect", list(DIALECTS))
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["get", "set_it"]), st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=3)),
        min_size=1,
        max_size=3,
    )
)
def test_what_history_writes_a_reply_reads(dialect: str, calls: list[tuple[str, dict[str, object]]]) -> None:
    written = [ToolCall("id", name, json.dumps(arguments)) for name, arguments in calls]
    content, found = read(dialect, [DIALECTS[dialect].write_calls(written)])
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in found] == calls


def test_the_prompts_opening_belongs_to_the_reply() -> None:
    opening = DIALECTS["g1"].opening
    assert read("g1", [opening, f"\n{GET}\n```"]) == ("", [GET_CALL])


def test_arguments_stream() -> None:
    splitter = ToolCallSplitter(DIALECTS["g1"], TOOLS, new_id=lambda: "call_x")
    assert splitter.push('```json\n{"name":"get","arguments":') == []
    assert splitter.push('{"a"') == [ToolCallDelta(0, "call_x", "get", '{"a"')]
    assert splitter.push(": 1}") == [ToolCallDelta(0, None, None, ": 1}")]
    assert splitter.push("}\n```") == splitter.flush() == []


def test_text_is_not_held_back_without_need() -> None:
    splitter = ToolCallSplitter(DIALECTS["g1"], TOOLS)
    assert splitter.push("Hello, ") == ["Hello,"]
    assert splitter.push("world") == [" world"]
    assert splitter.push("``") == []
    assert splitter.push("x") == ["``x"]


@pytest.mark.parametrize("text", ["a=", "=1", "a=1 b=2", "a=1,,", "1=2", "a=[", "a=f()", "a='\\N{x}'"])
def test_keywords_that_are_none(text: str) -> None:
    assert read_keywords(text) is None


def test_call_ids_differ() -> None:
    assert len({new_call_id() for _ in range(100)}) == 100
