"""The engine: one forward pass a step over everything that runs, one token for each row that is ready.

A plain class that tests drive directly; `process.py` puts it behind a socket.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from ..errors import InvalidRequest
from ..model.base import Model
from ..state.cache import PrefixCache
from ..state.disk import DiskTier
from ..state.pool import State
from ..state.store import StateStore
from ..state.worker import Worker
from .batch import Batch, Choice, Prefill
from .choice_sampling import ChoiceSampling, Outcome
from .constraint import Constraints
from .fits import fits
from .forward import Forward
from .gauges import gauges
from .keeper import Keeper
from .pace import Pace
from .request import EngineStats, FinishReason, Request, TokenEvent, TokenLogprobs
from .reuse import PrefixReuse
from .sampler import Draw, Sampler, commit
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .device import Device  # torch, and a device that works by itself, are needed for these two
    from .loop import DeviceLoop, Flight
    from .sessions import Sessions  # brings the wire format, which an engine that is measured alone does not need

logger = logging.getLogger(__name__)

STEP_FAILED = "the engine failed while it computed this request; the others go on"


class Engine:
    """Runs requests on a model.

    Args:
        model: where the tokens go through; its pool has `max_batch` slots.
        max_batch: choices that run at the same time.
        max_queue: requests that may wait for a slot.
        prefill_budget: prompt tokens computed in one step at most, over all rows.
        step_target_s: what a step with prompts should take, in seconds; None leaves it to `prefill_budget` alone.
        clock: in seconds; measures steps.
        constraints: compiles grammars; None refuses requests that have one.
        cache_bytes: host memory for states that later requests can start from; 0 keeps none.
        identity: what makes those states this engine's own: weights, tokenizer, dtype.
    """

    def __init__(
        self,
        model: Model,
        *,
        max_batch: int,
        max_queue: int,
        prefill_budget: int,
        step_target_s: float | None = None,
        clock: Callable[[], float] = perf_counter,
        constraints: Constraints | None = None,
        cache_bytes: int = 0,
        identity: str = "",
    ) -> None:
        self.model = model
        self.scheduler = Scheduler(
            max_batch=max_batch, max_queue=max_queue, prefill_budget=prefill_budget, piece=model.piece
        )
        self.pace = Pace(prefill_budget, step_target_s)
        self._clock = clock
        self.pool = model.new_pool(max_batch)
        self.forward = Forward(model, self.pool)
        self.sampler = Sampler()
        self.constraints = constraints
        self._identity = identity
        self.reuse: PrefixReuse | None = None
        if cache_bytes:
            self.reuse = PrefixReuse(PrefixCache(cache_bytes), self.pool, identity, model.initial_state)
        self.sessions: Sessions | None = None
        """Where `attach` has given a store for them."""
        self._unheard: set[str] = set()
        """Requests of our own, whose events nobody is to see."""
        self.loop: DeviceLoop | None = None
        """Where steps overlap; None computes each to its end."""
        self._flight: Flight | None = None
        """The step whose tokens have not been read."""
        self._by_host: set[Choice] = set()
        """Choices whose tokens only the host can draw."""
        self._seconds = self._done_at = 0.0
        """What the last step took, and when it was over."""
        self._sampling: dict[Choice, ChoiceSampling] = {}
        self._ended: list[TokenEvent] = []
        """Events of choices that ended between steps; the next step reports them."""
        self._stats = EngineStats(slots_free=max_batch)

    @property
    def busy(self) -> bool:
        """Whether a request is waiting or running, or an event has to be reported."""
        held = bool(self._ended) or self._flight is not None
        return held or self.scheduler.busy or (self.sessions is not None and self.sessions.busy)

    @property
    def steps(self) -> int:
        """Forward passes made so far, failed ones too."""
        return self._stats.steps

    def close(self) -> None:
        """Stop the threads that compile grammars and write states."""
        if self.constraints is not None:
            self.constraints.close()
        if self.sessions is not None:
            self.sessions.close()
        if self.reuse is not None:
            self.reuse.close()

    def attach(
        self,
        store: StateStore,
        *,
        max_sessions: int,
        hot_bytes: int = 0,
        session_ttl_s: float | None = None,
        threaded: bool = True,
    ) -> None:
        """Serve the sessions of a store, which is the engine's own from now on.

        Args:
            max_sessions: of one tenant.
            hot_bytes: host memory for the states of sessions used last, which then need not be read from the store.
            session_ttl_s: how long a session is kept that nobody uses; None for ever.
            threaded: whether the store may wait for a disk; False answers at once.
        """
        from .sessions import Sessions

        keeper = Keeper(store, Worker("session store", threaded=threaded), limit=max_sessions, hot_bytes=hot_bytes)
        self.sessions = Sessions(keeper, self.pool, compute=self._compute, abandon=self.cancel, ttl_s=session_ttl_s)

    def keep_on(self, disk: DiskTier) -> None:
        """Keep prefix states on a disk too, which is the engine's own from now on; before the first request."""
        if self.reuse is None:
            self.reuse = PrefixReuse(PrefixCache(0), self.pool, self._identity, self.model.initial_state)
        self.reuse.cache.disk = disk

    def _compute(self, request: Request, origin: int) -> None:
        """Run a request of our own, ahead of the queue, from a state that has consumed `origin` tokens."""
        self._unheard.add(request.id)
        for choice in self.scheduler.submit(request, first=True, origin=origin):
            self._sampling[choice] = ChoiceSampling(request.sampling, choice.index)  # which draws nothing

    def rest(self) -> None:
        """Nothing runs, and perhaps nothing will for long: give back the memory that work alone needs."""
        assert not self.busy
        self.pool.rest()
        self.model.rest()

    def stats(self) -> EngineStats:
        """As of now."""
        return gauges(self._stats, self.scheduler, self.reuse, self.sessions)

    def submit(self, request: Request) -> None:
        """Queue a request.

        Raises:
            InvalidRequest: it can never run here.
            QueueFull: too many wait.
        """
        vocab_size = self.model.shape.vocab_size
        if request.prompt_ids and not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            raise InvalidRequest(f"the prompt has a token id outside 0 to {vocab_size - 1}", param="prompt")
        if request.tuned_state is not None:
            try:
                self.model.initial_state(request.tuned_state)
            except KeyError as error:
                raise InvalidRequest(f"there is no state named {request.tuned_state!r}", param="state") from error
        if request.sampling.grammar is not None and self.constraints is None:
            raise InvalidRequest("this engine has no tokenizer, so it cannot follow a grammar", param="grammar")
        turn = self.sessions.begin(request) if self.sessions is not None and request.session else None
        if turn is not None and turn.base is not None:
            request = dataclasses.replace(request, cache=False)  # prefixes are kept by all tokens from the first on
        for choice in self.scheduler.submit(request, origin=turn.record.tokens if turn is not None else 0):
            if turn is not None and choice.prefill is not None:
                choice.prefill.cached = turn.record.tokens
                choice.prefill.cuts.update(request.boundaries)
            constraint = (
                self.constraints.start(request.sampling, request.tenant) if self.constraints is not None else None
            )
            self._sampling[choice] = ChoiceSampling(request.sampling, choice.index, constraint)
            if not fits(request.sampling):
                self._by_host.add(choice)

    def cancel(self, request_id: str, choice: int | None = None) -> None:
        """End a request or one of its choices: the slots are free at once, the next step reports the end."""
        self._catch_up()
        for ended in self.scheduler.live(request_id, choice):
            slot, decoding = ended.slot, ended.prefill is None
            self.scheduler.release(ended)
            self._leave(ended, slot, whole=decoding)
            self._ended.append(TokenEvent(request_id, ended.index, None, "cancelled"))

    def step(self) -> list[TokenEvent]:
        """Advance every scheduled request by one forward pass; empty when there is nothing to do.

        A request that makes the step fail ends with an error, its neighbours go on (`Scheduler.quarantine`).

        Raises:
            Exception: whatever the model raises when not even one token of no request goes through it: the device
                is lost, and only a new process mends that.
        """
        if self.sessions is not None:
            self.sessions.poll()
        events = self._advance()
        if not self._unheard:
            return events
        heard = [event for event in events if event.request_id not in self._unheard]
        self._unheard.difference_update(event.request_id for event in events if event.finish is not None)
        return heard

    def _advance(self) -> list[TokenEvent]:
        """The forward pass of a step, and what it did."""
        if self._flight is not None and self.scheduler.crowded:
            self._catch_up()
        self._place()
        overlaps = self._overlaps()
        if not overlaps:
            self._catch_up()
        self._hold_unready()
        if self.reuse is not None:
            self.reuse.plan(self.scheduler.prefills)
        self.scheduler.prefill_budget = self.pace.tokens
        batch = self.scheduler.next_batch()
        if batch is None:
            self._catch_up()
        events, self._ended = self._ended, []
        if batch is None:
            return events
        start = self._clock()
        if overlaps:
            events += self._overlapped(batch, start)
        else:
            events += self._alone(batch)
            self._timed(batch, start)
        self._stats = EngineStats(steps=self._stats.steps + 1, step_seconds=self._seconds, batch_rows=batch.rows)
        return events

    def _timed(self, batch: Batch, start: float) -> None:
        """A step is over that began then."""
        self._done_at = self._clock()
        self._seconds = self._done_at - start
        self.pace.took(sum(chunk.stop - chunk.start for chunk in batch.chunks), self._seconds)

    def _alone(self, batch: Batch) -> list[TokenEvent]:
        """A step from its tokens to its events."""
        if self.loop is not None:
            self.loop.leave()
        try:
            logits = self._forward(batch)
        except Exception:  # whatever one request did to the step, the engine has to outlive it
            self._log_failure(batch)
            return self._isolate(batch, alone=batch.rows == 1)
        ready = [choice for choice, _ in batch.ready]
        return self._consumed(batch) + self._drew(batch, ready, self._draw(ready, logits))

    def _overlapped(self, batch: Batch, start: float) -> list[TokenEvent]:
        """Launch a step, and only then read the one before it; that may end some of the batch's choices."""
        assert self.loop is not None
        flight, alone = None, batch.rows == 1
        try:
            with self.forward.computing():
                self.forward.start(batch, self._base)
                flight = self.loop.launch(batch, start, self._by_host)
        except Exception:  # as in `_alone`
            self._log_failure(batch)
        self._catch_up()
        if flight is not None:
            try:
                with self.forward.computing():
                    self._keep(batch, flight.hidden)
            except Exception:  # as in `_alone`
                self._log_failure(batch)
                flight.read()
                flight = None
        events, self._ended = self._ended, []
        if flight is None:
            self.loop.leave()
            batch.decoding = [choice for choice in batch.decoding if choice in self._sampling]
            return events + self._isolate(batch, alone=alone)
        self._flight = flight
        return events + self._consumed(batch)

    def _read(self, flight: Flight) -> list[TokenEvent]:
        """Wait for a step, and say what it did. Choices that had ended before it have drawn nothing in it."""
        tokens = flight.read()
        self._timed(flight.batch, max(flight.start, self._done_at))
        draws = {
            choice: commit(self._sampling[choice], Outcome(token, None if token >= 0 else "not finite"))
            for i, (choice, token) in enumerate(zip(flight.ready, tokens, strict=True))
            if choice in self._sampling and i not in flight.by_host
        }
        if flight.logits is not None:
            asked = [
                (row, flight.ready[i]) for row, i in enumerate(flight.by_host) if flight.ready[i] in self._sampling
            ]
            logits, choices = flight.logits()[[row for row, _ in asked]], [choice for _, choice in asked]
            draws.update(zip(choices, self._draw(choices, logits), strict=True))
        drawn = [choice for choice in flight.ready if choice in draws]
        return self._drew(flight.batch, drawn, [draws[choice] for choice in drawn])

    def _catch_up(self) -> None:
        """Read what is on its way: now every slot holds what its choice has consumed, and `tokens` are all it drew.

        Whoever looks into a slot between steps, or takes it away from its choice, has to call this first.
        """
        flight, self._flight = self._flight, None
        if flight is not None:
            self._ended += self._read(flight)

    def overlap(self, device: Device) -> DeviceLoop:
        """Launch steps ahead on a device from now on."""
        from .loop import DeviceLoop

        self.loop = DeviceLoop(self.forward, device, self._sampling)
        return self.loop

    def _place(self) -> None:
        """Give slots to those that wait, and keep or bring back the states of what is parked for them."""
        scheduler = self.scheduler
        for prefill, slot in scheduler.make_room():
            prefill.state = self.pool.save(slot)
        scheduler.admit()
        for slot, state in scheduler.resumed:
            self.pool.write(slot, cast(State, state))
        scheduler.resumed.clear()

    def _overlaps(self) -> bool:
        """Whether the next step is launched ahead: not where most choices that run have to wait for the host, which in
        the loop they would do for every other step."""
        if self.loop is None:
            return False
        running = self.scheduler.max_batch - self.scheduler.slots_free
        return 2 * sum(choice.slot >= 0 for choice in self._by_host) <= running

    def _hold_unready(self) -> None:
        """Keep out of the step what it would have to wait for: prompts whose grammar still compiles, so that they are
        not finished, choices whose next mask is a slow one, and those whose last token the host has still to draw."""
        for choice in self._by_host:  # none but these has a grammar
            constraint = self._sampling[choice].constraint
            choice.held = choice.unread > 0 or (constraint is not None and constraint.held)
        if self.constraints is None:
            return
        for prefill in self.scheduler.prefills:
            constraints = [self._sampling[choice].constraint for choice in prefill.choices]
            prefill.held = any(one is not None and not one.ready for one in constraints)

    def _forward(self, batch: Batch) -> Any:
        """One pass over the batch; logits [n, vocab_size] of its `ready` choices.

        When it raises, the states of the batch are lost.
        """
        with self.forward.computing():
            self.forward.start(batch, self._base)
            hidden = self.forward.run(batch)
            self._keep(batch, hidden)
            return self.forward.logits(batch, hidden)

    def _base(self, request_id: str) -> State | None:
        return self.sessions.base(request_id) if self.sessions is not None else None

    def _keep(self, batch: Batch, hidden: Any) -> None:
        """The batch's tokens went through the model: keep of the outputs and the states what is wanted later."""
        self.forward.score_prompts(batch, hidden, self.sampler.score_prompt)
        if self.reuse is not None:
            self.reuse.consumed(batch, hidden)
        if self.sessions is not None:
            self.sessions.consumed(batch)
        self.forward.finish(batch, hidden)

    def _consumed(self, batch: Batch) -> list[TokenEvent]:
        """The batch's tokens are consumed: tell the scheduler, and the ends of choices that draw nothing."""
        prompts = {choice: prefill for prefill in batch.prompts for choice in prefill.choices}
        slots = {choice: choice.slot for choice in prompts}
        events = []
        for choice in self.scheduler.consumed(batch):
            self._leave(choice, slots[choice], whole=True)
            events.append(_event(choice, prompts[choice], None, "length"))
        return events

    def _drew(self, batch: Batch, choices: list[Choice], draws: list[Draw]) -> list[TokenEvent]:
        """Hand the tokens that choices drew in a batch to the scheduler, and say what happened."""
        prompts = {choice: prefill for prefill in batch.prompts for choice in prefill.choices}
        events = []
        for choice, draw in zip(choices, draws, strict=True):
            if draw.error is not None:
                events.append(self._fail(choice, draw.error, refused=draw.refused))
                continue
            slot = choice.slot
            finish = self.scheduler.drew(choice, draw.token_id, draw.ended)
            if finish is not None:
                self._leave(choice, slot, whole=True)
            events.append(_event(choice, prompts.get(choice), draw.token_id, finish, draw.logprobs))
        return events

    def _draw(self, choices: list[Choice], logits: Any) -> list[Draw]:
        """A draw for each choice; one that makes sampling fail is an error of its own."""
        if not choices:
            return []
        samplings = [self._sampling[choice] for choice in choices]
        drawn = [sampling.drawn for sampling in samplings]
        try:
            return self.sampler.sample(logits, samplings)
        except Exception:  # as in `step`: this costs the choice at fault, not the engine
            logger.exception("sampling %d rows failed", len(choices))
        if len(choices) == 1 or any(now.drawn != before for now, before in zip(samplings, drawn, strict=True)):
            return [Draw(-1, error=STEP_FAILED)] * len(choices)
        return [draw for row, choice in enumerate(choices) for draw in self._draw([choice], logits[row : row + 1])]

    def _log_failure(self, batch: Batch) -> None:
        """In the handler of what a step raised."""
        culprit = f"; it ended request {batch.choices[0].request.id}" if batch.rows == 1 else ""
        logger.exception("a step over %d rows failed%s", batch.rows, culprit)

    def _isolate(self, batch: Batch, *, alone: bool) -> list[TokenEvent]:
        """After a failed step: find the request at fault, or end it when it ran alone.

        Raises:
            Exception: nothing goes through the model any more.
        """
        self.forward.check()
        if not alone:
            self.scheduler.quarantine(batch)
            return []
        return [self._fail(choice, STEP_FAILED) for choice in batch.choices]

    def _fail(self, choice: Choice, message: str, *, refused: bool = False) -> TokenEvent:
        self.scheduler.release(choice)
        self._leave(choice, -1, whole=False)
        return TokenEvent(choice.request.id, choice.index, None, "error", error=message, refused=refused)

    def _leave(self, choice: Choice, slot: int, *, whole: bool) -> None:
        """A choice has been released; `whole` says that `slot` still holds what it has consumed."""
        del self._sampling[choice]
        self._by_host.discard(choice)
        if self.reuse is not None:
            self.reuse.left(choice, slot, whole=whole)
        if self.sessions is not None:
            self.sessions.left(choice, slot, whole=whole)


def _event(
    choice: Choice,
    prefill: Prefill | None,
    token_id: int | None,
    finish: FinishReason | None,
    logprobs: TokenLogprobs | None = None,
) -> TokenEvent:
    """What a step did for a choice; the prompt is given with its first event."""
    if prefill is None:
        return TokenEvent(choice.request.id, choice.index, token_id, finish, logprobs=logprobs)
    return TokenEvent(
        choice.request.id,
        choice.index,
        token_id,
        finish,
        logprobs=logprobs,
        cached_tokens=prefill.cached,
        prompt_logprobs=tuple(prefill.prompt_logprobs) if prefill.prompt_logprobs and not choice.index else None,
        embedding=prefill.embedding,
    )
