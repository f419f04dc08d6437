"""Who may write a data folder: one server at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ..errors import StartupError


class Lease:
    """Holds a folder as long as this process lives, however it ends, or until it is given back.

    Args:
        name: of the lock file: parts of a server that live in different processes have one each.

    Raises:
        StartupError: another server holds it.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, name: str = "lock") -> None:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise StartupError(
                f"the data folder {folder} is used by another server",
                "stop that one, or give this one its own --data-dir",
            ) from error
        self._descriptor: int | None = descriptor

    def give_back(self) -> None:
        """Let others have it; does nothing the second time."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
