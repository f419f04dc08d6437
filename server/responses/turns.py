"""A turn and a conversation, as they are stored (`tables.py` has where).

A turn is what one response was asked and what it said; a conversation is a name for its newest turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .items import Item

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn to be stored."""

    id: str
    parent: str | None
    """The turn it continues."""
    input: list[Item]
    """Items of this turn alone."""
    output: list[Item]
    body: Json
    """The rest of the response object."""
    visible: bool
    """Whether the response can be asked for by its id; a conversation has turns that cannot."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chain of turns with a name of its own."""

    id: str
    created: int
    """Unix time, seconds."""
    metadata: Mapping[str, str]
    head: str | None
    """Its newest turn."""
