"""Questions from the keyboard or a pipe: several lines by a closing backslash, by \"\"\" around them, or by pasting."""

from __future__ import annotations

import sys
from collections.abc import Callable

QUOTES = '"""'


def read_question(read_line: Callable[[str], str], prompt: str) -> str:
    r"""One question, which may have several lines.

    Args:
        read_line: shows its argument and reads a line, like `input`; it raises EOFError at the end.

    Raises:
        EOFError: there is nothing more.
    """
    line = read_line(prompt)
    more = "." * (len(prompt) - 1) + " "
    if line.lstrip().startswith(QUOTES):
        return _quoted(line.lstrip().removeprefix(QUOTES), read_line, more)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1].removesuffix("\\")
        lines.append(_or_end(read_line, more, ""))
    return "\n".join(lines)


def _quoted(line: str, read_line: Callable[[str], str], more: str) -> str:
    lines = []
    while not line.rstrip().endswith(QUOTES):
        lines.append(line)
        line = _or_end(read_line, more, QUOTES)
    lines.append(line.rstrip().removesuffix(QUOTES))
    return "\n".join(lines).strip("\n")


def _or_end(read_line: Callable[[str], str], prompt: str, end: str) -> str:
    """The next line; at the end of the input, what would end the question."""
    try:
        return read_line(prompt)
    except EOFError:
        return end


def line_reader(interactive: bool) -> Callable[[str], str]:
    """`input` with editing and history at a terminal; plain lines without prompts otherwise."""
    if not interactive:
        return _piped
    try:
        import readline  # gives `input` editing, history and bracketed paste
    except ImportError:  # Windows, and builds without it: `input` works, without history
        return input
    readline.parse_and_bind("set enable-bracketed-paste on")
    return input


def _piped(prompt: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")
