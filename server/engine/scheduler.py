"""Who runs in the next step. Plain Python: slots are numbers, tensors are the engine's business.

A request waits in a fair queue, is admitted when every one of its choices has a slot, is prefilled once in the slot of
its first choice, and then decodes in all of them. Each step runs every decoding choice and, beside them, chunks of
prompts under `prefill_budget`. Chunks end at multiples of `BLOCK`, counted from the first token of the sequence.

    submit → FairQueue → Prefill (one per request) → decoding Choices → finish
                 ↑ parked: while tenants with less than their share of the slots wait, those with more give some up
                            ↑ quarantine: after a failed step, each of its requests alone, from its first token

Invariants: a slot belongs to one choice; never more than `max_batch` are taken; a choice ends exactly once; within a
tenant requests start in the order they came; nobody waits for ever (see `fair_shares` and `FairQueue`).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from ..errors import InvalidRequest, QueueFull
from .batch import Batch, Choice, Chunk, Prefill
from .fair import FairQueue, fair_shares
from .request import FinishReason, Request

BLOCK = 16
"""Tokens that sequence kernels work on at once: a prompt is never cut inside of them, so that its results do not depend
on the budget of a step."""


class Scheduler:
    """Slots, the queue before them, and what each step runs."""

    def __init__(self, *, max_batch: int, max_queue: int, prefill_budget: int, piece: int | None = None) -> None:
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.prefill_budget = prefill_budget
        self._piece = piece
        self.queue = FairQueue()
        self.prefills: list[Prefill] = []
        """Admitted, their tokens not consumed yet; in order of admission."""
        self.decoding: dict[int, Choice] = {}
        """By slot."""
        self.suspects: deque[Prefill] = deque()
        """Of a step that failed: each runs alone until it has caught up or failed itself."""
        self._free = list(range(max_batch - 1, -1, -1))
        self._requests: dict[str, list[Choice]] = {}
        """Choices of every request that have not ended."""
        self._step = 0
        self.resumed: list[tuple[int, object]] = []
        """Slots given to those that were parked, and what belongs into them; the engine empties it."""

    @property
    def running(self) -> int:
        """Requests that have slots, or had them."""
        return len(self._requests) - len(self.queue)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    @property
    def slots_free(self) -> int:
        return len(self._free)

    @property
    def busy(self) -> bool:
        return bool(self._requests)

    def submit(self, request: Request, *, first: bool = False, origin: int = 0) -> list[Choice]:
        """Take a request; it gets its slots at once where they are free and nobody waits.

        The queue holds `max_queue` requests, and beyond that one of each tenant that has none in it: a tenant that
        fills the queue does not shut the others out. `first` puts a request before all, whatever the queue holds.
        `origin` is how many tokens its first state has consumed.

        Raises:
            InvalidRequest: it can never run.
            QueueFull: it would have to wait, and too many do.
        """
        if request.id in self._requests:
            raise InvalidRequest(f"a request with the id {request.id!r} is running")
        if not request.prompt_ids:
            raise InvalidRequest("the prompt is empty; it must have at least one token", param="prompt")
        if not 1 <= request.choices <= self.max_batch:
            raise InvalidRequest(
                f"n is {request.choices}; this server runs 1 to {self.max_batch} choices at a time", param="n"
            )
        waits = bool(self.queue) or request.choices > len(self._free)
        if not first and waits and len(self.queue) >= self.max_queue and self.queue.waits(request.tenant):
            raise QueueFull(f"{len(self.queue)} requests wait already; try again later", retry_after_s=1)
        choices = [Choice(request, index, origin) for index in range(request.choices)]
        self._requests[request.id] = choices
        self.queue.push(Prefill(request, request.prompt_ids, list(choices)), first=first)
        if not waits:  # those that wait are given slots between steps, where the engine brings back what was parked
            self.admit()
        return choices[:]

    def cancel(self, request_id: str, choice: int | None = None) -> list[Choice]:
        """End a request, or one choice of it; returns the choices that this ended. Unknown ids end nothing."""
        ended = self.live(request_id, choice)
        for one in ended:
            self.release(one)
        return ended

    def live(self, request_id: str, choice: int | None = None) -> list[Choice]:
        """Choices of a request that have not ended; all, or the one of this number."""
        return [one for one in self._requests.get(request_id, ()) if choice is None or one.index == choice]

    def release(self, choice: Choice) -> None:
        """End a choice, whatever it is doing: its slot is free."""
        live = self._requests[choice.request.id]
        live.remove(choice)
        if not live:
            del self._requests[choice.request.id]
        if choice.prefill is None:
            del self.decoding[choice.slot]
        else:
            self._leave(choice.prefill, choice)
        if choice.slot >= 0:
            self._free.append(choice.slot)
            choice.slot = -1

    def next_batch(self) -> Batch | None:
        """The rows of the next step; None when there is nothing to do."""
        self.admit()
        if self.suspects:
            suspect = self.suspects[0]
            stop = min(suspect.position + self.prefill_budget, len(suspect.token_ids))
            stop = suspect.aligned(stop, self._block)
            return Batch([], [Chunk(suspect, suspect.position, stop)])
        known = [prefill for prefill in self.prefills if prefill.ready]
        decoding = [choice for choice in self.decoding.values() if not (choice.held or choice.spent)]
        batch = Batch(decoding, self._next_chunks(), known)
        return batch if batch.rows else None

    def consumed(self, batch: Batch) -> list[Choice]:
        """The step's forward pass is done: states have moved on, finished prompts go over to decoding.

        Returns the choices that this ends: those of requests that draw no token at all.
        """
        ended: list[Choice] = []
        for chunk in batch.chunks:
            chunk.prefill.position = chunk.stop
        for prefill in batch.prompts:
            self._remove(prefill)
            for choice in prefill.choices:
                choice.prefill = None
                self.decoding[choice.slot] = choice
            if prefill.request.sampling.max_tokens == 0:
                ended += prefill.choices
        for choice in ended:
            self.release(choice)
        return ended

    def drew(self, choice: Choice, token_id: int, ended: bool) -> FinishReason | None:
        """Give a choice its next token; `ended` says that it completes it. Returns why the choice is over, if it is."""
        choice.tokens.append(token_id)
        finish: FinishReason | None = None
        if ended:
            finish = "stop"
        elif len(choice.tokens) >= choice.request.sampling.max_tokens:
            finish = "length"
        if finish is not None:
            self.release(choice)
        return finish

    def quarantine(self, batch: Batch) -> None:
        """The step failed half-way, so the states of its rows are lost: each starts again from its own tokens, alone.

        Whatever made the step fail then fails by itself, and its neighbours go on where they were.
        """
        for prefill in [chunk.prefill for chunk in batch.chunks] + batch.known:
            self._remove(prefill)
            self.suspects.append(Prefill(prefill.request, prefill.token_ids, prefill.choices))
        for choice in batch.decoding:
            del self.decoding[choice.slot]
            self.suspects.append(Prefill(choice.request, (*choice.request.prompt_ids, *choice.tokens), [choice]))

    def admit(self) -> None:
        """Give slots to those at the head of the queue, as long as they fit."""
        while (head := self.queue.head()) is not None and len(head.choices) <= len(self._free):
            self._place(self.queue.pop())

    def make_room(self) -> list[tuple[Prefill, int]]:
        """Let tenants in that wait with less than an equal share of the slots, in the place of some with more.

        The choices that make room are parked, the last ones first: they wait to go on where they were.

        Returns: what was parked, with the slots whose contents have to be kept in `state`.
        """
        parked: list[tuple[Prefill, int]] = []
        if not self.queue:
            return parked
        held, share = self._shares()
        for tenant in self.queue.tenants:
            head = self.queue.head(tenant)
            while head is not None and held[tenant] + len(head.choices) <= share:
                leaving = self._surplus(len(head.choices) - len(self._free), held, share)
                if leaving is None:
                    break
                parked += [(one, self._park(one)) for one in leaving]
                self._place(self.queue.pop(tenant))
                held[tenant] += len(head.choices)
                head = self.queue.head(tenant)
        return parked

    @property
    def crowded(self) -> bool:
        """Whether `make_room` may have to park something."""
        if not self.queue:
            return False
        held, share = self._shares()
        heads = [(tenant, self.queue.head(tenant)) for tenant in self.queue.tenants]
        return any(head is not None and held[tenant] + len(head.choices) <= share for tenant, head in heads)

    def _shares(self) -> tuple[Counter[str], int]:
        """Slots that each tenant holds, and how many of them would be an equal share."""
        held = Counter(one.request.tenant for live in self._requests.values() for one in live if one.slot >= 0)
        return held, self.max_batch // len({*held, *self.queue.tenants})

    def _surplus(self, slots: int, held: Counter[str], share: int) -> list[Prefill] | None:
        """The youngest of those whose tenants have more than a share, to give up so many slots; None if they cannot."""
        found: list[Prefill] = []
        young = [Prefill.parking(one) for one in reversed(self.decoding.values())] if slots > 0 else []
        for one in [*young, *(one for one in reversed(self.prefills) if not one.waits)]:
            if slots <= 0:
                break
            tenant, size = one.request.tenant, len(one.choices)
            if held[tenant] - size >= share:
                found.append(one)
                held[tenant] -= size
                slots -= size
        if slots <= 0:
            return found
        held.update(one.request.tenant for one in found for _ in one.choices)
        return None

    def _park(self, prefill: Prefill) -> int:
        """Take the slots of a prompt, or of a choice that decodes; the slot that holds its state."""
        slot = prefill.choices[0].slot
        if prefill in self.prefills:
            self.prefills.remove(prefill)
        for choice in prefill.choices:
            self.decoding.pop(choice.slot, None)
            self._free.append(choice.slot)
            choice.slot, choice.prefill = -1, prefill
        prefill.parked = True
        self.queue.put_back(prefill)
        return slot

    def _place(self, prefill: Prefill) -> None:
        """Give slots to one that comes from the queue."""
        for choice in prefill.choices:
            choice.slot = self._free.pop()
        if prefill.parked:
            prefill.parked = False
            self.resumed.append((prefill.choices[0].slot, prefill.state))
            prefill.state = None
        if prefill.token_ids:
            prefill.served = self._step  # behind those that have waited: a stream of short prompts stops no long one
            self.prefills.append(prefill)
            return
        for choice in prefill.choices:
            choice.prefill = None
            self.decoding[choice.slot] = choice

    @property
    def _block(self) -> int:
        return min(BLOCK, self.prefill_budget)

    def _next_chunks(self) -> list[Chunk]:
        """Share the budget among the tenants that prefill, and each one's part among its requests; in whole blocks.

        What rounding to blocks leaves over goes to those who have waited longest. Where several wait and one of them
        can be done within a piece, the step ends there: the first have their answers before the last are read.
        """
        self._step += 1
        waiting = sorted((one for one in self.prefills if one.remaining), key=lambda one: one.served)
        budget = self.prefill_budget
        if self._piece is not None and len(waiting) > 1 and min(one.remaining for one in waiting) <= self._piece:
            budget = min(budget, self._piece)
        tenants: dict[str, list[Prefill]] = {}
        for prefill in waiting:
            tenants.setdefault(prefill.request.tenant, []).append(prefill)
        wants = [[one.remaining for one in prefills] for prefills in tenants.values()]
        shares = fair_shares(budget, [sum(want) for want in wants])
        stops: dict[Prefill, int] = {}
        for prefills, want, share in zip(tenants.values(), wants, shares, strict=True):
            for prefill, tokens in self._in_turn(prefills, fair_shares(share, want)):
                stops[prefill] = prefill.aligned(prefill.position + tokens, self._block)
        left = budget - sum(stop - prefill.position for prefill, stop in stops.items())
        chunks = []
        for prefill in waiting:
            most = min(stops[prefill] + left, prefill.position + prefill.remaining)
            stop = prefill.aligned(most, self._block)
            left -= stop - stops[prefill]
            if stop > prefill.position:
                prefill.served = self._step
                chunks.append(Chunk(prefill, prefill.position, stop))
        return chunks

    def _in_turn(self, prefills: list[Prefill], shares: list[int]) -> Iterator[tuple[Prefill, int]]:
        """The shares of prompts, where those of like length (to a power of two) are put together and spent in order of
        admission: of eight that come together, each still has its answer in time, and most have it sooner."""
        pools: Counter[int] = Counter()
        for prefill, share in zip(prefills, shares, strict=True):
            pools[len(prefill.token_ids).bit_length()] += share
        for prefill in sorted(prefills, key=self.prefills.index):
            length = len(prefill.token_ids).bit_length()
            tokens = min(prefill.remaining, pools[length])
            pools[length] -= tokens
            yield prefill, tokens

    def _leave(self, prefill: Prefill, choice: Choice) -> None:
        """Take a choice out of the prefill it waits for; the prompt goes on in the slot it was begun in."""
        if prefill.choices[0] is choice and len(prefill.choices) > 1:
            heir = prefill.choices[1]
            heir.slot, choice.slot = choice.slot, heir.slot
        prefill.choices.remove(choice)
        choice.prefill = None
        if not prefill.choices:
            self._remove(prefill)

    def _remove(self, prefill: Prefill) -> None:
        for group in (self.prefills, self.suspects, self.queue):
            if prefill in group:
                group.remove(prefill)
