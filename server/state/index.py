"""SQLite tables that say which file holds what; a damaged one is set aside, never repaired by guessing."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

from ..errors import StartupError

log = logging.getLogger("rookery.state")


def open_index(
    path: Path | None, schema: str, *, version: int, synchronous: Literal["full", "off"] = "full"
) -> tuple[sqlite3.Connection, bool]:
    """An index, and whether it is the one that was there: a damaged one is kept under another name.

    Args:
        path: None is an index in memory.
        version: of the schema.
        synchronous: "full" has every transaction on disk when it ends.

    Raises:
        StartupError: a newer server wrote it.
        OSError, sqlite3.Error: it can be neither read nor made.
    """
    if path is None:
        return _open(None, schema, version, synchronous), False
    known = path.exists()
    try:
        index = _open(path, schema, version, synchronous)
        with closing(index.execute("pragma quick_check(1)")) as check:
            if check.fetchone() == ("ok",):
                return index, known
        index.close()
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # the disk's fault, not the file's
    aside = path.with_name(f"{path.name}.damaged-{int(time.time())}")
    log.error("the index %s is damaged; it is kept as %s and a new one begins", path, aside.name)
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return _open(path, schema, version, synchronous), False


def _open(path: Path | None, schema: str, version: int, synchronous: str) -> sqlite3.Connection:
    if path is not None:
        path.touch(mode=0o600)  # SQLite's own files beside it get the same mode
    index = sqlite3.connect(path or ":memory:", check_same_thread=False)
    try:
        index.execute("pragma journal_mode = wal")
        index.execute(f"pragma synchronous = {synchronous}")
        (found,) = index.execute("pragma user_version").fetchone()
        if found > version:
            raise StartupError(
                "the data folder was written by a newer server", "use that version, or another --data-dir"
            )
        index.executescript(schema)
        index.execute(f"pragma user_version = {version}")
    except BaseException:  # whatever it is: the file must not stay open
        index.close()
        raise
    return index
