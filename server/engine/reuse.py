"""Which part of a prompt need not be computed, because its state is stored or another request is computing it.

The engine asks at three places: `plan` before each batch, `consumed` after each pass, `left` when a choice ends.

States are kept at the end of a prompt, at the end of a completion (by the tokens consumed: the last one drawn is not),
at the last message boundary, every `GRID` tokens of long prompts (thinned out behind the newest), and at junctions:
where a prompt leaves the way of one that was seen before. Each place that is not the end of the prompt ends a chunk
there, and so costs a step; places closer than `WORTHWHILE` tokens to a state are left out.

With a disk tier those states are also written to it that are at least `WORTHWHILE` tokens ahead of the last one there.
A prompt whose longest prefix is on disk waits until it has been read; the steps of others go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..state.cache import Marks, PrefixCache
from ..state.digest import PrefixDigest, namespace, prefix_keys, state_digest
from ..state.memory import Snapshot
from ..state.pool import State, StatePool
from .batch import Batch, Choice, Prefill
from .request import Request

GRID = 2048
"""Tokens between the states kept along a long prompt."""
WORTHWHILE = 16
"""A state that saves fewer tokens than this is not worth a step of its own."""
MARK_STRIDE, MARKS_PER_PROMPT = 32, 256
"""Junctions are found to the multiple of a power of two, at least 32; long prompts get coarser ones."""


@dataclass(slots=True, eq=False)
class Plan:
    """What is known of one prompt that is being computed or has been."""

    prefill: Prefill
    order: int
    """Of planning: a prompt waits only for earlier ones, so that nobody waits in a circle."""
    namespace: bytes
    places: frozenset[int]
    """Positions at which other prompts may find that they go the same way."""
    keys: dict[int, bytes]
    """By position."""
    end: PrefixDigest
    saved: int = 0
    """The longest prefix that has a state."""
    stored: int = 0
    """The longest prefix that has one on disk."""
    on_grid: list[int] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether its prompt is still to be computed, in part at least."""
        choices = self.prefill.choices
        return bool(choices) and choices[0].prefill is self.prefill


@dataclass(slots=True, eq=False)
class _Load:
    """A state that is being read from the disk, for every prompt that waits for it."""

    position: int
    over: bool = False
    snapshot: Snapshot | None = None
    """Once it is over; None where the file was damaged."""

    def done(self, snapshot: Snapshot | None) -> None:
        self.over, self.snapshot = True, snapshot


@dataclass(slots=True, eq=False)
class _Lead:
    """Another prompt on its way to a position that both go through."""

    plan: Plan
    position: int

    @property
    def over(self) -> bool:
        return not self.plan.running or self.plan.prefill.position >= self.position


@dataclass(slots=True)
class _Wait:
    """A prompt that does nothing until what it waits for is there, or will never be."""

    plan: Plan
    what: _Lead | _Load


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
        self._loads: dict[bytes, _Load] = {}
        self._marks = Marks()
        self._plans: dict[Choice, Plan] = {}
        self._leaders: list[Plan] = []
        """Plans whose prompts still run."""
        self._waits: list[_Wait] = []
        self._planned = 0

    def plan(self, prefills: Iterable[Prefill]) -> None:
        """Give new prompts the longest state there is, or let them wait for one; look after those that wait."""
        if self.cache.disk is not None:
            self.cache.disk.poll()
        self._leaders = [plan for plan in self._leaders if plan.running]
        waits, self._waits = self._waits, []
        for prefill in prefills:
            if not prefill.planned:
                prefill.planned = True
                if _takes_part(prefill.request):
                    self._plan(prefill)
        for wait in waits:
            if not wait.what.over:
                self._waits.append(wait)
            elif wait.plan.running:
                wait.plan.prefill.waits = False
                self._begin(wait.plan, wait.what if isinstance(wait.what, _Load) else None)

    def consumed(self, batch: Batch, hidden: Tensor) -> None:
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
        self.cache.put(plan.namespace, digest.length, digest.key, snapshot, gain=len(choice.tokens) - 1)
        self._store(plan, digest.length, digest.key, snapshot)

    def close(self) -> None:
        """Finish what is being written."""
        if self.cache.disk is not None:
            self.cache.disk.close()

    def _plan(self, prefill: Prefill) -> None:
        request, ids = prefill.request, prefill.token_ids
        names = self._namespace(request)
        positions = {len(ids), *_grid(len(ids)), *(at for at in request.boundaries if 0 < at < len(ids))}
        known = {length for length in self.cache.lengths(names) if length <= len(ids)}
        for leader in self._leaders:
            if leader.namespace == names:
                known.update(at for at in leader.places if at <= len(ids))
        keys, end = prefix_keys(names, ids, positions | known)
        self._planned += 1
        plan = Plan(prefill, self._planned, names, frozenset(positions), keys, end)
        for choice in prefill.choices:
            self._plans[choice] = plan
        self._begin(plan)
        self._marks.add(keys[at] for at in positions)
        self._leaders.append(plan)

    def _namespace(self, request: Request) -> bytes:
        """What the states of this request share with those of others that may use them."""
        name = request.tuned_state
        if name not in self._beginnings:
            self._beginnings[name] = state_digest(self._beginning(name))
        return namespace(self._identity, name or "", self._beginnings[name], request.tenant)

    def _begin(self, plan: Plan, load: _Load | None = None) -> None:
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
        known = max(
            (at for at, key in plan.keys.items() if at >= best + WORTHWHILE and self._readable(plan, at)), default=0
        )
        what: _Lead | _Load | None = self._coming(plan, max(best, known) + WORTHWHILE)
        if what is None and known:
            what = self._load(plan, known)
        if what is not None:
            prefill.waits = True
            self._waits.append(_Wait(plan, what))
            return
        if best:
            snapshot = loaded or self.cache.take(plan.keys[best])
            assert snapshot is not None
            self._pool.write(prefill.choices[0].slot, snapshot.state)
            prefill.position = prefill.cached = plan.saved = best
            if best == len(prefill.token_ids):
                prefill.hidden = snapshot.hidden
        self._cut(plan)
        plan.keys = {at: key for at, key in plan.keys.items() if at in plan.places}

    def _on_disk(self, key: bytes, *, complete: bool = False) -> bool:
        return self.cache.disk is not None and self.cache.disk.has(key, complete=complete)

    def _readable(self, plan: Plan, position: int) -> bool:
        """Whether the disk has a state that this prompt could start from."""
        return self._on_disk(plan.keys[position], complete=position == len(plan.prefill.token_ids))

    def _load(self, plan: Plan, position: int) -> _Load:
        """Have a state read from the disk; whoever else needs it meanwhile waits for the same."""
        key = plan.keys[position]
        if key in self._loads:
            return self._loads[key]
        load = self._loads[key] = _Load(position)

        def done(snapshot: Snapshot | None) -> None:
            del self._loads[key]
            load.done(snapshot)
            if snapshot is not None:
                self.cache.put(plan.namespace, position, key, snapshot, gain=position)

        assert self.cache.disk is not None
        self.cache.disk.fetch(key, done)
        return load

    def _usable(self, plan: Plan, position: int) -> bool:
        snapshot = self.cache.peek(plan.keys[position])
        return snapshot is not None and (position < len(plan.prefill.token_ids) or snapshot.hidden is not None)

    def _coming(self, plan: Plan, least: int) -> _Lead | None:
        """The prompt under way that will reach the longest prefix of this one, and there ends a chunk."""
        length = len(plan.prefill.token_ids)
        found = None
        for leader in self._leaders:
            if leader.order >= plan.order or leader.namespace != plan.namespace or not leader.running:
                continue
            for at in leader.places:
                key = leader.keys[at]
                if not max(least, leader.prefill.position + 1) <= at <= length or plan.keys.get(at) != key:
                    continue
                if at == length and len(leader.prefill.token_ids) != length:
                    continue  # the state alone would not do: nothing can be drawn from it
                least, found = at + 1, _Lead(leader, at)
        if found is not None:
            found.plan.prefill.cuts.add(found.position)
        return found

    def _cut(self, plan: Plan) -> None:
        """Choose where chunks of this prompt end, beside its own end."""
        prefill = plan.prefill
        first, length = prefill.position + WORTHWHILE, len(prefill.token_ids)
        prefill.cuts.update(range(-(-max(first, GRID) // GRID) * GRID, length, GRID))
        junction = max((at for at, key in plan.keys.items() if first <= at < length and key in self._marks), default=0)
        boundary = max((at for at in prefill.request.boundaries if first <= at < length), default=0)
        prefill.cuts.update(at for at in (junction, boundary) if at)

    def _save(self, plan: Plan, position: int, slot: int, hidden: Tensor | None) -> None:
        key = plan.keys.get(position)
        if key is None:
            return
        held = self.cache.peek(key)
        if held is not None and (held.hidden is not None or hidden is None):
            plan.saved = position
            return
        snapshot = Snapshot(self._pool.save(slot), None if hidden is None else hidden.to("cpu", copy=True))
        self.cache.put(plan.namespace, position, key, snapshot, gain=position - plan.saved)
        self._store(plan, position, key, snapshot)
        plan.saved = position
        if position % GRID == 0 and position not in plan.prefill.request.boundaries:
            plan.on_grid.append(position)
            for at in _thinned(plan.on_grid):
                plan.on_grid.remove(at)
                self.cache.discard(plan.keys[at])

    def _store(self, plan: Plan, position: int, key: bytes, snapshot: Snapshot) -> None:
        """Have a state written to the disk where it is far enough ahead of what is there."""
        gain, disk = position - plan.stored, self.cache.disk
        if disk is not None and gain >= WORTHWHILE and disk.put(plan.namespace, position, key, snapshot, gain=gain):
            plan.stored = position


def _takes_part(request: Request) -> bool:
    """Log-probabilities of a prompt need every one of its tokens computed."""
    return request.cache and request.sampling.prompt_logprobs is None


def _grid(length: int) -> Iterator[int]:
    """Positions of a prompt at which junctions can be found, and those where long prompts are kept."""
    stride = MARK_STRIDE
    while length > stride * MARKS_PER_PROMPT:
        stride *= 2
    yield from range(stride, length, stride)
    yield from range(GRID, length, GRID)


def _thinned(positions: list[int]) -> list[int]:
    """Those of ascending multiples of GRID to be given up: twice the distance to the newest, half as many stay."""
    newest = positions[-1] // GRID
    gone = []
    for position in positions:
        number = position // GRID
        if number % (1 << max(0, (newest - number).bit_length() - 2)):
            gone.append(position)
    return gone
