"""Sessions inside the engine: who writes which one, what its slot starts from, what is committed.

All here runs in the engine's thread; `keeper.py` has the store behind it, `turn.py` what a turn remembers on its way.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import numpy as np

from ..errors import EngineError, InvalidRequest, RookeryError, SessionBusy
from ..state.hot import Place
from ..state.pool import State, StatePool
from ..state.store import Record
from .batch import Batch, Choice
from .keeper import Keeper
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
from .turn import Answer, Turn

EXPIRE_EVERY_S = 60.0


class Sessions:
    """Answers questions about sessions, for the engine.

    Args:
        keeper: has the store.
        pool: where the states of running requests live.
        compute: runs a request of no choice that the HTTP side knows of, from a state after so many tokens; its end
            is told by `left`.
        abandon: cancels a request by its id.
        ttl_s: seconds after which a session that nobody used is deleted; None never.
    """

    def __init__(
        self,
        keeper: Keeper,
        pool: StatePool,
        *,
        compute: Callable[[Request, int], None],
        abandon: Callable[[str], None],
        ttl_s: float | None = None,
    ) -> None:
        self.keeper = keeper
        self._pool = pool
        self._compute = compute
        self._abandon = abandon
        self._ttl_s = ttl_s
        self._expired_at = monotonic()
        self._turns: dict[str, Turn] = {}
        self._writers: dict[Place, Turn] = {}
        self._rests: dict[str, Turn] = {}
        """Turns whose history is being completed, by the id of the request that does it."""

    @property
    def busy(self) -> bool:
        """Whether an answer is on its way that `poll` will give."""
        return self.keeper.busy

    def poll(self) -> None:
        """Answer what the store has answered; now and then, look for sessions that nobody uses any more."""
        self.keeper.poll()
        if self._ttl_s is not None and monotonic() - self._expired_at >= EXPIRE_EVERY_S:
            self._expired_at = monotonic()
            self.keeper.expire(self._ttl_s, set(self._writers))

    def close(self) -> None:
        """Finish what is being stored, give the data folder back."""
        self.keeper.close()

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
            return turn.nearest(turn.settling[0])[1]
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
        keeper, tenant = self.keeper, question.tenant

        def tell(record: Record) -> None:
            answer(Told(sessions=[_view(record)]))

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
                keeper.page(
                    tenant,
                    limit=limit,
                    after=after,
                    done=lambda records: answer(Told(sessions=[_view(one) for one in records])),
                    failed=answer,
                )
            case ShowSession(session=id):
                keeper.show((tenant, id), tell, answer)
            case DeleteSession(session=id):
                self._claim((tenant, id))
                keeper.delete((tenant, id), tell, answer)
            case ForkSession(session=id, new=new):
                self._claim((tenant, new))
                keeper.fork((tenant, id), new, tell, answer)
            case ExportSession(session=id):
                keeper.export((tenant, id), lambda data: answer(Told(data=data)), answer)
            case ImportSession(session=id, data=data):
                self._claim((tenant, id))
                keeper.bring((tenant, id), data, tell, answer)

    def _open(self, question: OpenTurn, answer: Answer, owner: bytes) -> None:
        if question.turn in self._turns:
            raise InvalidRequest("this turn is open already")
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
        self._claim(turn.place)
        self._turns[turn.name] = self._writers[turn.place] = turn

        def opened(record: Record, base: State | None) -> None:
            turn.record, turn.base = record, base
            answer(Told(sessions=[_view(record)]))

        def refused(error: RookeryError) -> None:
            self._drop(turn)
            answer(error)

        self.keeper.open(blank, question.tuned_state, opened, refused)

    def _settle(self, turn: Turn, token_ids: list[int], answer: Answer) -> None:
        if not token_ids:
            raise InvalidRequest("a turn adds at least one token")
        turn.settling = token_ids, answer
        done, state = turn.nearest(token_ids)
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
            self._compute(rest, turn.record.tokens + done)
        except RookeryError as error:
            del self._rests[rest.id]
            self._fail(turn, error)

    def _commit(self, turn: Turn, state: State) -> None:
        assert turn.settling is not None
        token_ids, _ = turn.settling
        if not (np.isfinite(state.wkv).all() and np.isfinite(state.shift).all()):
            self._fail(turn, EngineError("the state of this turn holds numbers that are none; the turn is dropped"))
            return
        turn.kept.clear()

        def committed(record: Record) -> None:
            settling = turn.settling
            if settling is not None:  # else the turn was dropped, and others may have written the session since
                self.keeper.keep(record, state)
                self._drop(turn)
                settling[1](Told(sessions=[_view(record)]))

        self.keeper.commit(turn.record_after(len(token_ids)), state, committed, lambda error: self._fail(turn, error))

    def _fail(self, turn: Turn, error: RookeryError) -> None:
        settling = turn.settling
        self._drop(turn)
        if settling is not None:
            settling[1](error)

    def _drop(self, turn: Turn) -> None:
        """Let go of a session. What is being stored for it is stored all the same."""
        turn.settling = None
        if self._turns.pop(turn.name, None) is not None:
            del self._writers[turn.place]
        rest = f"{turn.name}/rest"
        if self._rests.get(rest) is turn:
            self._abandon(rest)
            self._rests.pop(rest, None)

    def _claim(self, place: Place) -> None:
        if place in self._writers:
            raise SessionBusy("another request is writing this session; try again when it is done")


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
