"""What stands between a call's opener and its closing fence, read one character at a time."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Set
from typing import Literal

from .tools import Json, compact

State = Literal["between", "object", "arguments", "tail", "fence", "closed", "failed"]
Part = tuple[str | None, str]
"""(name when a call begins, a piece of its arguments)"""

_HEAD = re.compile(r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"(?:arguments|parameters)"\s*:\s*')
"""A call up to its arguments: where streaming them can begin."""
_DECODER = json.JSONDecoder(strict=False)
_KEY = re.compile(r"""\s*(?:("(?:[^"\\]|\\.)*")|'([^']*)'|([A-Za-z_]\w*))\s*=\s*""")
_PYTHON = re.compile(r"'(?:[^'\\]|\\.)*'|True|False|None")
_COMMA = re.compile(r"\s*(?:,|$)")


class Block:
    """One block of calls.

    Attributes:
        state: `closed` once the fence has come; `failed` when it is no block of calls (any more).
        pending: what was read and is neither given out nor certain to be dropped.
        called: a call has begun.
    """

    def __init__(self, opener: str) -> None:
        self.pending = opener
        self.called = False
        self.state: State = "between"

    @property
    def unfinished(self) -> bool:
        """A call has begun of which nothing was given out."""
        return self.state == "object"

    def read(self, character: str) -> list[Part]:
        """Take a character; what it makes certain."""
        raise NotImplementedError

    def _fence(self, character: str) -> None:
        """After a call: whitespace, then the fence."""
        self.pending += character
        come = self.pending.strip()
        if come == "```":
            self.state = "closed"
        elif not "```".startswith(come):
            self.state = "failed"


class JsonBlock(Block):
    """`{"name": …, "arguments": …}`, one or several, one after another or in a list."""

    def __init__(self, opener: str, names: Set[str]) -> None:
        super().__init__(opener)
        self._names = names
        self._begin = 0
        self._nesting = Nesting('"')

    def read(self, character: str) -> list[Part]:
        if self.state == "between":
            self._between(character)
        elif self.state == "fence":
            self._fence(character)
        elif self.state == "object":
            return self._object(character)
        else:
            self._nesting.read(character)
            if self.state == "arguments":
                if self._nesting.depth == 1:
                    self.state = "tail"
                return [(None, character)]
            if self._nesting.depth == 0:
                self.state = "between"
        return []

    def _between(self, character: str) -> None:
        if character == "`" and self.called:
            self.pending = ""
            self.state = "fence"
            self._fence(character)
            return
        self.pending += character
        if character == "{":
            self._begin = len(self.pending) - 1
            self._nesting = Nesting('"')
            self._nesting.read(character)
            self.state = "object"
        elif not character.isspace() and character not in "[],":
            self.state = "failed"

    def _object(self, character: str) -> list[Part]:
        opens = self._nesting.read(character)
        if opens and character == "{" and self._nesting.depth == 2:
            head = _HEAD.fullmatch(self.pending, self._begin)
            name = _text(head[1]) if head else None
            if name in self._names:
                return self._called(name, character, "arguments")
        self.pending += character
        if self._nesting.depth == 0:
            call = _whole_call(self.pending[self._begin :], self._names)
            if call is not None:
                return self._called(*call, "between")
            self.state = "failed"
        return []

    def _called(self, name: str | None, arguments: str, state: State) -> list[Part]:
        self.called = True
        self.pending = ""
        self.state = state
        return [(name, arguments)]


class KeywordBlock(Block):
    """`tool_call("k"="v", …)`: arguments are given out when the parenthesis closes."""

    def __init__(self, opener: str, name: str) -> None:
        super().__init__(opener)
        self.state = "object"
        self._name = name
        self._begin = len(opener)
        self._nesting = Nesting("\"'")

    def read(self, character: str) -> list[Part]:
        if self.state == "fence":
            self._fence(character)
            return []
        if character == ")" and self._nesting.depth == 0 and not self._nesting.quote:
            arguments = read_keywords(self.pending[self._begin :])
            if arguments is not None:
                self.called = True
                self.pending = ""
                self.state = "fence"
                return [(self._name, compact(arguments))]
            self.state = "failed"
        self._nesting.read(character)
        self.pending += character
        return []


class Nesting:
    """Depth of brackets outside of strings."""

    def __init__(self, quotes: str) -> None:
        self.depth = 0
        self.quote = ""
        self._quotes = quotes
        self._escaped = False

    def read(self, character: str) -> bool:
        """Take a character; whether it opens a bracket."""
        if self.quote:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == self.quote:
                self.quote = ""
        elif character in self._quotes:
            self.quote = character
        elif character in "{[(":
            self.depth += 1
            return True
        elif character in "}])":
            self.depth -= 1
        return False


def _text(literal: str) -> str | None:
    """The text of a JSON string."""
    try:
        return str(_DECODER.decode(literal))
    except ValueError:
        return None


def _whole_call(text: str, names: Set[str]) -> tuple[str, str] | None:
    """Name and arguments text of one JSON object, in whatever order its keys came; None when it is no known call."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, dict):
        return name, compact(arguments)
    return (name, arguments) if isinstance(arguments, str) else None


def read_keywords(text: str) -> dict[str, Json] | None:
    """The arguments of `tool_call("k"="v", n=1)`: JSON or Python values; None when the text is something else."""
    arguments: dict[str, Json] = {}
    position = 0
    while text[position:].strip():
        key = _KEY.match(text, position)
        value = _value(text, key.end()) if key else None
        comma = _COMMA.match(text, value[1]) if value else None
        if key is None or value is None or comma is None:
            return None
        name = _text(key[1]) if key[1] else key[2] or key[3] or ""
        if name is None:
            return None
        arguments[name] = value[0]
        position = comma.end()
    return arguments


def _value(text: str, position: int) -> tuple[Json, int] | None:
    """One JSON or Python value and where it ends."""
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        literal = _PYTHON.match(text, position)
    if literal is None:
        return None
    try:
        return ast.literal_eval(literal[0]), literal.end()
    except (SyntaxError, ValueError):
        return None
