"""A thread for what may wait on a disk, so that no step of the engine does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Worker:
    """Runs jobs one after the other in a thread, and tells how they ended in the thread that polls.

    Args:
        name: of the thread.
        threaded: False runs each job at once: for jobs that never wait, and for tests.
    """

    def __init__(self, name: str, *, threaded: bool = True) -> None:
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Callable[[Any], None], Callable[[Exception], None]] | None]
        self._jobs = SimpleQueue()
        self._done: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._pending = 0
        self._thread = threading.Thread(target=self._run, name=name) if threaded else None
        if self._thread is not None:
            self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether a job has not been told of yet."""
        return self._pending > 0

    def run(self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[Exception], None]) -> None:
        """Run `job`; `poll` then calls `done` with what it returned or `failed` with what it raised."""
        self._pending += 1
        self._jobs.put((job, done, failed))
        if self._thread is None:
            self._jobs.put(None)
            self._run()

    def poll(self) -> None:
        """Tell of the jobs that have ended."""
        while True:
            try:
                tell = self._done.get_nowait()
            except Empty:
                return
            self._pending -= 1
            tell()

    def close(self) -> None:
        """Finish what was given, and end."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while (entry := self._jobs.get()) is not None:
            job, done, failed = entry
            self._done.put(_carry_out(job, done, failed))


def _carry_out(
    job: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]
) -> Callable[[], None]:
    """Run a job; what is to be told of it, for another thread to tell."""
    try:
        result = job()
    except Exception as error:  # whatever a job raises belongs to whoever asked for it
        reason = error
        return lambda: failed(reason)
    return lambda: done(result)
