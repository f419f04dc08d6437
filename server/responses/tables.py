"""The tables that turns and conversations lie in, and what is done to chains of turns there."""

from __future__ import annotations

import logging
import sqlite3
from hashlib import blake2b

import orjson

from ..errors import ResponseDamaged
from .items import Item

_log = logging.getLogger(__name__)

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
_CHAIN = """
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


def size_of(db: sqlite3.Connection, tenant: str | None) -> tuple[int, int]:
    """Turns stored, and the bytes of their items: a tenant's, or all."""
    where, values = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
    turns, size = db.execute(f"SELECT count(*), coalesce(sum(bytes), 0) FROM turns{where}", values).fetchone()
    return turns, size


def chain(db: sqlite3.Connection, id: str | None) -> list[Item]:
    """Items of this turn and of all before it, oldest first.

    Raises:
        ResponseDamaged: one of them is missing, or not what was stored.
    """
    turns = [sound(*row) for row in db.execute(_CHAIN, (id,))]
    if id is not None and (not turns or turns[0][0] is not None):
        raise ResponseDamaged(f"a response that {id!r} goes on from is missing; go on from another, or begin anew")
    return [item for _, given, said, _ in turns for blob in (given, said) for item in orjson.loads(blob)]


def sound(
    id: str, parent: str | None, given: bytes, said: bytes, body: bytes, digest: bytes
) -> tuple[str | None, bytes, bytes, bytes]:
    """What a turn was stored with.

    Raises:
        ResponseDamaged: it is not that any more.
    """
    if digest != checksum(id, parent, given, said, body):
        _log.error("the stored turn %s is damaged", id)
        raise ResponseDamaged(f"the response {id!r} is stored, but damaged; go on from another, or begin anew")
    return parent, given, said, body


def checksum(id: str, parent: str | None, *blobs: bytes) -> bytes:
    """Of a turn and its place in the chain."""
    digest = blake2b(orjson.dumps([id, parent, [len(blob) for blob in blobs]]), digest_size=16)
    for blob in blobs:
        digest.update(blob)
    return digest.digest()


def prune(db: sqlite3.Connection, id: str | None) -> None:
    """Remove a turn nobody can reach, and those before it that it alone kept."""
    while id is not None:
        needed = db.execute(
            "SELECT visible OR EXISTS (SELECT 1 FROM turns WHERE parent = ?1)"
            " OR EXISTS (SELECT 1 FROM conversations WHERE head = ?1), parent FROM turns WHERE id = ?1",
            (id,),
        ).fetchone()
        if needed is None or needed[0]:
            return
        db.execute("DELETE FROM turns WHERE id = ?", (id,))
        id = needed[1]
