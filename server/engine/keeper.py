"""The store of sessions as the engine uses it: jobs run in a worker's thread, and what they find comes back in the
engine's own. Sessions used last are in memory too, so that a chat that goes on waits for no disk before its turn.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Collection
from typing import TypeVar

from ..errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    RookeryError,
    SessionDamaged,
    StorageFailed,
    TooManySessions,
)
from ..state.hot import HotSessions, Place
from ..state.pool import State
from ..state.snapshot import SnapshotError
from ..state.store import Record, StateStore
from ..state.worker import Worker

log = logging.getLogger("rookery.state")

T = TypeVar("T")
Failed = Callable[[RookeryError], None]


class Keeper:
    """Every call answers once, by `done` or `failed`, in the engine's thread: at once or at a later `poll`.

    Args:
        store: used in the worker's thread only.
        limit: sessions that one tenant may have.
        hot_bytes: memory for states of sessions used last; 0 keeps none.

    Attributes:
        stored, stored_bytes, damaged: of the store, as of its last job.
        hot: the sessions used last.
    """

    def __init__(self, store: StateStore, worker: Worker, *, limit: int, hot_bytes: int) -> None:
        self.stored = store.count()
        self.stored_bytes = store.size_bytes()
        self.damaged = store.damaged
        self.hot = HotSessions(hot_bytes)
        self._store = store
        self._worker = worker
        self._limit = limit

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way that `poll` will give."""
        return self._worker.busy

    def poll(self) -> None:
        """Answer what the store has answered."""
        self._worker.poll()

    def close(self) -> None:
        """Finish what is being stored, give the data folder back."""
        self._worker.close()
        self._worker.poll()
        self._store.close()

    def open(
        self, blank: Record, tuned_state: str | None, done: Callable[[Record, State | None], None], failed: Failed
    ) -> None:
        """The session of this tenant and id and its state; `blank` and None where there is none yet.

        A session that was in memory is there no longer: whoever opens it may change it, and gives it back by `keep`.
        """
        place = blank.tenant, blank.id
        held = self.hot.take(place)
        if held is not None:
            try:
                _check_beginning(held[0], tuned_state)
            except InvalidRequest as error:
                self.hot.put(*held)
                failed(error)
            else:
                done(*held)
            return

        def find() -> tuple[Record, State | None]:
            record = self._store.find(*place)
            if record is None:
                self._check_limit(blank.tenant)
                return blank, None
            _check_beginning(record, tuned_state)
            loaded = self._store.load(record)
            if loaded.tokens != record.tokens:
                raise SnapshotError("it is another session's")
            return record, loaded.state

        self._run(find, lambda found: done(*found), failed)

    def keep(self, record: Record, state: State) -> None:
        """This is what was committed, and nobody has written the session since: hold it in memory."""
        self.hot.put(record, state)

    def commit(self, record: Record, state: State, done: Callable[[Record], None], failed: Failed) -> None:
        """Store a session's new state; `done` when it is as safe as it will be."""
        self._run(lambda: self._store.commit(record, state), done, failed)

    def page(
        self, tenant: str, *, limit: int, after: str, done: Callable[[list[Record]], None], failed: Failed
    ) -> None:
        """Sessions of a tenant by id, those behind `after`."""
        self._run(lambda: self._store.page(tenant, limit=limit, after=after), done, failed)

    def show(self, place: Place, done: Callable[[Record], None], failed: Failed) -> None:
        """One session."""
        self._run(lambda: self._find(place), done, failed)

    def export(self, place: Place, done: Callable[[bytes], None], failed: Failed) -> None:
        """Its state as a file's content."""
        self._run(lambda: self._store.export(self._find(place)), done, failed)

    def delete(self, place: Place, done: Callable[[Record], None], failed: Failed) -> None:
        """Forget a session that nobody writes."""
        self.hot.take(place)

        def job() -> Record:
            record = self._find(place)
            self._store.delete(record)
            return record

        self._run(job, done, failed)

    def fork(self, place: Place, new: str, done: Callable[[Record], None], failed: Failed) -> None:
        """Copy a session to a new id of the same tenant."""

        def job() -> Record:
            record = self._find(place)
            if self._store.find(record.tenant, new) is not None:
                raise InvalidRequest("there is a session of that name already", param="id")
            self._check_limit(record.tenant)
            return self._store.fork(record, new)

        self._run(job, done, failed)

    def bring(self, place: Place, data: bytes, done: Callable[[Record], None], failed: Failed) -> None:
        """Make an exported state this session's, new or not, which nobody writes."""
        self.hot.take(place)

        def job() -> Record:
            if self._store.find(*place) is None:
                self._check_limit(place[0])
            try:
                return self._store.put(*place, data)
            except SnapshotError as error:
                raise InvalidRequest(f"the file cannot be used: {error}", code="invalid_state") from error

        self._run(job, done, failed)

    def expire(self, ttl_s: float, written: Collection[Place]) -> None:
        """Delete the sessions that nobody used for so long, except those that are being written."""

        def gone(records: list[Record]) -> None:
            for record in records:
                self.hot.take((record.tenant, record.id))

        self._run(lambda: self._store.expire(ttl_s, lambda one: (one.tenant, one.id) in written), gone, _mute)

    def _find(self, place: Place) -> Record:
        record = self._store.find(*place)
        if record is None:
            raise NotFound("there is no such session", param="session_id")
        return record

    def _check_limit(self, tenant: str) -> None:
        if self._store.count(tenant) >= self._limit:
            raise TooManySessions(f"this key has {self._limit} sessions already; delete some")

    def _run(self, job: Callable[[], T], done: Callable[[T], None], failed: Failed) -> None:
        """Run a job on the store; the counts follow."""

        def counted() -> tuple[T, int, int, int]:
            result = job()
            return result, self._store.count(), self._store.size_bytes(), self._store.damaged

        def ended(result: tuple[T, int, int, int]) -> None:
            _, self.stored, self.stored_bytes, self.damaged = result
            done(result[0])

        def broke(error: Exception) -> None:
            self.damaged = self._store.damaged
            failed(_as_answer(error))

        self._worker.run(counted, ended, broke)


def _check_beginning(record: Record, tuned_state: str | None) -> None:
    if tuned_state not in (None, record.tuned_state):
        raise InvalidRequest(f"the session began with the state {record.tuned_state!r}", param="state")


def _as_answer(error: Exception) -> RookeryError:
    """What a client is told of a failure of the store."""
    if isinstance(error, RookeryError):
        return error
    if isinstance(error, SnapshotError):
        return SessionDamaged(f"the stored state of this session cannot be used: {error}; delete it or start another")
    if isinstance(error, OSError | sqlite3.Error):
        log.error("the state store failed: %s", error)
        return StorageFailed("the session could not be stored or read: the server's storage failed; it is as it was")
    log.error("the state store failed", exc_info=error)
    return EngineError("the server failed to handle this session")


def _mute(error: RookeryError) -> None:
    log.error("sessions could not be expired: %s", error.message)
