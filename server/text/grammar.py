"""What a reply must match, as a serialised llguidance grammar: JSON, a schema, a regex, a grammar, or a tool call.

The grammar covers the whole reply as it is generated, format included: the space after `Assistant:`, the end of an
open tag, and the reasoning before the answer. Everything here is quick and checks limits; `check_grammar` compiles,
which takes up to seconds for the worst grammar the limits admit, so it belongs on a thread.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, LLParserLimits, grammar_from

from ..errors import InvalidRequest
from .chat_template import Prompt
from .schema_limits import check_arguments, check_schema
from .tokenizer import Tokenizer
from .tools import Json, NamedTool, Tool, ToolChoice, ToolDialect, compact

MAX_REGEX_CHARS = 4096
MAX_GRAMMAR_CHARS = 32 * 1024
MAX_INTERSECTIONS = 2
"""`&` and `~` of a Lark grammar: each may multiply the automaton. Four make seconds of work, two half a second."""
_LITERAL = re.compile(r'"(?:\\.|[^"\\\n])*"|/(?:\\.|[^/\\\n])+/')
MAX_CALLS = 16
"""Calls a demanded tool turn may hold."""
SPACE = r"( |\r?\n[ \t]{0,40})"
"""Between the tokens of JSON, or nothing: a space, or a line break and its indentation. Unbounded, it is where a model
that does not know what to say goes on until it is cut."""

_PLACE = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_LISTING = re.compile(r"\n +\d+ \| .*\Z", re.DOTALL)
_OVERLAP = re.compile(r"oneOf constraints are not supported.*")
"""llguidance's words for it name an option that no client has."""

_COMBINED = ("anyOf", "oneOf", "$ref")
_BARE = Prompt("")


def response_grammar(response_format: Mapping[str, Any] | None, prompt: Prompt = _BARE) -> str | None:
    """The grammar of a `response_format`; None for text.

    Raises:
        InvalidRequest: no such format, or a schema that cannot be enforced; `param` names the place.
    """
    kind = "text" if response_format is None else response_format.get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return _whole({"json_schema": _spaced({"type": "object"})}, prompt)
    if kind != "json_schema":
        raise InvalidRequest(
            "response_format.type must be text, json_object or json_schema", param="response_format.type"
        )
    holder = response_format.get("json_schema")
    schema = holder.get("schema") if isinstance(holder, Mapping) else None
    param = "response_format.json_schema.schema"
    if not isinstance(schema, Mapping):
        raise InvalidRequest(f"{param} must be a JSON schema", param=param)
    check_schema(schema, param=param)
    return _whole({"json_schema": _spaced(schema)}, prompt)


def regex_grammar(regex: str, prompt: Prompt = _BARE) -> str:
    """A reply that matches the regex as a whole (Rust syntax: no look-around, no back-references).

    Raises:
        InvalidRequest: it is too long.
    """
    if len(regex) > MAX_REGEX_CHARS:
        raise InvalidRequest(f"a regex may have at most {MAX_REGEX_CHARS} characters", param="regex")
    definition = json.loads(LLMatcher.grammar_from_regex(regex))["grammars"][0]
    return _whole({"lark_grammar": definition["lark_grammar"]}, prompt)


def lark_grammar(grammar: str, prompt: Prompt = _BARE) -> str:
    """A reply that matches a Lark grammar (llguidance's dialect) or a GBNF grammar.

    Raises:
        InvalidRequest: it is too long, or GBNF that cannot be read.
    """
    if len(grammar) > MAX_GRAMMAR_CHARS:
        raise InvalidRequest(f"a grammar may have at most {MAX_GRAMMAR_CHARS} characters", param="grammar")
    operators = _LITERAL.sub("", grammar)
    if operators.count("&") + operators.count("~") > MAX_INTERSECTIONS:
        raise InvalidRequest(f"a grammar may have at most {MAX_INTERSECTIONS} & and ~", param="grammar")
    try:
        lark = grammar_from("grammar", grammar)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the grammar cannot be read: {str(error)[:300]}", param="grammar") from None
    return _whole({"lark_grammar": lark}, prompt)


def tool_grammar(tools: Sequence[Tool], choice: ToolChoice, prompt: Prompt, *, parallel: bool = True) -> str | None:
    """The grammar that makes a reply call a tool; None where it may answer freely.

    Args:
        prompt: rendered with the same tools and choice; it names the dialect.
        parallel: more than one call is allowed.

    Raises:
        InvalidRequest: the tool named is not offered, or its parameters cannot be enforced.
    """
    for i, tool in enumerate(tools):
        check_arguments(tool.parameters, param=f"tools.{i}.function.parameters")
    if prompt.dialect is None or choice in ("auto", "none"):
        return None
    if isinstance(choice, NamedTool):
        tools = [tool for tool in tools if tool.name == choice.name]
        if not tools:
            raise InvalidRequest(f"tool_choice names {choice.name[:100]!r}, which is not in tools", param="tool_choice")
    return _whole({"lark_grammar": _calls(tools, prompt.dialect, prompt.opening, parallel)}, prompt)


def check_grammar(tokenizer: Tokenizer, grammar: str, *, param: str) -> None:
    """Compile a grammar and make its first mask, within llguidance's limits of size and work.

    Raises:
        InvalidRequest: it does not compile; the message names the keyword or position at fault.
    """
    matcher = LLMatcher(tokenizer.llguidance, grammar, log_level=0, limits=grammar_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        reason = _reason(matcher.get_error(), own_text=param == "grammar")
        raise InvalidRequest(f"{param} cannot be enforced: {reason[:400]}", param=param, code="unsupported_grammar")


def _reason(error: str, *, own_text: bool) -> str:
    """A fault of a grammar in one line. Place and lines are shown where the client wrote them: the grammar of a regex
    or of tools was made here."""
    if not own_text:
        error = _LISTING.sub("", _PLACE.sub("", error))
    return " ".join(_OVERLAP.sub("alternatives of oneOf that may overlap; use anyOf", error).split())


def grammar_limits() -> LLParserLimits:
    """Bounds of one compilation and of one mask: tens of milliseconds of work each, most kinds of it.

    It happens at the door, one at a time and once for the same grammar, and again on the engine's compile threads for
    what has passed.
    """
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_lexer_states=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


def _whole(body: dict[str, Json], prompt: Prompt) -> str:
    """The body with what the format puts before it."""
    before = _before(prompt)
    if before is None:
        return compact({"grammars": [body]})
    start, rules = before
    return compact({"grammars": [{"lark_grammar": f"start: {start} @body\n{rules}"}, {"name": "body", **body}]})


def _before(prompt: Prompt) -> tuple[str, str] | None:
    """Lark for what comes before the body, and its rules: at most one newline or space after a closing tag, exactly
    the one space that the reader of the reply takes away after `Assistant:`."""
    missing = f'"{prompt.missing}" ' if prompt.missing else ""
    if prompt.thinking == "open":
        return f"{missing}thoughts AFTER?", "thoughts[lazy]: /(.|\\n)*<\\/think>/\nAFTER: /\\n\\n?| /\n"
    if prompt.thinking == "closed":
        return f"{missing}AFTER?", "AFTER: /\\n\\n?| /\n"
    return ('" "', "") if prompt.strip_leading_space else None


def _calls(tools: Sequence[Tool], dialect: ToolDialect, opening: str, parallel: bool) -> str:
    """Lark of one block of calls, or of several blocks where a block holds one call."""
    rules = [_call_rule(i, tool, dialect) for i, tool in enumerate(tools)]
    alternatives = " | ".join(f"call_{i}" for i in range(len(tools)))
    several = f"{{1,{MAX_CALLS}}}" if parallel else ""
    if dialect.syntax == "json":
        opener = "" if opening else f"{_literal(dialect.opener)} "
        start = f'{opener}line{several} {_literal(dialect.closer)}\nline: "\\n" ({alternatives})'
    else:
        start = f'call more\nmore: ("\\n" call){{0,{MAX_CALLS - 1}}}' if parallel else "call"
        start = f"{start}\ncall: {alternatives}"
    return f"start: {start}\n" + "\n".join(rules) + "\n"


def _call_rule(index: int, tool: Tool, dialect: ToolDialect) -> str:
    if dialect.syntax == "json":
        head = _literal(f'{{"name":{compact(tool.name)},"arguments":')
        return f'call_{index}: {head} arguments_{index} "}}"\narguments_{index}: %json {_arguments_schema(tool)}'
    head = _literal(dialect.opener.replace("{name}", tool.name))
    return f"call_{index}: {head} first_{index}_0 {_literal(dialect.closer)}\n{_keyword_rules(index, tool)}"


def _keyword_rules(index: int, tool: Tool) -> str:
    """Arguments in the order of the schema: `first_i_k` while none is written, `later_i_k` after one."""
    schema = tool.parameters
    properties = schema.get("properties", {})
    required = schema.get("required", [])
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules = [f'first_{index}_{len(properties)}: ""', f'later_{index}_{len(properties)}: ""']
    for k, (key, value) in enumerate(properties.items()):
        own = _spaced({**value, **shared}) if isinstance(value, Mapping) else value
        rules.append(f"value_{index}_{k}: {_literal(compact(key) + '=')} json_{index}_{k}")
        rules.append(f"json_{index}_{k}: %json {json.dumps(own)}")
        then = f"later_{index}_{k + 1}"
        without = "" if key in required else f" | first_{index}_{k + 1}"
        rules.append(f"first_{index}_{k}: value_{index}_{k} {then}{without}")
        without = "" if key in required else f" | {then}"
        rules.append(f'later_{index}_{k}: ", " value_{index}_{k} {then}{without}')
    return "\n".join(rules)


def _arguments_schema(tool: Tool) -> str:
    """The tool's parameters as a schema of an object."""
    schema = {"type": "object", **(tool.parameters or {"properties": {}})}
    combines = '"allOf"' in json.dumps(schema)  # what one schema of several leaves open, another may name
    return json.dumps(_spaced(schema if combines else _closed(schema)))


def _closed(schema: Json) -> Json:
    """The schema with objects that list their properties and say nothing of others closed to others, as OpenAI's
    strict mode has them: a weak model would go on inventing some. Where schemas are combined it stays as it is."""
    if not isinstance(schema, Mapping) or any(key in schema for key in _COMBINED):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), Mapping):
            closed[key] = {name: _closed(value) for name, value in schema[key].items()}
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    if "properties" in schema and "patternProperties" not in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _spaced(schema: Mapping[str, Json]) -> dict[str, Json]:
    """The schema with bounded space between tokens."""
    return {"x-guidance": {"whitespace_pattern": SPACE}, **schema}


def _literal(text: str) -> str:
    """A Lark string."""
    return json.dumps(text)
