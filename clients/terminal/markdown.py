"""Markdown on a terminal while it arrives.

Finished blocks are printed once and scroll away like any output; only the block that still grows is drawn again. So
the cost of an answer does not grow with its square, and long answers do not flicker.
"""

from __future__ import annotations

import re
from types import TracebackType
from typing import Self

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]|[\u202a-\u202e\u2066-\u2069]")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")


def printable(text: str) -> str:
    """Without control characters: a model must not move the cursor, set titles or reverse the reading direction."""
    return _CONTROLS.sub("", text)


def finished_blocks(text: str) -> int:
    """Where the part of a markdown text ends that later text cannot change: after its last blank line outside code."""
    fence, end, at = "", 0, 0
    for line in text.splitlines(keepends=True):
        at += len(line)
        if match := _FENCE.match(line):
            marks = match[1]
            if not fence:
                fence = marks
            elif marks[0] == fence[0] and len(marks) >= len(fence) and not line.strip().strip(marks[0]):
                fence = ""
        elif not fence and not line.strip() and line.endswith("\n"):
            end = at
    return end


class _Tail:
    """The last lines of something that may be taller than the screen."""

    def __init__(self, body: RenderableType) -> None:
        self._body = body

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = console.render_lines(self._body, options, pad=False)
        for line in lines[-max(console.height - 2, 1) :]:
            yield from line
            yield Segment.line()


class AnswerView:
    """Shows one answer: markdown at a terminal, the bare text elsewhere; thoughts dim, before it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, refresh_per_second=12, transient=True, vertical_overflow="crop")
        self._thought = False
        self._text = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        rest, self._text = self._text, ""
        if self._live is not None:
            self._live.update(Text(""))
            self._live.stop()
            if rest.strip():
                self._console.print(self._render(rest))
        else:
            self._console.file.write("\n")

    def show(self, text: str, *, thought: bool = False) -> None:
        """Add text of the answer or of its reasoning."""
        text = printable(text)
        if self._live is None:
            if not thought:  # a pipe wants the answer
                self._console.file.write(text)
                self._console.file.flush()
            return
        if thought is not self._thought:
            self._commit(len(self._text))
            self._thought = thought
        self._text += text
        self._commit(finished_blocks(self._text))
        self._live.update(_Tail(self._render(self._text)))

    def _commit(self, end: int) -> None:
        """Print the first `end` characters for good."""
        done, self._text = self._text[:end], self._text[end:]
        if done.strip() and self._live is not None:
            self._live.update(Text(""))
            self._console.print(self._render(done))

    def _render(self, text: str) -> RenderableType:
        if self._thought:
            return Text(text.strip("\n"), style="dim italic")
        return Markdown(text.strip("\n"), hyperlinks=False)
