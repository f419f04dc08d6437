"""Token ids to text as they arrive: never half a character, never a part of a stop string, never a lost one.

Two stages, usable apart: bytes to characters (`Detokenizer`), and the search for stop strings (`StopScanner`), which a
reply with reasoning applies to its visible part only.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from .tokenizer import Tokenizer


class StopScanner:
    """Passes text on up to the first stop string.

    The stop that is complete first ends the text; of several complete at the same character, the longest. That depends
    on the characters only, never on how they were cut into pieces. Held back is exactly the longest end of the text
    that a stop string could begin with.

    Attributes:
        stopped: the stop string met, or None.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stopped: str | None = None
        self._stops = [_Progress(text) for text in dict.fromkeys(stop) if text]
        self._held = ""

    def push(self, text: str) -> str:
        """The text that is now safe to send: before a stop string, and no part of a possible one."""
        if self.stopped is not None:
            return ""
        if not self._stops:
            return text
        hits = [(end, -len(stop.text), stop.text) for stop in self._stops if (end := stop.advance(text)) is not None]
        text = self._held + text
        if hits:
            end, _, self.stopped = min(hits)
            end += len(self._held)
            self._held = ""
            return text[: end - len(self.stopped)]
        safe = len(text) - max(stop.matched for stop in self._stops)
        self._held = text[safe:]
        return text[:safe]

    def flush(self) -> str:
        """At the end of the text: what was held back, since no stop string came of it."""
        held, self._held = self._held, ""
        return held


class _Progress:
    """How much of one stop string the text ends with (Knuth, Morris, Pratt)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._shorter = [0] * len(text)  # after i characters: the next shorter beginning that also ends there
        length = 0
        for i in range(1, len(text)):
            while length and text[i] != text[length]:
                length = self._shorter[length - 1]
            length += text[i] == text[length]
            self._shorter[i] = length

    def advance(self, piece: str) -> int | None:
        """Read on; the position in `piece` after the first complete occurrence, if there is one."""
        stop, matched = self.text, self.matched
        if not matched and stop[0] not in piece:
            return None
        for i, character in enumerate(piece):
            while matched and character != stop[matched]:
                matched = self._shorter[matched - 1]
            if character == stop[matched]:
                matched += 1
                if matched == len(stop):
                    self.matched = 0
                    return i + 1
        self.matched = matched
        return None


class Detokenizer:
    """The text of one choice. Joined, what `push` and `flush` return is `tokenizer.decode` of all ids, cut at the
    first stop string. At most three bytes wait for the rest of their character.

    Attributes:
        stopped: the stop string met, or None; after it, every call returns "".
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._scanner = StopScanner(stop)

    @property
    def stopped(self) -> str | None:
        return self._scanner.stopped

    def push(self, token_id: int) -> str:
        """Text that is now safe to send."""
        return self._scanner.push(self._characters.decode(self._tokenizer.token_bytes(token_id)))

    def flush(self) -> str:
        """At the end: incomplete bytes as U+FFFD, and whatever was held back for a stop string that did not come."""
        return self._scanner.push(self._characters.decode(b"", final=True)) + self._scanner.flush()
