"""Finished turns of the Responses API, in SQLite: on disk where the server has a data folder, in memory otherwise.

Each turn is stored once and linked to the one before it, so going on from any earlier response is a fork that copies
nothing. What grows with a conversation are these items: a turn's prompt is written from all of them, since the
instructions and tools at its beginning may be others each time. The states they lead to do not grow, and are the prefix
cache's: what it still knows of the prompt is not computed again.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import TypeVar

import orjson

from ..errors import InvalidRequest, NotFound, SessionBusy, StartupError, StorageFailed
from ..state.index import open_index
from ..state.lease import Lease
from .items import Item
from .tables import OLDEST_END, SCHEMA, chain, checksum, prune, size_of, sound
from .turns import Conversation, Json, Turn

_log = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMA_VERSION = 1


class ResponseStore:
    """Each call is one transaction in a thread of the store's own; nothing here blocks the event loop.

    Ids belong to the tenant that made them: to another one they do not exist.

    Args:
        path: of the database; None keeps everything in memory. A damaged one is set aside, and a new one begun.
        max_turns: of one tenant; beyond it the end of the chain used longest ago goes first.
        max_bytes: of their items.
        ttl_s: after its last use until a turn that no other continues is forgotten; None never.
        forgotten: told how many turns had to go for one of the three.
        clock: seconds since the epoch.

    Raises (every method):
        StorageFailed: the database cannot be read or written; nothing has changed then.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        max_turns: int,
        max_bytes: int,
        ttl_s: float | None = None,
        forgotten: Callable[[int], None] = lambda turns: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path = path
        self._max_turns, self._max_bytes = max_turns, max_bytes
        self._ttl_s = inf if ttl_s is None else ttl_s
        self._forgotten = forgotten
        self._clock = clock
        self._thread = _thread()
        self._connection: sqlite3.Connection | None = None
        self._lease: Lease | None = None

    async def claim(self) -> None:
        """Take the database for this process, before the first use of it.

        Raises:
            StartupError: another server uses it, or the folder cannot be written.
        """
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._claim)
        except OSError as error:
            raise StartupError(
                f"the data folder {self._path and self._path.parent} cannot be used: {error.strerror}",
                "give --data-dir a folder on a local disk that this user can write",
            ) from error

    async def put(self, tenant: str, turn: Turn, *, conversation: str | None = None) -> None:
        """Store a turn; it becomes the newest of the conversation named. On disk when this returns.

        Raises:
            NotFound: the conversation was deleted meanwhile; the turn is not stored.
            SessionBusy: the conversation has another newest turn by now than this one's parent; likewise.
        """

        def work(db: sqlite3.Connection) -> int:
            self._insert(db, tenant, turn)
            if conversation is not None:
                if self._conversation(db, tenant, conversation).head != turn.parent:
                    raise SessionBusy(f"the conversation {conversation} has gone on meanwhile", param="conversation")
                db.execute("UPDATE conversations SET head = ? WHERE id = ?", (turn.id, conversation))
            return self._make_room(db, tenant)

        self._forgotten(await self._run(work))

    async def get(self, tenant: str, id: str) -> Json:
        """A stored response object.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> Json:
            _, _, output, body = self._visible(db, tenant, id)
            return {**orjson.loads(body), "output": orjson.loads(output)}

        return await self._run(work)

    async def context(self, tenant: str, id: str) -> list[Item]:
        """The items that the response of this id was made from: the turns before it and its own input, oldest first.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> list[Item]:
            parent, own, _, _ = self._visible(db, tenant, id)
            return [*chain(db, parent), *orjson.loads(own)]

        return await self._run(work)

    async def history(self, tenant: str, id: str) -> list[Item]:
        """All items up to the end of this response, oldest first: what a turn that continues it begins with.

        Raises:
            NotFound: there is none of this id.
            InvalidRequest: it was cancelled or has failed.
        """

        def work(db: sqlite3.Connection) -> list[Item]:
            body = self._visible(db, tenant, id)[-1]
            status = orjson.loads(body)["status"]
            if status not in ("completed", "incomplete"):
                raise InvalidRequest(f"the response {id} is {status}: it has no end to go on from", param=_PREVIOUS)
            return chain(db, id)

        try:
            return await self._run(work)
        except NotFound as error:
            raise NotFound(error.message, param=_PREVIOUS, code="previous_response_not_found") from None

    async def delete(self, tenant: str, id: str) -> None:
        """Forget a response; turns that continue it keep what they need of it.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> None:
            self._use(db, tenant, id)
            db.execute("UPDATE turns SET visible = 0 WHERE id = ?", (id,))
            prune(db, id)

        await self._run(work)

    async def create_conversation(
        self, tenant: str, id: str, metadata: Mapping[str, str], first: Turn | None = None
    ) -> Conversation:
        """A new conversation, with a first turn of given items or empty."""
        conversation = Conversation(id, int(self._clock()), metadata, None if first is None else first.id)

        def work(db: sqlite3.Connection) -> int:
            if first is not None:
                self._insert(db, tenant, first)
            db.execute(
                "INSERT INTO conversations (id, tenant, head, created, used, metadata) VALUES (?, ?, ?, ?, ?, ?)",
                (id, tenant, conversation.head, conversation.created, self._clock(), orjson.dumps(metadata)),
            )
            return self._make_room(db, tenant)

        self._forgotten(await self._run(work))
        return conversation

    async def conversation(self, tenant: str, id: str) -> tuple[Conversation, list[Item]]:
        """A conversation and all of its items, oldest first.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> tuple[Conversation, list[Item]]:
            found = self._conversation(db, tenant, id)
            return found, chain(db, found.head)

        return await self._run(work)

    async def update_conversation(self, tenant: str, id: str, metadata: Mapping[str, str]) -> Conversation:
        """Give a conversation other metadata.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> Conversation:
            self._conversation(db, tenant, id)
            db.execute("UPDATE conversations SET metadata = ? WHERE id = ?", (orjson.dumps(metadata), id))
            return self._conversation(db, tenant, id)

        return await self._run(work)

    async def delete_conversation(self, tenant: str, id: str) -> None:
        """Forget a conversation; the responses made in it stay.

        Raises:
            NotFound: there is none of this id.
        """

        def work(db: sqlite3.Connection) -> None:
            head = self._conversation(db, tenant, id).head
            db.execute("DELETE FROM conversations WHERE id = ?", (id,))
            prune(db, head)

        await self._run(work)

    async def size(self, tenant: str | None = None) -> tuple[int, int]:
        """Turns stored, and the bytes of their items: a tenant's, or all."""
        return await self._run(lambda db: size_of(db, tenant))

    async def close(self) -> None:
        """Close the database after what is under way; using the store opens it again."""

        def work() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._lease is not None:
                self._lease.give_back()
                self._lease = None

        await asyncio.get_running_loop().run_in_executor(self._thread, work)
        self._thread.shutdown(wait=False)
        self._thread = _thread()

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def transaction() -> T:
            try:
                db = self._open()
                db.execute("BEGIN IMMEDIATE")
                try:
                    result = work(db)
                    db.execute("COMMIT")
                finally:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
            except (sqlite3.Error, OSError, StartupError) as error:
                _log.error("the response store does not work: %s", error)
                raise StorageFailed("the response could not be stored or read") from error
            return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, transaction)

    def _claim(self) -> None:
        if self._path is not None and self._lease is None:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lease = Lease(self._path.parent, "responses.lock")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._claim()
            self._connection, _ = open_index(self._path, SCHEMA, version=SCHEMA_VERSION)
            self._connection.isolation_level = None  # transactions begin and end where `_run` says so
        return self._connection

    def _insert(self, db: sqlite3.Connection, tenant: str, turn: Turn) -> None:
        blobs = [orjson.dumps(part) for part in (turn.input, turn.output, turn.body)]
        size, digest = sum(map(len, blobs)), checksum(turn.id, turn.parent, *blobs)
        db.execute(
            "INSERT INTO turns (id, tenant, parent, visible, used, bytes, checksum, input, output, body)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (turn.id, tenant, turn.parent, turn.visible, self._clock(), size, digest, *blobs),
        )

    def _visible(self, db: sqlite3.Connection, tenant: str, id: str) -> tuple[str | None, bytes, bytes, bytes]:
        """Parent, input, output and body of a turn that can be asked for, which uses it."""
        self._use(db, tenant, id)
        row = db.execute("SELECT id, parent, input, output, body, checksum FROM turns WHERE id = ?", (id,)).fetchone()
        return sound(*row)

    def _use(self, db: sqlite3.Connection, tenant: str, id: str) -> None:
        found = db.execute(
            "UPDATE turns SET used = ? WHERE id = ? AND tenant = ? AND visible AND used >= ?",
            (self._clock(), id, tenant, self._clock() - self._ttl_s),
        )
        if not found.rowcount:
            raise NotFound(f"there is no response {id!r}", code="response_not_found")

    def _conversation(self, db: sqlite3.Connection, tenant: str, id: str) -> Conversation:
        row = db.execute(
            "SELECT created, metadata, head FROM conversations WHERE id = ? AND tenant = ? AND used >= ?",
            (id, tenant, self._clock() - self._ttl_s),
        ).fetchone()
        if row is None:
            raise _no_conversation(id)
        created, metadata, head = row
        db.execute("UPDATE conversations SET used = ? WHERE id = ?", (self._clock(), id))
        db.execute("UPDATE turns SET used = ? WHERE id = ?", (self._clock(), head))
        return Conversation(id, created, orjson.loads(metadata), head)

    def _make_room(self, db: sqlite3.Connection, tenant: str) -> int:
        """Forget what is expired, then what was used longest ago, while the tenant has more than it may; how many
        turns that were."""
        oldest = self._clock() - self._ttl_s
        (expired,) = db.execute(
            "SELECT EXISTS (SELECT 1 FROM turns WHERE tenant = ?1 AND used < ?2)"
            " OR EXISTS (SELECT 1 FROM conversations WHERE tenant = ?1 AND used < ?2)",
            (tenant, oldest),
        ).fetchone()
        names = db.execute("SELECT count(*) FROM conversations WHERE tenant = ?", (tenant,)).fetchone()[0]
        before, size = turns, _ = size_of(db, tenant)
        if not expired and max(turns, names) <= self._max_turns and size <= self._max_bytes:
            return 0
        while (end := db.execute(OLDEST_END, (tenant,)).fetchone()) is not None:
            id, used = end
            turns, size = size_of(db, tenant)
            if used >= oldest and turns <= self._max_turns and size <= self._max_bytes:
                break
            db.execute("DELETE FROM conversations WHERE head = ?", (id,))
            db.execute("UPDATE turns SET visible = 0 WHERE id = ?", (id,))
            prune(db, id)
        db.execute(
            "DELETE FROM conversations WHERE head IS NULL AND tenant = ?1 AND (used < ?2 OR id NOT IN"
            " (SELECT id FROM conversations WHERE tenant = ?1 ORDER BY used DESC LIMIT ?3))",
            (tenant, oldest, self._max_turns),
        )
        return before - size_of(db, tenant)[0]


def _thread() -> ThreadPoolExecutor:
    """Begins with its first use."""
    return ThreadPoolExecutor(1, thread_name_prefix="responses")


_PREVIOUS = "previous_response_id"


def _no_conversation(id: str) -> NotFound:
    return NotFound(f"there is no conversation {id!r}", code="conversation_not_found")
