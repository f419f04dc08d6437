"""Tools: what a request offers, what a reply calls, and the three ways RWKV models were taught to write that.

No two families agree, so a dialect is data: how tools are listed for the model, how a call and a result are written in
the history, and what the model writes to call one. `tool_stream.py` reads calls out of replies, `grammar.py` forces
them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = Any
"""A parsed JSON value."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function the model may call; `parameters` is a JSON schema of its arguments object, {} for no arguments."""

    name: str
    description: str = ""
    parameters: Mapping[str, Json] = field(default_factory=dict)
    strict: bool = False


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A whole call, as it stands in a history. `arguments` is JSON text, verbatim."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A part of a call as it streams: the first of an index has id and name, all have a piece of the arguments."""

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True, slots=True)
class NamedTool:
    """The choice of exactly one tool, which must be called."""

    name: str


ToolChoice = Literal["none", "auto", "required"] | NamedTool


@dataclass(frozen=True, slots=True)
class ToolDialect:
    """One convention of listing, calling and answering tools.

    Attributes:
        opener: what comes before a call in a reply; `{name}` stands for the tool's name.
        closer: what ends a block of calls.
        syntax: `json` is `{"name": …, "arguments": …}`, `keywords` is `"k"=value, …` inside parentheses.
        opening: written into the prompt, after the assistant's heading, when a call is demanded.
        result_role: who speaks a tool's result: a heading of the layout.
        headings: layout the family uses in tool prompts instead of `User:`/`Assistant:`, by name; None keeps its own.
    """

    name: str
    opener: str
    closer: str
    syntax: Literal["json", "keywords"]
    describe: Callable[[Sequence[Tool], bool], str]
    """(tools, a call is demanded) → text for the system turn."""
    result: str
    """Text of a result turn; `{content}` is what the tool returned."""
    result_role: Literal["user", "observation", "tool_output"]
    opening: str = ""
    headings: Literal["markdown"] | None = None

    def write_calls(self, calls: Sequence[ToolCall]) -> str:
        """Calls of an earlier assistant turn, as the model would have written them."""
        if self.syntax == "json":
            lines = "".join(f"\n{_call_json(call)}" for call in calls)
            return self.opener + lines + self.closer
        return "\n".join(
            self.opener.format(name=call.name) + keyword_arguments(parse_arguments(call.arguments)) + self.closer
            for call in calls
        )

    def write_result(self, content: str) -> str:
        """A tool's answer as a turn's text."""
        return self.result.replace("{content}", content)


def parse_arguments(arguments: str) -> dict[str, Json]:
    """Arguments text as an object; {} when it is none."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def compact(value: Json) -> str:
    """JSON without spaces, text as it is."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def keyword_arguments(arguments: Mapping[str, Json]) -> str:
    """`"k"="v", "n"=1`: the arguments of a `tool_call(…)`."""
    return ", ".join(f"{compact(key)}={compact(value)}" for key, value in arguments.items())


def _call_json(call: ToolCall) -> str:
    """Arguments stay verbatim where they are JSON, so that a history encodes to the tokens that were generated."""
    arguments = call.arguments
    try:
        json.loads(arguments)
    except ValueError:
        arguments = compact(parse_arguments(arguments))
    arguments = arguments.strip().replace("\r", "").replace("\n\n", "\n")
    return f'{{"name":{compact(call.name)},"arguments":{arguments}}}'


def _describe_g1(tools: Sequence[Tool], demanded: bool) -> str:
    entries = ",\n".join(
        compact({"name": tool.name, "description": tool.description, "arguments": _properties(tool)}) for tool in tools
    )
    when = "Return only a JSON function call." if demanded else "If a tool helps, return only a JSON function call."
    return f"Tools:\n[\n{entries}\n]\n{when}"


def _properties(tool: Tool) -> Json:
    """The arguments' own schemas where the schema is a plain object, all of it otherwise."""
    properties = tool.parameters.get("properties")
    return properties if isinstance(properties, dict) and "$defs" not in tool.parameters else dict(tool.parameters)


def _describe_runner(tools: Sequence[Tool], demanded: bool) -> str:
    entries = [
        {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)} for tool in tools
    ]
    how = "One of them must be used" if demanded else "Use them if required"
    return (
        "You are a helpful assistant with access to the following functions. "
        f"{how} -{json.dumps(entries, ensure_ascii=False, indent=2)}"
    )


def _describe_fenced(tools: Sequence[Tool], demanded: bool) -> str:
    entries = "\n".join(
        f"### `{tool.name}`\n**Description:** {tool.description}\n**Parameters:**\n"
        f"```json\n{json.dumps(dict(tool.parameters), ensure_ascii=False, indent=2)}\n```"
        for tool in tools
    )
    when = "Call a tool now." if demanded else "Call a tool when it helps; otherwise answer in plain text."
    return f'{entries}\n{when} Write a call as **Tool Call:** and a JSON block with "name" and "arguments".'


DIALECTS: dict[str, ToolDialect] = {
    dialect.name: dialect
    for dialect in (
        ToolDialect(
            name="g1",
            opener="```json",
            closer="\n```",
            syntax="json",
            describe=_describe_g1,
            result="Function output:\n{content}",
            result_role="user",
            opening=" ```json",
        ),
        ToolDialect(
            name="runner",
            opener="{name}\n```python\ntool_call(",
            closer=")\n```",
            syntax="keywords",
            describe=_describe_runner,
            result="{content}",
            result_role="observation",
        ),
        ToolDialect(
            name="fenced",
            opener="**Tool Call:**\n```json",
            closer="\n```",
            syntax="json",
            describe=_describe_fenced,
            result="```json\n{content}\n```",
            result_role="tool_output",
            headings="markdown",
        ),
    )
}
"""By name: `g1` (RWKV-7 G1 models), `runner` (RWKV-5 and 6, as RWKV Runner prompts them), `fenced` (vllm-rwkv)."""
