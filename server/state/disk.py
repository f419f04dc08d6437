"""Prefix states in files under a byte budget: they outlive the memory's budget, and the server.

Files and an SQLite index, written and read by a thread that no step waits for. All of it is a cache: nothing is
fsynced, what comes faster than it can be written is left out, and what is damaged, missing or another's is dropped and
computed again. Files are never trusted by their name: the index has the checksum of the bytes under each key.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..errors import StartupError
from .blobs import FileBlobs
from .index import open_index
from .memory import Snapshot
from .shelf import Shelf
from .snapshot import SnapshotError, StateDtype, StateFormat, read_snapshot, write_snapshot
from .store import checksum
from .worker import Worker

log = logging.getLogger("rookery.state")

FILE_BYTES = 64 * 2**10
"""What a file counts at least, so that a budget bounds their number too: each has an entry in this process."""
WAITING_BYTES = 256 * 2**20
"""States that may wait to be written; they are held in memory so long."""
RESERVE_BYTES = 256 * 2**20
"""Free space that is left for sessions: below it no prefix is written."""
SCHEMA_VERSION = 1
_SCHEMA = """
create table if not exists prefixes (
    blob text primary key, key blob not null, namespace blob not null, tokens integer not null,
    complete integer not null, checksum text not null, bytes integer not null,
    gain integer not null, hits integer not null
) strict;
"""
_COLUMNS = "blob, key, namespace, tokens, complete, checksum, bytes, gain, hits"


@dataclass(slots=True, eq=False)
class _Entry:
    complete: bool
    """Whether the model's output at the last token is there too."""
    waiting: Snapshot | None = None
    """What is to be written still; then there is no file yet."""
    blob: str = ""
    checksum: str = ""


class DiskTier:
    """Snapshots by key, at most `budget_bytes` of them (`ranking.py` says which ones).

    Called in one thread, the engine's; the worker's alone touches the disk.

    Args:
        folder: in a data folder that this server has the lease of.
        format: of this model's states.
        dtype: of `wkv` in the files.

    Attributes:
        hits: states read and found sound. skipped: that were not written, for want of time or space.
        damaged: files found missing, damaged or foreign, since the start.

    Raises:
        StartupError: the folder cannot be used.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, format: StateFormat, *, dtype: StateDtype, worker: Worker
    ) -> None:
        self.hits = self.skipped = self.damaged = 0
        self._shelf = Shelf[_Entry](budget_bytes)
        self._waiting_bytes = 0
        self._failing = False
        self._folder = folder
        self._format = format
        self._dtype: StateDtype = dtype
        self._worker = worker
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._index, _ = open_index(folder / "index.sqlite", _SCHEMA, version=SCHEMA_VERSION, synchronous="off")
            self._blobs = FileBlobs(folder / "states", durable=False)
            self._look_over()
        except (OSError, sqlite3.Error) as error:
            raise StartupError(
                f"the folder {folder} cannot be used: {getattr(error, 'strerror', None) or error}",
                "give --data-dir a folder on a local disk that this user can write, or --cache-disk 0",
            ) from error

    @property
    def used_bytes(self) -> int:
        return self._shelf.used_bytes

    @property
    def evictions(self) -> int:
        return self._shelf.evictions

    def __len__(self) -> int:
        return len(self._shelf)

    def lengths(self, namespace: bytes) -> Iterable[int]:
        """At which prefixes of a namespace end that are here."""
        return self._shelf.places.lengths(namespace)

    def has(self, key: bytes, *, complete: bool = False) -> bool:
        """Whether the state of a prefix is here; `complete` asks for the output of its last token too."""
        entry = self._shelf.peek(key)
        return entry is not None and (entry.complete or not complete)

    def put(self, namespace: bytes, length: int, key: bytes, snapshot: Snapshot, *, gain: int) -> bool:
        """Have a state written, in place of what the key had; whether it will be.

        Args:
            gain: prompt tokens that a use of it saves.
        """
        size = max(snapshot.size_bytes, FILE_BYTES)
        if self._waiting_bytes and self._waiting_bytes + size > WAITING_BYTES:
            self.skipped += 1
            return False
        self.discard(key)
        entry = _Entry(snapshot.hidden is not None, waiting=snapshot)
        evicted = self._shelf.put(namespace, length, key, entry, size_bytes=size, gain=gain)
        if evicted is None:
            return False
        for gone in evicted:
            self._forget(gone)
        self._waiting_bytes += size

        def written(file: tuple[str, str] | None) -> None:
            self._waiting_bytes -= size
            entry.waiting = None
            here = self._shelf.peek(key) is entry
            if file is None:
                self.skipped += here
                self._lose(key, entry)
                return
            self._failing = False
            entry.blob, entry.checksum = file
            if not here:  # dropped meanwhile
                self._remove(entry.blob)

        def failed(error: Exception) -> None:
            if not self._failing:  # told once, not for every state while a disk is full
                log.warning("a prefix could not be written to the disk: %s", error)
            self._failing = True
            written(None)

        self._worker.run(lambda: self._write(entry, (key, namespace, length, gain)), written, failed)
        return True

    def fetch(self, key: bytes, done: Callable[[Snapshot | None], None]) -> None:
        """Read a state that is here; `done` is called with it now or at a later `poll`, with None where it is not sound
        and so is here no longer."""
        entry = self._shelf.peek(key)
        assert entry is not None
        if entry.waiting is not None:
            done(entry.waiting)
            return

        def read(snapshot: Snapshot) -> None:
            self.hits += 1
            if self._shelf.peek(key) is entry:
                self._shelf.use(key)
            done(snapshot)

        def failed(error: Exception) -> None:
            self.damaged += 1
            log.warning("the file %s of a prefix cannot be used: %s", entry.blob, error)
            self._lose(key, entry)
            done(None)

        self._worker.run(lambda: self._read(entry), read, failed)

    def discard(self, key: bytes) -> None:
        """Drop one, if it is here."""
        entry = self._shelf.remove(key)
        if entry is not None:
            self._forget(entry)

    def poll(self) -> None:
        """Take note of what the thread has done."""
        self._worker.poll()

    def close(self) -> None:
        """Write what waits, and how often each file was used."""
        self._worker.close()
        self._worker.poll()
        hits = [(uses, entry.blob) for _, entry, uses in self._shelf]
        try:
            with self._index:
                self._index.executemany("update prefixes set hits = ?1 where blob = ?2 and hits < ?1", hits)
        except sqlite3.Error as error:
            log.warning("the uses of stored prefixes could not be noted: %s", error)
        self._index.close()

    def _forget(self, entry: _Entry) -> None:
        """A key has it no longer: its file goes, or is not written at all."""
        entry.waiting = None
        if entry.blob:
            self._remove(entry.blob)

    def _lose(self, key: bytes, entry: _Entry) -> None:
        """What an entry stands for is not there."""
        if self._shelf.peek(key) is entry:
            self.discard(key)

    def _remove(self, blob: str) -> None:
        def failed(error: Exception) -> None:
            log.warning("the file %s of a prefix could not be removed: %s", blob, error)

        self._worker.run(lambda: self._erase([blob]), lambda _: None, failed)

    # in the worker's thread

    def _write(self, entry: _Entry, place: tuple[bytes, bytes, int, int]) -> tuple[str, str] | None:
        """Name and checksum of the new file; None where nobody wants it any more, or there is too little space."""
        snapshot = entry.waiting
        space = os.statvfs(self._folder)
        if snapshot is None or space.f_bavail * space.f_frsize < RESERVE_BYTES + snapshot.size_bytes:
            return None
        key, namespace, length, gain = place
        data = write_snapshot(
            snapshot.state, self._format, tokens=length, tuned_state=None, dtype=self._dtype, hidden=snapshot.hidden
        )
        digest = checksum(data)
        blob = self._blobs.write(data)
        row = (blob, key, namespace, length, int(entry.complete), digest, len(data), gain, 0)
        try:
            with self._index:
                self._index.execute(f"insert into prefixes ({_COLUMNS}) values (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error:
            self._blobs.remove(blob)
            raise
        return blob, digest

    def _read(self, entry: _Entry) -> Snapshot:
        data = self._blobs.read(entry.blob)
        if checksum(data) != entry.checksum:
            raise SnapshotError("it is damaged")
        loaded = read_snapshot(data, self._format, checked=True)
        return Snapshot(loaded.state, loaded.hidden)

    def _erase(self, blobs: Collection[str]) -> None:
        with self._index:
            self._index.executemany("delete from prefixes where blob = ?", [(blob,) for blob in blobs])
        for blob in blobs:
            self._blobs.remove(blob)

    def _look_over(self) -> None:
        """At the start: take in what index and folder agree on, the best first, and drop what is beyond the budget."""
        sizes = dict(self._blobs.sizes())
        gone = set(sizes)
        rows = self._index.execute(
            f"select {_COLUMNS} from prefixes order by gain * (1.0 + hits) / bytes desc"
        ).fetchall()
        for blob, key, namespace, length, complete, digest, size, gain, hits in rows:
            gone.add(blob)
            if sizes.get(blob) != size:
                self.damaged += 1
            elif key not in self._shelf and self._shelf.fits(max(size, FILE_BYTES)):
                gone.remove(blob)
                entry = _Entry(bool(complete), blob=blob, checksum=digest)
                self._shelf.put(namespace, length, key, entry, size_bytes=max(size, FILE_BYTES), gain=gain, hits=hits)
        self._erase(gone)
