"""Texts of a chat as training wrote them: a blank line ends a turn, so no message may hold one by accident."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache


def normal_newlines(text: str) -> str:
    """CRLF and lone CR become LF."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def clean(text: str, headings: Sequence[str]) -> str:
    """A system, user or tool text: LF line ends, runs of newlines collapsed to one, ends stripped.

    Inside fenced code, lines keep their indentation and blank lines stay, except before a line that begins with a
    heading: nothing a user writes can end the turn and begin another.

    Args:
        headings: what turns begin with, for example `User:`.
    """
    kept: list[str] = []
    in_code = False
    for line in normal_newlines(text).strip().split("\n"):
        if not line and not in_code:
            continue
        if line.startswith(tuple(headings)):
            while kept and not kept[-1]:
                kept.pop()
        if line.lstrip().startswith("```"):
            in_code = not in_code
        kept.append(line)
    return "\n".join(kept)


def guard(text: str, headings: Sequence[str]) -> str:
    """An assistant's own text: its paragraphs stay, but no heading may follow a blank line."""
    return _before_heading(tuple(headings)).sub("\n", normal_newlines(text).strip())


@cache
def _before_heading(headings: tuple[str, ...]) -> re.Pattern[str]:
    """Blank lines that one of these follows."""
    return re.compile(rf"\n{{2,}}(?={'|'.join(map(re.escape, headings))})")
