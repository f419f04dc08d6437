"""Threads that work for tenants in turn, so that what one has piled up delays only its own."""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Lanes:
    """A pool of threads with a queue for each tenant.

    No tenant ever has all of the threads, so that one which comes after it finds one free, or has the next.

    Args:
        threads: at least 2.
        name: what the threads are called.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads - 1
        self._changed = threading.Condition()
        self._waiting: OrderedDict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = OrderedDict()
        """Of tenants with something to do; the one whose turn is next comes first."""
        self._running: Counter[str] = Counter()
        self._closed = False
        self._threads = [threading.Thread(target=self._run, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, tenant: str, work: Callable[[], T]) -> Future[T]:
        """Have a thread do this, after what the tenant asked for before; cancelled once closed."""
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._waiting.setdefault(tenant, deque()).append((future, work))
            self._changed.notify()
        return future

    def close(self) -> None:
        """End the threads, once what they are at is done; what waits is cancelled."""
        with self._changed:
            self._closed = True
            left = [future for queue in self._waiting.values() for future, _ in queue]
            self._waiting.clear()
            self._changed.notify_all()
        for future in left:
            future.cancel()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            tenant, future, work = taken
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # whatever it is, whoever waits for the result has to hear of it
                    future.set_exception(error)
            with self._changed:
                self._running[tenant] -= 1
                if not self._running[tenant]:
                    del self._running[tenant]
                self._changed.notify()

    def _take(self) -> tuple[str, Future[Any], Callable[[], Any]] | None:
        """The next thing to do, of the tenant whose turn it is; waits for one. None at the end."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                tenant = next((each for each in self._waiting if self._running[each] < self._most), None)
                if tenant is not None:
                    break
                self._changed.wait()
            queue = self._waiting.pop(tenant)
            self._running[tenant] += 1
            future, work = queue.popleft()
            if queue:
                self._waiting[tenant] = queue
            return tenant, future, work
