"""Which part of a prompt need not be computed, because its state is stored or another request is computing it.

The engine asks at three places: `plan` before each batch, `consumed` after each pass, `left` when a choice ends.

States are kept where `prefix_plan.py` says, and at the end of a completion (by the tokens consumed: the last one drawn
is not). With a disk tier those are also written to it that are far enough ahead of the last one there. A prompt whose
longest prefix is on disk waits until it has been read (`waits.py`); the steps of others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ..state.cache import Marks, PrefixCache
from ..state.digest import namespace, prefix_keys, state_digest
from ..state.memory import Snapshot
from ..state.pool import State, StatePool
from .arrays import arrays_of
from .batch import Batch, Choice, Prefill
from .prefix_plan import WORTHWHILE, Plan, grid
from .request import Request
from .waits import Load, Waits

WORTH_READING = {"cpu": WORTHWHILE, "cuda": 512}
"""Tokens, by device, that a state must save to be written to the disk and read from it. On a processor a read costs
what 5 to 12 tokens cost (`bench/restore-rwkv7-0.1b.json`, float32 and bfloat16). A GPU computes prompts a hundred times
faster: its number is the most that a read may cost by the project's promise, and not measured."""


class PrefixReuse:
    """Reads and writes a `PrefixCache` for the engine.

    Args:
        pool: where the states of running requests live.
        identity: what makes states of this engine its own: weights, tokenizer, dtype.
        beginning: the tuned state of a name: what another file of that name led to must not be found again.
    """

    def __init__(
        self, cache: PrefixCache, pool: StatePool, identity: str, beginning: Callable[[str | None], State | None]
    ) -> None:
        self.cache = cache
        self._pool = pool
        self._identity = identity
        self._beginning = beginning
        self._beginnings: dict[str | None, str] = {}
        """Digests of tuned states, by name."""
        self._marks = Marks()
        self._plans: dict[Choice, Plan] = {}
        self._waits = Waits()
        self._planned = 0
        self._worth_reading = WORTH_READING[pool.device_type]
        self._arrays = arrays_of(pool)

    def plan(self, prefills: Iterable[Prefill]) -> None:
        """Give new prompts the longest state there is, or let them wait for one; look after those that wait."""
        if self.cache.disk is not None:
            self.cache.disk.poll()
        over = self._waits.over()
        for prefill in prefills:
            if not prefill.planned:
                prefill.planned = True
                if _takes_part(prefill.request):
                    self._plan(prefill)
        for plan, what in over:
            plan.prefill.waits = False
            self._begin(plan, what if isinstance(what, Load) else None)

    def consumed(self, batch: Batch, hidden: Any) -> None:
        """Keep the states at which chunks of this step ended, where they were meant to be kept."""
        position = len(batch.decoding)
        for chunk in batch.chunks:
            position += chunk.stop - chunk.start
            plan = self._plans.get(chunk.prefill.choices[0])
            if plan is None or plan.prefill is not chunk.prefill:
                continue
            if chunk.last:
                self._save(plan, chunk.stop, chunk.slot, hidden[position - 1])
            elif chunk.stop in chunk.prefill.cuts:
                self._save(plan, chunk.stop, chunk.slot, None)

    def left(self, choice: Choice, slot: int, *, whole: bool) -> None:
        """A choice has ended; `whole` says that its slot holds the state after all its tokens but the last."""
        plan = self._plans.pop(choice, None)
        if plan is None or not whole or len(choice.tokens) < 2:
            return
        digest = plan.end.copy()
        digest.extend(choice.tokens[:-1])
        snapshot = Snapshot(self._pool.save(slot))
        self.cache.memory.keep(plan.namespace, digest.length, digest.key, snapshot, gain=len(choice.tokens) - 1)
        self._store(plan, digest.length, digest.key, snapshot)

    def close(self) -> None:
        """Finish what is being written."""
        if self.cache.disk is not None:
            self.cache.disk.close()

    def _plan(self, prefill: Prefill) -> None:
        request, ids = prefill.request, prefill.token_ids
        names = self._namespace(request)
        positions = {len(ids), *grid(len(ids)), *(at for at in request.boundaries if 0 < at < len(ids))}
        known = {length for length in self.cache.lengths(names) if length <= len(ids)}
        for leader in self._waits.leaders:
            if leader.namespace == names:
                known.update(at for at in leader.places if at <= len(ids))
        keys, end = prefix_keys(names, ids, positions | known)
        self._planned += 1
        plan = Plan(prefill, self._planned, names, frozenset(positions), keys, end)
        for choice in prefill.choices:
            self._plans[choice] = plan
        self._begin(plan)
        self._marks.add(keys[at] for at in positions)
        self._waits.leaders.append(plan)

    def _namespace(self, request: Request) -> bytes:
        """What the states of this request share with those of others that may use them."""
        name = request.tuned_state
        if name not in self._beginnings:
            self._beginnings[name] = state_digest(self._beginning(name))
        return namespace(self._identity, name or "", self._beginnings[name], request.tenant)

    def _begin(self, plan: Plan, load: Load | None = None) -> None:
        """Start a prompt at the longest state there is, or let it wait for a longer one that is on its way.

        Args:
            load: what it waited for, if that was the disk.
        """
        prefill = plan.prefill
        best = next((at for at in sorted(plan.keys, reverse=True) if self._usable(plan, at)), 0)
        loaded = load.snapshot if load is not None and load.position > best else None
        if load is not None and loaded is not None:  # the memory may not have taken it in
            best = load.position
        plan.stored = max((at for at, key in plan.keys.items() if self._on_disk(key)), default=0)
        least = best + self._worth_reading
        known = max((at for at in plan.keys if at >= least and self._readable(plan, at)), default=0)
        what = self._waits.lead(plan, max(best, known) + WORTHWHILE)
        if what is not None or known:
            self._waits.begin(plan, what or self._load(plan, known))
            return
        if best:
            snapshot = loaded or self.cache.memory.take(plan.keys[best])
            assert snapshot is not None
            self._pool.write(prefill.choices[0].slot, snapshot.state)
            prefill.position = prefill.cached = plan.saved = best
            if best == len(prefill.token_ids):
                prefill.hidden = snapshot.hidden
        plan.cut(self._marks)
        plan.keys = {at: key for at, key in plan.keys.items() if at in plan.places}

    def _on_disk(self, key: bytes, *, complete: bool = False) -> bool:
        return self.cache.disk is not None and self.cache.disk.has(key, complete=complete)

    def _readable(self, plan: Plan, position: int) -> bool:
        """Whether the disk has a state that this prompt could start from."""
        return self._on_disk(plan.keys[position], complete=position == len(plan.prefill.token_ids))

    def _load(self, plan: Plan, position: int) -> Load:
        """Have a state read from the disk, into the memory too."""
        assert self.cache.disk is not None
        key, names = plan.keys[position], plan.namespace
        return self._waits.load(
            key,
            position,
            self.cache.disk.fetch,
            lambda snapshot: self.cache.memory.keep(names, position, key, snapshot, gain=position),
        )

    def _usable(self, plan: Plan, position: int) -> bool:
        snapshot = self.cache.memory.peek(plan.keys[position])
        return snapshot is not None and (position < len(plan.prefill.token_ids) or snapshot.hidden is not None)

    def _save(self, plan: Plan, position: int, slot: int, hidden: Any) -> None:
        key = plan.keys.get(position)
        if key is None:
            return
        held = self.cache.memory.peek(key)
        if held is not None and (held.hidden is not None or hidden is None):
            plan.saved = position
            return
        state = self._pool.save(slot)
        snapshot = Snapshot(state) if hidden is None else self._arrays.snapshot(state, hidden)
        self.cache.memory.keep(plan.namespace, position, key, snapshot, gain=position - plan.saved)
        self._store(plan, position, key, snapshot)
        for at in plan.kept(position):
            self.cache.discard(plan.keys[at])

    def _store(self, plan: Plan, position: int, key: bytes, snapshot: Snapshot) -> None:
        """Have a state written to the disk where it is far enough ahead of what is there."""
        gain, disk = position - plan.stored, self.cache.disk
        if disk is None or gain < self._worth_reading:
            return
        if disk.put(plan.namespace, position, key, snapshot, gain=gain):
            plan.stored = position


def _takes_part(request: Request) -> bool:
    """Log-probabilities of a prompt need every one of its tokens computed."""
    return request.cache and request.sampling.prompt_logprobs is None
