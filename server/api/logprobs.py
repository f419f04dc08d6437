"""Log-probabilities in OpenAI's two shapes, listed in step with the text they belong to."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.request import TokenEvent, TokenLogprobs
from ..generation import Delta
from ..text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of the text."""

    token_id: int
    logprobs: TokenLogprobs | None
    """None for the first token of a prompt: nothing came before it."""
    offset: int
    """Characters of the text before it."""


class Listing:
    """The entries of one choice: each is given out with its text, and those of a stop string never are.

    Args:
        offset: characters of text before the first token.
    """

    def __init__(self, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._start = offset
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0
        self._waiting: list[Entry] = []

    def of_prompt(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> list[Entry]:
        """Entries of an echoed prompt, whose text begins at 0."""
        characters, offset, entries = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
        for token_id, found in zip(ids, logprobs, strict=True):
            entries.append(Entry(token_id, found, offset))
            offset += len(characters.decode(self._tokenizer.token_bytes(token_id)))
        return entries

    def of_delta(self, delta: Delta, *, end_token: bool) -> list[Entry]:
        """Entries whose text has been let through by now; all that are left when the choice ends.

        Args:
            end_token: list the token that ended the choice too.
        """
        for event in delta.events:
            assert event.token_id is not None and event.logprobs is not None, "asked for, so the engine sends it"
            self._waiting.append(Entry(event.token_id, event.logprobs, self._start + self._read))
            self._read += len(self._characters.decode(self._tokenizer.token_bytes(event.token_id)))
        sent = self._start + delta.characters
        if delta.finish is not None and not delta.cut:
            ready = len(self._waiting)
        else:
            ready = sum(entry.offset < sent for entry in self._waiting)
        entries, self._waiting = self._waiting[:ready], self._waiting[ready:]
        last: TokenEvent | None = delta.end_token if end_token else None
        if last is not None and last.token_id is not None:
            entries.append(Entry(last.token_id, last.logprobs, sent))
        return entries


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token by a name that no other token has: its text, or its bytes where they are only a part of a character."""
    raw = tokenizer.token_bytes(token_id)
    if not raw:
        return "<|endoftext|>" if token_id == tokenizer.eos_token_id else f"<|token_{token_id}|>"
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def legacy_logprobs(tokenizer: Tokenizer, entries: Iterable[Entry]) -> dict[str, Any]:
    """`logprobs` of a completion choice; the chosen token is among `top_logprobs` whatever its rank."""
    shape: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for entry in entries:
        name, found = token_text(tokenizer, entry.token_id), entry.logprobs
        shape["tokens"].append(name)
        shape["text_offset"].append(entry.offset)
        shape["token_logprobs"].append(None if found is None else found.logprob)
        top = None
        if found is not None:
            top = {token_text(tokenizer, id): logprob for id, logprob in found.top}
            top.setdefault(name, found.logprob)
        shape["top_logprobs"].append(top)
    return shape


def chat_logprobs(tokenizer: Tokenizer, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """`logprobs.content` of a chat choice."""

    def one(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {"token": token_text(tokenizer, token_id), "logprob": logprob, "bytes": list(raw)}

    return [
        {
            **one(entry.token_id, entry.logprobs.logprob),
            "top_logprobs": [one(id, logprob) for id, logprob in entry.logprobs.top],
        }
        for entry in entries
        if entry.logprobs is not None
    ]
