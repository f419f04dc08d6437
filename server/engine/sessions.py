"""Turns of sessions inside the engine: who writes which session, what its slot starts from, what is committed.

A turn is committed as the state after exactly the tokens its history is to have. What the slot has consumed is seldom
just that: the last token drawn is not consumed, a stop string is consumed and not kept, reasoning is not kept. So the
turn keeps its state at the end of the prompt and at its own end, starts from the longer one that the history begins
with, and computes the rest.
"""

from __future__ import annotations

import logging
import sqlite3
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TypeVar

import torch

from ..errors import (
    EngineError,
    InvalidRequest,
    NotFound,
    RookeryError,
    SessionBusy,
    SessionDamaged,
    StorageFailed,
    TooManySessions,
)
from ..state.pool import State, StatePool
from ..state.snapshot import Loaded, SnapshotError
from ..state.store import Record, StateStore
from ..state.worker import Worker
from .questions import (
    DeleteSession,
    DropTurn,
    ExportSession,
    ForkSession,
    ImportSession,
    ListSessions,
    OpenTurn,
    Question,
    SessionView,
    SettleTurn,
    ShowSession,
    Told,
)
from .request import Request, SamplingParams
from .scheduler import Batch, Choice

log = logging.getLogger("rookery.state")

T = TypeVar("T")
Answer = Callable[[Told | RookeryError], None]
"""Called once, in the engine's thread, now or later."""

EXPIRE_EVERY_S = 60.0


@dataclass(slots=True, eq=False)
class Turn:
    """One writer's hold on one session."""

    name: str
    owner: bytes
    """The API process it belongs to."""
    record: Record
    """What the session is before the turn; of a new one, what it would be without a turn."""
    base: State | None = None
    """The state before the turn; None starts from nothing."""
    prompt_ids: tuple[int, ...] = ()
    kept: list[tuple[array[int], State]] = field(default_factory=list)
    """States on the way, with the turn's tokens that they have consumed."""
    ended: bool = False
    """Its request is done, and nothing more will be kept."""
    settling: tuple[list[int], Answer] | None = None
    """The tokens of the history, and who wants to know when they are stored."""

    def keep(self, consumed: Sequence[int], state: State) -> None:
        """Remember the state after these tokens of the turn."""
        self.kept.append((array("i", consumed), state))


class Sessions:
    """Answers questions about sessions, for the engine.

    Args:
        store: used in the worker's thread only.
        pool: where the states of running requests live.
        compute: runs a request of no choice that the HTTP side knows of, from a state; its end is told by `ended`.
        abandon: cancels a request by its id.
        limit: sessions that one tenant may have.
        ttl_s: seconds after which a session that nobody used is deleted; None never.
    """

    def __init__(
        self,
        store: StateStore,
        worker: Worker,
        pool: StatePool,
        *,
        compute: Callable[[Request], None],
        abandon: Callable[[str], None],
        limit: int,
        ttl_s: float | None = None,
    ) -> None:
        self.stored = store.count()
        self.stored_bytes = store.size_bytes()
        self.damaged = store.damaged
        self._store = store
        self._worker = worker
        self._pool = pool
        self._compute = compute
        self._abandon = abandon
        self._limit = limit
        self._ttl_s = ttl_s
        self._expired_at = monotonic()
        self._turns: dict[str, Turn] = {}
        self._writers: dict[tuple[str, str], Turn] = {}
        self._rests: dict[str, Turn] = {}
        """Turns whose history is being completed, by the id of the request that does it."""

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way that `poll` will give."""
        return self._worker.busy

    def poll(self) -> None:
        """Answer what the store has answered; now and then, look for sessions that nobody uses any more."""
        self._worker.poll()
        if self._ttl_s is not None and monotonic() - self._expired_at >= EXPIRE_EVERY_S:
            self._expired_at = monotonic()
            self.expire()

    def close(self) -> None:
        """Finish what is being stored, give the data folder back."""
        self._worker.close()
        self._worker.poll()
        self._store.close()

    def expire(self) -> None:
        """Delete the sessions that nobody used for too long."""
        if self._ttl_s is None:
            return
        ttl_s, writers = self._ttl_s, set(self._writers)
        self._run(lambda: self._store.expire(ttl_s, lambda one: (one.tenant, one.id) in writers), lambda _: None, _mute)

    def ask(self, question: Question, answer: Answer, *, owner: bytes = b"") -> None:
        """Answer a question, when it can be answered."""
        try:
            self._ask(question, answer, owner)
        except RookeryError as error:
            answer(error)

    def forget(self, owner: bytes) -> None:
        """An API process is gone: its turns will never be settled."""
        for turn in [turn for turn in self._turns.values() if turn.owner == owner]:
            self._drop(turn)

    # what the engine tells

    def begin(self, request: Request) -> Turn:
        """The turn that this request writes.

        Raises:
            InvalidRequest: it is of no open turn, or of one that has a request already.
        """
        turn = self._turns.get(request.id)
        if turn is None or turn.prompt_ids or request.choices != 1:
            raise InvalidRequest("a request of a session needs a turn of its own, and one choice", param="session_id")
        turn.prompt_ids = request.prompt_ids
        return turn

    def base(self, request_id: str) -> State | None:
        """What a request starts from, where that is not the model's own first state."""
        if (turn := self._turns.get(request_id)) is not None:
            return turn.base
        if (turn := self._rests.get(request_id)) is not None and turn.settling is not None:
            return self._nearest(turn, turn.settling[0])[1]
        return None

    def consumed(self, batch: Batch) -> None:
        """A step has moved the states of its slots on: keep those at the ends and boundaries of turns' prompts."""
        for chunk in batch.chunks:
            turn = self._turns.get(chunk.prefill.request.id)
            if turn is not None and (chunk.last or chunk.stop in chunk.prefill.request.boundaries):
                turn.keep(chunk.prefill.token_ids[: chunk.stop], self._pool.save(chunk.slot))
        for prefill in batch.known:
            turn = self._turns.get(prefill.request.id)
            if turn is not None:
                turn.keep(prefill.token_ids, self._pool.save(prefill.choices[0].slot))

    def left(self, choice: Choice, slot: int, *, whole: bool) -> None:
        """A choice has ended; `whole` says that its slot holds what it has consumed."""
        id = choice.request.id
        if (turn := self._turns.get(id)) is not None:
            turn.ended = True
            if whole:
                turn.keep((*turn.prompt_ids, *choice.tokens[:-1]), self._pool.save(slot))
        elif (turn := self._rests.pop(id, None)) is not None and turn.settling is not None:
            if whole:
                self._commit(turn, self._pool.save(slot))
            else:
                self._fail(turn, EngineError("the engine failed while it completed the session's turn"))

    # questions

    def _ask(self, question: Question, answer: Answer, owner: bytes) -> None:
        store, tenant = self._store, question.tenant
        match question:
            case OpenTurn():
                self._open(question, answer, owner)
            case SettleTurn(turn=name):
                turn = self._turns.get(name)
                if turn is None or turn.record.tenant != tenant or not turn.ended or turn.settling is not None:
                    raise InvalidRequest("there is no such turn to settle")
                self._settle(turn, question.token_ids, answer)
            case DropTurn(turn=name):
                turn = self._turns.get(name)
                if turn is not None and turn.record.tenant == tenant:
                    self._drop(turn)
            case ListSessions(limit=limit, after=after):
                self._tell(lambda: [_view(one) for one in store.page(tenant, limit=limit, after=after)], answer)
            case ShowSession(session=id):
                self._tell(lambda: [_view(self._find(tenant, id))], answer)
            case DeleteSession(session=id):
                self._claim(tenant, id)
                self._tell(lambda: self._delete(tenant, id), answer)
            case ForkSession(session=id, new=new):
                self._claim(tenant, new)
                self._tell(lambda: [self._fork(tenant, id, new)], answer)
            case ExportSession(session=id):
                self._run(lambda: store.export(self._find(tenant, id)), lambda data: answer(Told(data=data)), answer)
            case ImportSession(session=id, data=data):
                self._claim(tenant, id)
                self._tell(lambda: [self._import(tenant, id, data)], answer)

    def _open(self, question: OpenTurn, answer: Answer, owner: bytes) -> None:
        place = (question.tenant, question.session)
        if question.turn in self._turns:
            raise InvalidRequest("this turn is open already")
        self._claim(*place)
        blank = Record(
            id=question.session,
            tenant=question.tenant,
            tokens=0,
            turns=0,
            created=0,
            updated=0,
            tuned_state=question.tuned_state,
        )
        turn = Turn(question.turn, owner, blank)
        self._turns[turn.name] = self._writers[place] = turn

        def find() -> tuple[Record, State | None]:
            record = self._store.find(*place)
            if record is None:
                self._check_limit(question.tenant)
                return blank, None
            if question.tuned_state not in (None, record.tuned_state):
                raise InvalidRequest(f"the session began with the state {record.tuned_state!r}", param="state")
            return record, self._load(record).state

        def opened(found: tuple[Record, State | None]) -> None:
            turn.record, turn.base = found
            answer(Told(sessions=[_view(turn.record)]))

        def refused(error: RookeryError) -> None:
            self._drop(turn)
            answer(error)

        self._run(find, opened, refused)

    def _settle(self, turn: Turn, token_ids: list[int], answer: Answer) -> None:
        if not token_ids:
            raise InvalidRequest("a turn adds at least one token")
        turn.settling = token_ids, answer
        done, state = self._nearest(turn, token_ids)
        if done == len(token_ids) and state is not None:
            self._commit(turn, state)
            return
        rest = Request(
            id=f"{turn.name}/rest",
            prompt_ids=tuple(token_ids[done:]),
            sampling=SamplingParams(max_tokens=0),
            tenant=turn.record.tenant,
            tuned_state=turn.record.tuned_state,
            cache=state is None,  # prefixes are kept by all their tokens: these begin in the middle
        )
        self._rests[rest.id] = turn
        try:
            self._compute(rest)
        except RookeryError as error:
            del self._rests[rest.id]
            self._fail(turn, error)

    def _nearest(self, turn: Turn, token_ids: list[int]) -> tuple[int, State | None]:
        """The longest state of a turn that these tokens begin with, and how many of them it has consumed."""
        wanted = array("i", token_ids)
        best: tuple[int, State | None] = (0, turn.base)
        for consumed, state in turn.kept:
            if len(consumed) > best[0] and wanted[: len(consumed)] == consumed:
                best = len(consumed), state
        return best

    def _commit(self, turn: Turn, state: State) -> None:
        assert turn.settling is not None
        token_ids, _ = turn.settling
        old = turn.record
        if not torch.isfinite(state.wkv).all() or not torch.isfinite(state.shift).all():
            self._fail(turn, EngineError("the state of this turn holds numbers that are none; the turn is dropped"))
            return
        record = Record(
            id=old.id,
            tenant=old.tenant,
            tokens=old.tokens + len(token_ids),
            turns=old.turns + 1,
            created=old.created,
            updated=old.updated,
            tuned_state=old.tuned_state,
            parent=old.parent,
        )
        turn.kept.clear()
        self._run(
            lambda: self._store.commit(record, state), lambda new: self._committed(turn, new), self._failing(turn)
        )

    def _committed(self, turn: Turn, record: Record) -> None:
        settling = turn.settling
        self._drop(turn)
        if settling is not None:
            settling[1](Told(sessions=[_view(record)]))

    def _failing(self, turn: Turn) -> Callable[[RookeryError], None]:
        return lambda error: self._fail(turn, error)

    def _fail(self, turn: Turn, error: RookeryError) -> None:
        settling = turn.settling
        self._drop(turn)
        if settling is not None:
            settling[1](error)

    def _drop(self, turn: Turn) -> None:
        """Let go of a session. What is being stored for it is stored all the same."""
        turn.settling = None
        if self._turns.pop(turn.name, None) is not None:
            del self._writers[turn.record.tenant, turn.record.id]
        rest = f"{turn.name}/rest"
        if self._rests.get(rest) is turn:
            self._abandon(rest)
            self._rests.pop(rest, None)

    def _claim(self, tenant: str, id: str) -> None:
        if (tenant, id) in self._writers:
            raise SessionBusy("another request is writing this session; try again when it is done")

    # in the worker's thread

    def _find(self, tenant: str, id: str) -> Record:
        record = self._store.find(tenant, id)
        if record is None:
            raise NotFound("there is no such session", param="session_id")
        return record

    def _load(self, record: Record) -> Loaded:
        loaded = self._store.load(record)
        if loaded.tokens != record.tokens:
            raise SnapshotError("it is another session's")
        return loaded

    def _check_limit(self, tenant: str) -> None:
        if self._store.count(tenant) >= self._limit:
            raise TooManySessions(f"this key has {self._limit} sessions already; delete some")

    def _delete(self, tenant: str, id: str) -> list[SessionView]:
        record = self._find(tenant, id)
        self._store.delete(record)
        return [_view(record)]

    def _fork(self, tenant: str, id: str, new: str) -> SessionView:
        record = self._find(tenant, id)
        if self._store.find(tenant, new) is not None:
            raise InvalidRequest("there is a session of that name already", param="id")
        self._check_limit(tenant)
        return _view(self._store.fork(record, new))

    def _import(self, tenant: str, id: str, data: bytes) -> SessionView:
        if self._store.find(tenant, id) is None:
            self._check_limit(tenant)
        try:
            return _view(self._store.put(tenant, id, data))
        except SnapshotError as error:
            raise InvalidRequest(f"the file cannot be used: {error}", code="invalid_state") from error

    # between the threads

    def _tell(self, job: Callable[[], list[SessionView]], answer: Answer) -> None:
        self._run(job, lambda views: answer(Told(sessions=views)), answer)

    def _run(self, job: Callable[[], T], done: Callable[[T], None], failed: Callable[[RookeryError], None]) -> None:
        """Run a job on the store; the session's counts follow."""

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


def _view(record: Record) -> SessionView:
    return SessionView(
        id=record.id,
        tokens=record.tokens,
        turns=record.turns,
        created=record.created,
        updated=record.updated,
        tuned_state=record.tuned_state,
        parent=record.parent,
        bytes=record.bytes,
    )
