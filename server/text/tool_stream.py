"""Tool calls out of a reply as it streams, in any dialect, the same for any cutting of the text.

The reader takes one character at a time, so its result cannot depend on how they came. What looks like a call and is
none (a JSON example, an unknown name, broken JSON) is passed on as the content it was. Whitespace around a call is
dropped; nothing else is.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable

from .tool_blocks import Block, JsonBlock, KeywordBlock
from .tools import Tool, ToolCallDelta, ToolDialect


def new_call_id() -> str:
    """An id no other call has."""
    return f"call_{secrets.token_hex(12)}"


class ToolCallSplitter:
    """Splits one reply's content into text and calls.

    Args:
        dialect: how calls are written.
        tools: those that may be called; a call of any other name is content.
        only_calls: the reply can be nothing but calls: what is none was cut short, and is dropped.
        new_id: makes the id of each call.

    Attributes:
        calls: how many calls have begun.
    """

    def __init__(
        self,
        dialect: ToolDialect,
        tools: Iterable[Tool],
        *,
        only_calls: bool = False,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        self.calls = 0
        self._only_calls = only_calls
        self._json = dialect.syntax == "json"
        self._names = frozenset(tool.name for tool in tools)
        self._openers = {dialect.opener.replace("{name}", name): name for name in self._names}
        self._new_id = new_id
        self._out: list[str | ToolCallDelta] = []
        self._space = ""  # whitespace that is content only if content follows
        self._partial = ""  # the beginning of an opener, perhaps
        self._previous = ""
        self._after_call = False
        self._block: Block | None = None

    def push(self, text: str) -> list[str | ToolCallDelta]:
        """What is certain now: pieces of content (never empty) and of calls, in order."""
        for character in text:
            if self._block is None:
                self._text(character)
            else:
                self._in_block(self._block, character)
        return self._given()

    def flush(self) -> list[str | ToolCallDelta]:
        """At the end of the reply: what was held back. A call that was cut short stays as it is."""
        block, held = self._block, self._partial
        if block is not None:
            held = block.pending if block.unfinished or not block.called else ""
        if held or not self._after_call:
            self._content(self._space + held)
        self._space = self._partial = ""
        self._block = None
        return self._given()

    def _given(self) -> list[str | ToolCallDelta]:
        out, self._out = self._out, []
        return out

    def _text(self, character: str) -> None:
        """Outside of calls: hold back what may be the beginning of one."""
        if not self._partial:
            if character.isspace():
                self._space += character
                return
            if not self._json and not self._space and (self._previous.isalnum() or self._previous == "_"):
                self._content(character)  # inside a word no tool's name begins
                return
        self._partial += character
        if self._partial in self._openers:
            opener, self._partial = self._partial, ""
            name = self._openers[opener]
            self._block = JsonBlock(opener, self._names) if self._json else KeywordBlock(opener, name)
        elif not any(opener.startswith(self._partial) for opener in self._openers):
            held, self._partial = self._partial, ""
            space, self._space = self._space, ""
            self._content(space + held[0])
            for later in held[1:]:
                self._text(later)

    def _in_block(self, block: Block, character: str) -> None:
        for name, arguments in block.read(character):
            self._call(name, arguments)
        if block.state == "closed":
            self._block = None
        elif block.state == "failed":
            self._block = None
            if block.called:  # it ended without its fence
                for held in block.pending.lstrip():
                    self._text(held)
            else:
                space, self._space = self._space, ""
                self._content(space + block.pending)

    def _call(self, name: str | None, arguments: str) -> None:
        self._space = ""
        self._after_call = True
        last = self._out[-1] if self._out else None
        if name is not None:
            self._out.append(ToolCallDelta(self.calls, self._new_id(), name, arguments))
            self.calls += 1
        elif isinstance(last, ToolCallDelta):
            self._out[-1] = ToolCallDelta(last.index, last.id, last.name, last.arguments + arguments)
        else:
            self._out.append(ToolCallDelta(self.calls - 1, None, None, arguments))

    def _content(self, text: str) -> None:
        if not text:
            return
        self._previous = text[-1]
        if self._only_calls:
            return
        self._after_call = False
        if self._out and isinstance(self._out[-1], str):
            self._out[-1] += text
        else:
            self._out.append(text)
