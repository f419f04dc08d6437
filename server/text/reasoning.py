"""Reasoning apart from the answer, in replies that think aloud between `<think>` and `</think>`.

RWKV prompts leave the tag open (`<think`, `</think`): greedy tokenisation joins `>` with what follows, so the model
writes it and the splitter takes it away again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["reasoning", "content"]
OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a reply; never empty."""

    kind: Kind
    text: str


class ReasoningSplitter:
    """Splits one reply as it streams; the joined pieces do not depend on how the text was cut.

    A reply that begins with `<think>` by itself is split too. Dropped besides the tags, and nothing else: whitespace at
    both ends of the reasoning and before the first character of the answer that follows it. A reply without reasoning
    passes unchanged.

    Args:
        open: the prompt ends inside reasoning (`Prompt.thinking == "open"`).
        missing: the end of a tag that the prompt left to the model (`Prompt.missing`).
    """

    def __init__(self, open: bool, *, missing: str = "") -> None:
        self._missing = missing
        self._state: Literal["missing", "start", "reasoning", "gap", "content"] = "missing"
        self._after_tag: Literal["reasoning", "gap", "start"] = "reasoning" if open else "gap" if missing else "start"
        if not missing:
            self._state = self._after_tag
        self._held = ""
        self._reasoned = False

    def push(self, text: str) -> list[Piece]:
        """Pieces that are now certain."""
        return self._take(self._held + text, final=False)

    def flush(self) -> list[Piece]:
        """At the end of the reply: what was held back."""
        return self._take(self._held, final=True)

    def _take(self, text: str, *, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        self._held = ""
        if self._state == "missing":
            if not text and not final:
                return pieces
            text = text.removeprefix(self._missing)
            self._state = self._after_tag
        if self._state == "start":
            begun = text.lstrip()
            if begun.startswith(OPEN_TAG):
                text = begun.removeprefix(OPEN_TAG)
                self._state = "reasoning"
            elif OPEN_TAG.startswith(begun) and not final:
                self._held = text
                return pieces
            else:
                self._state = "content"
        if self._state == "reasoning":
            text = self._reasoning(text, pieces, final=final)
        if self._state == "gap":
            text = text.lstrip()
            if text:
                self._state = "content"
        if self._state == "content" and text:
            pieces.append(Piece("content", text))
        return pieces

    def _reasoning(self, text: str, pieces: list[Piece], *, final: bool) -> str:
        """Emit reasoning up to the closing tag; what follows the tag, or "" while it has not come."""
        thought, tag, rest = text.partition(CLOSE_TAG)
        if tag or final:
            thought, held = thought.rstrip(), ""
        else:
            certain = _certain(thought)
            thought, held = thought[:certain], thought[certain:]
        if not self._reasoned:
            thought = thought.lstrip()
        if thought:
            self._reasoned = True
            pieces.append(Piece("reasoning", thought))
        if tag:
            self._state = "gap"
        self._held = held
        return rest


def _certain(text: str) -> int:
    """How much of the reasoning is neither the beginning of the closing tag nor whitespace before it."""
    end = len(text)
    for length in range(min(len(CLOSE_TAG) - 1, len(text)), 0, -1):
        if CLOSE_TAG.startswith(text[-length:]):
            end -= length
            break
    return len(text[:end].rstrip())


def strip_reasoning(text: str) -> str:
    """An assistant's earlier reply without its reasoning, which is not part of the history the model sees."""
    begun = text.lstrip()
    if not begun.startswith("<think"):
        return text
    return begun.partition(CLOSE_TAG)[2].lstrip()
