"""Stored sessions: a row of an SQLite table for each, and its state as bytes beside it.

A commit is: the new bytes are safe, then the row points to them in one transaction, then the old bytes go. So a crash
at any moment leaves the row at the old state or at the new one. Only one process writes a data folder: it holds a lock.

Used from one thread at a time (`worker.py`).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

from ..errors import StartupError
from .blobs import Blobs, FileBlobs, MemoryBlobs
from .index import open_index
from .lease import Lease
from .pool import State
from .snapshot import Loaded, SnapshotError, StateDtype, StateFormat, read_snapshot, write_snapshot

log = logging.getLogger("rookery.state")

_SCHEMA = """
create table if not exists sessions (
    model text not null, tenant text not null, id text not null,
    blob text not null, checksum text not null, bytes integer not null,
    tokens integer not null, turns integer not null,
    created real not null, updated real not null,
    tuned_state text, parent text,
    primary key (model, tenant, id)
) without rowid;
create index if not exists sessions_by_blob on sessions (blob);
create index if not exists sessions_by_age on sessions (model, updated);
"""
_COLUMNS = "id, tenant, tokens, turns, created, updated, tuned_state, parent, blob, checksum, bytes"
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One session: what its state has consumed, and where the state is."""

    id: str
    tenant: str
    tokens: int
    """Consumed since the beginning of the session."""
    turns: int
    created: float
    """Unix time, seconds."""
    updated: float
    tuned_state: str | None = None
    """Name of the tuned state it began with."""
    parent: str | None = None
    """The session it was forked from."""
    blob: str = ""
    checksum: str = ""
    """Of the stored bytes: another session's bytes under this name do not pass."""
    bytes: int = 0


class StateStore:
    """Sessions of one model.

    Args:
        folder: the data folder; None keeps all in memory, `memory_bytes` at most.
        format: of this model's states; sessions of other models in the folder are left alone.
        dtype: of `wkv` in what is stored.
        clock: Unix time.

    Attributes:
        damaged: stored states found missing or damaged, since the start.

    Raises:
        StartupError: the folder cannot be used, or another server uses it.
    """

    def __init__(
        self,
        folder: Path | None,
        format: StateFormat,
        *,
        dtype: StateDtype = "float32",
        memory_bytes: int = 2**31,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._format = format
        self._model = format.model
        self._dtype = dtype
        self._clock = clock
        self.damaged = 0
        self._lease: Lease | None = None
        self._blobs: Blobs
        if folder is None:
            self._index, _ = open_index(None, _SCHEMA, version=SCHEMA_VERSION)
            self._blobs = MemoryBlobs(memory_bytes)
            return
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lease = Lease(folder)
            self._index, known = open_index(folder / "index.sqlite", _SCHEMA, version=SCHEMA_VERSION)
            self._blobs = FileBlobs(folder / "states")
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"the data folder {folder} cannot be used: {getattr(error, 'strerror', None) or error}",
                "give --data-dir a folder on a local disk that this user can write",
            ) from error
        self._look_over(known)

    def close(self) -> None:
        """Give the folder back."""
        self._index.close()
        if self._lease is not None:
            self._lease.give_back()

    def find(self, tenant: str, id: str) -> Record | None:
        """A session of this tenant."""
        rows = self._select("tenant = ? and id = ?", (tenant, id))
        return rows[0] if rows else None

    def page(self, tenant: str, *, limit: int, after: str = "") -> list[Record]:
        """Sessions of a tenant by id, those behind `after`."""
        return self._select("tenant = ? and id > ? order by id limit ?", (tenant, after, limit))

    def count(self, tenant: str | None = None) -> int:
        """Sessions of a tenant; of all."""
        where, values = ("", ()) if tenant is None else (" and tenant = ?", (tenant,))
        (number,) = self._index.execute(
            f"select count(*) from sessions where model = ?{where}", (self._model, *values)
        ).fetchone()
        return int(number)

    def size_bytes(self) -> int:
        """Of all states of this model; forks that share one count twice."""
        (size,) = self._index.execute("select sum(bytes) from sessions where model = ?", (self._model,)).fetchone()
        return int(size or 0)

    def load(self, record: Record) -> Loaded:
        """The state of a session.

        Raises:
            SnapshotError: it is missing or damaged.
            OSError: it cannot be read.
        """
        return read_snapshot(self.export(record), self._format, checked=True)

    def export(self, record: Record) -> bytes:
        """The state as a file's content; raises as `load` does."""
        try:
            data = self._blobs.read(record.blob)
        except FileNotFoundError as error:
            self.damaged += 1
            log.error("the state of session %r is missing", record.id)
            raise SnapshotError("it is missing") from error
        if checksum(data) != record.checksum:
            self.damaged += 1
            log.error("the state of session %r is damaged (%s)", record.id, record.blob)
            raise SnapshotError("it is damaged")
        return data

    def commit(self, record: Record, state: State) -> Record:
        """Make `state` the one of this session, new or not; the times are set here.

        Raises:
            OSError, sqlite3.Error: it could not be stored; the session is what it was.
        """
        data = write_snapshot(
            state, self._format, tokens=record.tokens, tuned_state=record.tuned_state, dtype=self._dtype
        )
        return self._store(record, data)

    def put(self, tenant: str, id: str, data: bytes) -> Record:
        """Make an exported state a session of this name.

        Raises:
            SnapshotError: it is damaged or another model's.
            OSError, sqlite3.Error: it could not be stored.
        """
        loaded = read_snapshot(data, self._format)
        record = Record(
            id=id, tenant=tenant, tokens=loaded.tokens, turns=1, created=0, updated=0, tuned_state=loaded.tuned_state
        )
        return self._store(record, data)

    def fork(self, record: Record, id: str) -> Record:
        """A second session with the same state; nothing is copied.

        Raises:
            sqlite3.Error: it could not be stored.
        """
        now = self._clock()
        child = replace(record, id=id, parent=record.id, created=now, updated=now)
        with self._index:
            self._write(child)
        return child

    def delete(self, record: Record) -> None:
        """Drop a session, and its state unless another one shares it."""
        with self._index:
            self._index.execute(
                "delete from sessions where model = ? and tenant = ? and id = ?",
                (self._model, record.tenant, record.id),
            )
        self._release(record.blob)

    def expire(self, ttl_s: float, keep: Callable[[Record], bool]) -> list[Record]:
        """Delete the sessions that nobody has used for so long, unless `keep` says no; these."""
        old = [one for one in self._select("updated < ?", (self._clock() - ttl_s,)) if not keep(one)]
        for record in old:
            self.delete(record)
        return old

    def _store(self, record: Record, data: bytes) -> Record:
        now = self._clock()
        before = self.find(record.tenant, record.id)
        blob = self._blobs.write(data)
        record = replace(
            record,
            created=before.created if before is not None else now,
            updated=now,
            blob=blob,
            checksum=checksum(data),
            bytes=len(data),
        )
        try:
            with self._index:
                self._write(record)
        except sqlite3.Error:
            with suppress(sqlite3.Error, OSError):  # what cannot be removed now goes at the next start
                self._release(blob)
            raise
        if before is not None:
            self._release(before.blob)
        return record

    def _write(self, record: Record) -> None:
        self._index.execute(
            f"insert or replace into sessions (model, {_COLUMNS}) values (?{', ?' * 11})",
            (
                self._model, record.id, record.tenant, record.tokens, record.turns, record.created, record.updated,
                record.tuned_state, record.parent, record.blob, record.checksum, record.bytes,
            ),
        )  # fmt: skip

    def _select(self, where: str, values: tuple[object, ...]) -> list[Record]:
        rows = self._index.execute(
            f"select {_COLUMNS} from sessions where model = ? and {where}", (self._model, *values)
        )
        names = _COLUMNS.split(", ")
        return [Record(**dict(zip(names, row, strict=True))) for row in rows]

    def _release(self, blob: str) -> None:
        """Drop bytes that no session has any more. Failing to costs disk until the next start, nothing else."""
        if self._index.execute("select 1 from sessions where blob = ?", (blob,)).fetchone() is None:
            try:
                self._blobs.remove(blob)
            except OSError as error:
                log.warning("an old state could not be removed: %s", error)

    def _look_over(self, trusted: bool) -> None:
        """Compare rows and files at the start. Files without a row are turns that never ended: they go, but only when
        the index is known to be whole; otherwise they may be all that is left of somebody's sessions."""
        sizes = dict(self._blobs.sizes())
        rows = dict(self._index.execute("select blob, bytes from sessions").fetchall())
        missing = [blob for blob, size in rows.items() if sizes.get(blob) != size]
        self.damaged += len(missing)
        for blob in missing:
            log.error("the state file %s is %s", blob, "cut short" if blob in sizes else "missing")
        stray = sizes.keys() - rows.keys()
        if stray and not trusted:
            log.error("%d state files have no index; `rookery sessions import` can bring them back", len(stray))
        elif stray:
            log.info("%d states of turns that did not end are removed", len(stray))
            for blob in stray:
                self._blobs.remove(blob)


def checksum(data: bytes) -> str:
    """Of stored bytes, 32 hex digits."""
    return blake2b(data, digest_size=16).hexdigest()
