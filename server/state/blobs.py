"""Where the bytes of stored states lie: files that are written whole or not at all, or memory.

Every write has a name of its own and nothing is ever overwritten, so whoever reads a name finds all of it or nothing.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")


class Blobs(Protocol):
    """Bytes by name."""

    def write(self, data: bytes) -> str:
        """Store and return the name; when this returns, it is as safe as it will ever be.

        Raises:
            OSError: it could not be stored; nothing is left of it.
        """
        ...

    def read(self, name: str) -> bytes:
        """Raises OSError when there is no such name, or it cannot be read."""
        ...

    def remove(self, name: str) -> None:
        """Drop one; one that is not there is no error."""
        ...

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Names and bytes of all there is."""
        ...


class MemoryBlobs:
    """In this process; `budget_bytes` of them at most, then it is as full as a disk."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._used_bytes = 0
        self._held: dict[str, bytes] = {}

    def write(self, data: bytes) -> str:
        if self._used_bytes + len(data) > self._budget_bytes:
            raise OSError(errno.ENOSPC, "the memory for sessions is full")
        name = uuid.uuid4().hex
        self._held[name] = data
        self._used_bytes += len(data)
        return name

    def read(self, name: str) -> bytes:
        if name not in self._held:
            raise FileNotFoundError(errno.ENOENT, "not held")
        return self._held[name]

    def remove(self, name: str) -> None:
        self._used_bytes -= len(self._held.pop(name, b""))

    def sizes(self) -> Iterator[tuple[str, int]]:
        return iter([(name, len(data)) for name, data in self._held.items()])


class FileBlobs:
    """Files of one folder. A temporary name, fsync, rename, fsync of the folder: a crash leaves all or nothing.

    Args:
        durable: False leaves it to the system when files reach the disk: a process that is killed loses nothing, but a
            machine that loses power may leave files that are damaged, and whoever reads them must notice.
    """

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        self._folder = folder
        self._durable = durable
        folder.mkdir(mode=0o700, exist_ok=True)
        for unfinished in folder.glob("*.tmp"):
            unfinished.unlink()

    def write(self, data: bytes) -> str:
        name = f"{uuid.uuid4().hex}.safetensors"
        temporary = self._folder / f"{name}.tmp"
        target = self._folder / name
        try:
            self._fill(temporary, data)
            os.rename(temporary, target)
            if self._durable:
                self._sync_folder()
        except OSError:
            for left in (temporary, target):
                left.unlink(missing_ok=True)
            raise
        return name

    def read(self, name: str) -> bytes:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            if not self._folder.is_dir():  # not mounted, moved: then no file of it is lost
                raise OSError(errno.EIO, "the folder of the states is not there") from None
            raise

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Files that are not ours are passed over."""
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield entry.name, entry.stat(follow_symlinks=False).st_size

    def _fill(self, path: Path, data: bytes) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
