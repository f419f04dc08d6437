"""Grammars: what they admit is valid, read back by the reply's readers; what cannot be enforced is refused by name."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from llguidance import LLMatcher

from rookery.server.errors import InvalidRequest
from rookery.server.text.chat_template import Message, Prompt, load_template
from rookery.server.text.detokenizer import StopScanner
from rookery.server.text.grammar import (
    check_grammar,
    grammar_limits,
    lark_grammar,
    regex_grammar,
    response_grammar,
    tool_grammar,
)
from rookery.server.text.reasoning import ReasoningSplitter
from rookery.server.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from rookery.server.text.tool_stream import ToolCallSplitter
from rookery.server.text.tools import NamedTool, Tool, ToolChoice

BYTES = ByteTokenizer()
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def strict(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


def admits(grammar: str, text: str, tokenizer: Tokenizer = BYTES) -> bool:
    """Whether the grammar may end after exactly this text."""
    check_grammar(tokenizer, grammar, param="grammar")
    matcher = LLMatcher(tokenizer.llguidance, grammar, log_level=0, limits=grammar_limits())
    ids = tokenizer.encode(text)
    return matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids) and matcher.is_accepting()


def random_reply(grammar: str, seed: int, *, length: int = 400) -> str | None:
    """What a model without sense would write; None when it found no end."""
    check_grammar(BYTES, grammar, param="grammar")
    matcher = LLMatcher(BYTES.llguidance, grammar, log_level=0, limits=grammar_limits())
    draw, text = random.Random(seed), bytearray()
    while len(text) < length:
        mask = matcher.compute_bitmask()
        allowed = [byte for byte in range(255) if mask[byte // 8] >> byte % 8 & 1]
        if matcher.is_accepting() and (not allowed or draw.random() < 0.3):
            return text.decode()
        closing = [byte for byte in allowed if byte in b'"}])`\n']
        byte = draw.choice(closing if closing and draw.random() < 0.6 else allowed)
        assert matcher.consume_token(byte), matcher.get_error()
        text.append(byte)
    return None


def test_text_needs_no_grammar() -> None:
    assert response_grammar(None) is response_grammar({"type": "text"}) is None


def test_any_object() -> None:
    grammar = response_grammar({"type": "json_object"})
    assert grammar is not None
    assert admits(grammar, '{"a": [1, {"b": null}]}')
    for text in ("[1]", '{"a":', "x", ""):
        assert not admits(grammar, text)


def test_a_schema_holds_whatever_is_drawn() -> None:
    grammar = response_grammar(strict(SCHEMA))
    assert grammar is not None
    ended = 0
    for seed in range(12):
        text = random_reply(grammar, seed)
        if text is None:
            continue
        ended += 1
        value = json.loads(text)
        assert value.keys() == {"name", "n"}
        assert isinstance(value["name"], str) and len(value["name"]) <= 5
        assert isinstance(value["n"], int) and 0 <= value["n"] <= 99
    assert ended > 6


def prompts() -> dict[str, Prompt]:
    chat = [Message("user", "Hi")]
    world, g1 = (load_template(name, model_path=Path("m"), version="7", vocab_size=65536) for name in ("world", "g1"))
    return {
        "world": world.render(chat),
        "closed": g1.render(chat),
        "open": g1.render(chat, reasoning_effort="high"),
        "continued": world.render([*chat, Message("assistant", "So")], continue_final=True),
    }


def content_of(prompt: Prompt, reply: str) -> str:
    """The visible text of a reply, as the service reads it."""
    splitter = ReasoningSplitter(prompt.thinking == "open", missing=prompt.missing)
    pieces = splitter.push(reply) + splitter.flush()
    content = "".join(piece.text for piece in pieces if piece.kind == "content")
    return content.removeprefix(" ") if prompt.strip_leading_space else content


@pytest.mark.parametrize(
    ("kind", "replies"),
    [
        ("world", [" {}"]),
        ("closed", [">{}", ">\n{}", ">\n\n{}", "> {}"]),
        ("open", [">hm\n{</think>{}", "></think>\n\n{}"]),
        ("continued", ["{}"]),
    ],
)
def test_the_format_around_the_answer_is_part_of_the_grammar(kind: str, replies: list[str]) -> None:
    prompt = prompts()[kind]
    for grammar in (
        response_grammar({"type": "json_object"}, prompt),
        regex_grammar(r"\{\}", prompt),
        lark_grammar('start: "{" "}"', prompt),
        lark_grammar('root ::= "{}"', prompt),
    ):
        assert grammar is not None
        for reply in replies:
            assert admits(grammar, reply), reply
            assert content_of(prompt, reply) == "{}"
        assert not admits(grammar, "\t{}")


def test_a_regex_keeps_its_own_leading_space() -> None:
    prompt = prompts()["world"]
    grammar = regex_grammar(" ?a", prompt)
    assert admits(grammar, "  a") and admits(grammar, " a") and not admits(grammar, "a")
    assert content_of(prompt, "  a") == " a"


@pytest.mark.parametrize("keyword", ["not", "if", "uniqueItems", "contains", "dependentRequired", "propertyNames"])
@pytest.mark.parametrize("deep", [False, True])
def test_keywords_that_cannot_be_enforced_are_named(keyword: str, deep: bool) -> None:
    schema: dict[str, Any] = {"type": "object", keyword: {}}
    if deep:
        schema = {"type": "object", "properties": {"not": {"type": "array", "items": {"anyOf": [schema]}}}}
    with pytest.raises(InvalidRequest, match=keyword) as caught:
        response_grammar(strict(schema))
    assert caught.value.param == "response_format.json_schema.schema"


def test_keywords_are_only_keywords_where_schemas_stand() -> None:
    schema = {
        "type": "object",
        "properties": {"not": {"const": {"if": 1}}, "pattern": {"enum": [{"not": 1}]}},
        "$defs": {"if": {"type": "string"}},
    }
    assert response_grammar(strict(schema)) is not None


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ([], "must be a JSON schema"),
        (nested(2000), "nested more than"),
        ({"enum": ["x" * 70_000]}, "at most 65536"),
        ({"properties": {f"k{i}": {} for i in range(501)}}, "501 properties"),
        ({"properties": 5}, "properties must be an object"),
        ({"patternProperties": 5}, "patternProperties must be an object"),
        ({"required": "a"}, "required must be an array"),
        ({"$ref": "https://example.com/s"}, r"\$ref must point into"),
        ({"$ref": 7}, r"\$ref must point into"),
        ({"type": "string", "x-guidance": {"lenient": True}}, "x-guidance"),
        ({"allOf": [{"type": "string", "pattern": f".*a{i}.*"} for i in range(30)]}, "30 patterns"),
    ],
)
def test_schemas_over_the_limits_are_refused_before_they_are_compiled(schema: Any, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        response_grammar(strict(schema))


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (response_grammar(strict({"type": "strin"})), "Invalid type: strin"),
        (response_grammar(strict({"type": "string", "format": "nonsense"})), "Unknown format: nonsense"),
        (response_grammar(strict({"$ref": "#/$defs/no"})), "does not exist"),
        (response_grammar(strict({"enum": []})), "Unsatisfiable"),
        (regex_grammar("(?=x)y"), "look-ahead"),
        (regex_grammar("["), "unclosed character class"),
        (lark_grammar("start: nowhere"), "nowhere"),
        (lark_grammar("start: " + "(" * 3000 + '"x"' + ")" * 3000), "nested"),
        ("{}", "grammar"),
    ],
)
def test_what_does_not_compile_says_why(grammar: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as caught:
        check_grammar(BYTES, grammar, param="grammar")
    assert caught.value.param == "grammar" and "\n" not in caught.value.message


def test_long_regexes_and_grammars_are_refused() -> None:
    for make, param in ((regex_grammar, "regex"), (lark_grammar, "grammar")):
        with pytest.raises(InvalidRequest) as caught:
            make("a" * 100_000)
        assert caught.value.param == param
    with pytest.raises(InvalidRequest, match="& and ~"):
        lark_grammar("start: X\nX: " + " & ".join(f"/.*a{i}.*/" for i in range(4)))
    assert admits(lark_grammar('start: X Y\nX: "&~&~\\"&"\nY: /[&~]&&\\/&~/ & /.*/ & /.*/'), '&~&~"&~&&/&~')
    with pytest.raises(InvalidRequest, match="cannot be read"):
        lark_grammar('root ::= "unclosed')


def test_unknown_formats_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        response_grammar({"type": "yaml"})
    assert caught.value.param == "response_format.type"
    for broken in ({"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": "x"}}):
        with pytest.raises(InvalidRequest):
            response_grammar(broken)


TOOLS = [
    Tool("get", "", {"type": "object", "properties": {"c": {"enum": ["a", "b"]}}, "required": ["c"]}),
    Tool(
        "put",
        "",
        {
            "type": "object",
            "properties": {"x": {"type": "boolean"}, "y": {"$ref": "#/$defs/d"}, "z": {"type": "null"}},
            "required": ["y"],
            "additionalProperties": False,
            "$defs": {"d": {"enum": [1, 2]}},
        },
    ),
    Tool("now"),
]


def tool_prompt(dialect: str, choice: ToolChoice, effort: str | None = None) -> Prompt:
    g1 = load_template("g1", model_path=Path("m"), version="7", vocab_size=65536)
    return g1.render(
        [Message("user", "Hi")],
        tools=TOOLS,
        tool_choice=choice,
        reasoning_effort=effort,
        options={"tool_dialect": dialect},
    )


@pytest.mark.parametrize("choice", ["required", NamedTool("put")])
@pytest.mark.parametrize("dialect", ["g1", "runner", "fenced"])
def test_a_demanded_call_is_made_whatever_is_drawn(dialect: str, choice: ToolChoice) -> None:
    prompt = tool_prompt(dialect, choice)
    grammar = tool_grammar(TOOLS, choice, prompt, parallel=False)
    assert grammar is not None and prompt.dialect is not None
    ended = 0
    for seed in range(6):
        reply = random_reply(grammar, seed)
        if reply is None:
            continue
        ended += 1
        splitter = ToolCallSplitter(prompt.dialect, TOOLS)
        parts = splitter.push(prompt.opening + content_of(prompt, reply)) + splitter.flush()
        (call,) = parts
        assert not isinstance(call, str) and call.name is not None
        arguments = json.loads(call.arguments)
        if choice != "required":
            assert call.name == "put"
        if call.name == "put":
            assert arguments["y"] in (1, 2) and arguments.keys() <= {"x", "y", "z"}
        if call.name == "get":
            assert arguments["c"] in ("a", "b")
    assert ended > 2


def test_calls_after_thoughts_and_several_calls() -> None:
    one = '\n{"name":"now","arguments":{}}'
    prompt = tool_prompt("g1", "required", "high")
    grammar = tool_grammar(TOOLS, "required", prompt)
    assert grammar is not None
    assert admits(grammar, f">Time?</think>\n```json{one}{one}\n```")
    single = tool_grammar(TOOLS, "required", tool_prompt("g1", "required"), parallel=False)
    assert single is not None
    assert admits(single, f"{one}\n```") and not admits(single, f"{one}{one}\n```")
    runner = tool_grammar(TOOLS, "required", tool_prompt("runner", "required"))
    assert runner is not None
    call = 'put\n```python\ntool_call("x"=true, "y"=2)\n```'
    assert admits(runner, f" {call}") and admits(runner, f" {call}\n{call}")
    assert not admits(runner, ' put\n```python\ntool_call("x"=true)\n```')


OPEN = {"type": "object", "properties": {"at": {"type": "object", "properties": {"x": {"type": "integer"}}}}}


@pytest.mark.parametrize(
    ("parameters", "arguments", "admitted"),
    [
        (OPEN, '{"at":{"x":1}}', True),
        (OPEN, '{"at":{"x":1},"more":2}', False),
        (OPEN, '{"at":{"x":1,"y":2}}', False),
        ({**OPEN, "additionalProperties": True}, '{"at":{"x":1},"more":2}', True),
        ({"type": "object"}, '{"more":2}', True),
        ({"allOf": [OPEN, {"properties": {"more": {"type": "integer"}}}]}, '{"at":{"x":1},"more":2}', True),
        ({}, "{}", True),
        ({}, '{"more":2}', False),
    ],
)
def test_a_demanded_call_invents_no_arguments(parameters: dict[str, Any], arguments: str, admitted: bool) -> None:
    grammar = tool_grammar([Tool("put", "", parameters)], "required", tool_prompt("g1", "required"))
    assert grammar is not None
    assert admits(grammar, f'\n{{"name":"put","arguments":{arguments}}}\n```') is admitted


def test_free_choice_has_no_grammar() -> None:
    assert tool_grammar(TOOLS, "auto", tool_prompt("g1", "auto")) is None
    assert tool_grammar(TOOLS, "none", tool_prompt("g1", "none")) is None


def test_tools_are_checked_by_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        tool_grammar(TOOLS, NamedTool("absent"), tool_prompt("g1", "required"))
    assert caught.value.param == "tool_choice"
    bad = [*TOOLS, Tool("bad", "", {"not": {}})]
    with pytest.raises(InvalidRequest, match="not") as caught:
        tool_grammar(bad, "auto", tool_prompt("g1", "auto"))
    assert caught.value.param == "tools.3.function.parameters"


def test_the_world_vocabulary_is_constrained_too() -> None:
    world = load_tokenizer(None, model_path=Path("/nowhere/m.pth"), vocab_size=65536)
    grammar = response_grammar(strict(SCHEMA), prompts()["world"])
    assert grammar is not None
    assert admits(grammar, ' {"name": "é🦅", "n": 7}', world)
    assert not admits(grammar, ' {"name": "é🦅", "n": 700}', world)


def test_stops_do_not_cut_calls() -> None:
    """The stops of the template never occur in what a grammar of tool calls writes."""
    scanner = StopScanner(load_template("g1", model_path=Path("m"), version="7", vocab_size=65536).stop)
    text = '```json\n{"name":"now","arguments":{}}\n```'
    assert scanner.push(text) + scanner.flush() == text


@pytest.mark.parametrize(
    ("text", "admitted"),
    [
        ('{"name":"a","n":1}', True),
        ('{ "name": "a", "n": 1 }', True),
        ('{\n  "name": "a",\r\n\t"n": 1\n}', True),
        ('{  "name":"a","n":1}', False),
        ('{\n\n"name":"a","n":1}', False),
        ('{"name":"a","n":1\n' + " " * 41 + "}", False),
    ],
)
def test_space_between_tokens_is_bounded(text: str, admitted: bool) -> None:
    grammar = response_grammar(strict(SCHEMA))
    assert grammar is not None and admits(grammar, text) is admitted
    assert json.loads(text)["n"] == 1
