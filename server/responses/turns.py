"""A turn and a conversation, as they are stored, and the tables that hold them.

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


SCHEMA = """
CREATE TABLE IF NOT EXISTS turns (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    parent TEXT,
    visible INTEGER NOT NULL,
    used REAL NOT NULL,
    bytes INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    input BLOB NOT NULL,
    output BLOB NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS turns_by_parent ON turns (parent);
CREATE INDEX IF NOT EXISTS turns_by_use ON turns (tenant, used, bytes);
CREATE TABLE IF NOT EXISTS conversations (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    head TEXT,
    created INTEGER NOT NULL,
    used REAL NOT NULL,
    metadata BLOB NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS conversations_by_head ON conversations (head);
CREATE INDEX IF NOT EXISTS conversations_by_use ON conversations (tenant, used);
"""
CHAIN = """
WITH RECURSIVE chain (id, parent, depth) AS (
    SELECT id, parent, 0 FROM turns WHERE id = ?
    UNION ALL
    SELECT turns.id, turns.parent, depth + 1 FROM turns JOIN chain ON turns.id = chain.parent
)
SELECT id, turns.parent, input, output, body, checksum FROM chain JOIN turns USING (id) ORDER BY depth DESC
"""
OLDEST_END = """
SELECT id, used FROM turns WHERE tenant = ? AND NOT EXISTS (SELECT 1 FROM turns AS later WHERE later.parent = turns.id)
ORDER BY used LIMIT 1
"""
