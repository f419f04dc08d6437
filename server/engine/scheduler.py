"""Who runs in the next step. Plain Python: slots are numbers, tensors are the engine's business.

A request waits in a fair queue, is admitted when every one of its choices has a slot, is prefilled once in the slot of
its first choice, and then decodes in all of them. Each step runs every decoding choice and, beside them, chunks of
prompts under `prefill_budget`.

    submit → FairQueue → Prefill (one per request) → decoding Choices → finish
                            ↑ quarantine: after a failed step, each of its requests alone, from its first token

Invariants: a slot belongs to one choice; never more than `max_batch` are taken; a choice ends exactly once; within a
tenant requests start in the order they came; nobody waits for ever (see `fair_shares` and `FairQueue`).
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InvalidRequest, QueueFull
from .request import FinishReason, Request, TokenLogprobs


@dataclass(slots=True, eq=False)
class Choice:
    """One completion of a request: the owner of a slot from admission to its end."""

    request: Request
    index: int
    origin: int = 0
    """So many tokens of its sequence come before the prompt: those that a session held."""
    slot: int = -1
    tokens: array[int] = field(default_factory=lambda: array("i"))
    """What was drawn. The state has consumed the prompt and all of these but the last."""
    prefill: Prefill | None = None
    """What must be consumed before it draws; None while it decodes."""
    held: bool = False
    """Not in the next step, though it decodes; the engine says so."""


@dataclass(slots=True, eq=False)
class Prefill:
    """Tokens to consume before anything can be drawn, and the choices that start from there."""

    request: Request
    token_ids: Sequence[int]
    choices: list[Choice]
    """The tokens run through the slot of the first; when they are done, the others get a copy of it."""
    position: int = 0
    """So many tokens are consumed."""
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    """Of the tokens consumed, where the request asks for them; the engine fills it."""
    held: bool = False
    """Not ready to draw: all but the last token may be consumed."""
    cuts: set[int] = field(default_factory=set)
    """Positions at which a chunk must end, because the state there is to be kept."""
    waits: bool = False
    """Another request is computing a state that this one can start from: nothing may be consumed now."""
    cached: int = 0
    """Tokens that came with a stored state."""
    hidden: object | None = None
    """The output of the last token, where that came with the state: then nothing is left to consume."""
    embedding: bytes | None = None
    """The same as it is sent, where the request asks for it; the engine fills it."""
    planned: bool = False
    """Whether `PrefixReuse` has looked at it."""

    @property
    def remaining(self) -> int:
        """Tokens that may be consumed now, up to the next cut."""
        if self.waits:
            return 0
        cut = min((cut for cut in self.cuts if cut > self.position), default=len(self.token_ids))
        return max(0, min(cut, len(self.token_ids) - self.held) - self.position)

    @property
    def ready(self) -> bool:
        """Whether its choices can draw without any forward pass."""
        return self.hidden is not None and not self.held

    def __post_init__(self) -> None:
        for choice in self.choices:
            choice.prefill = self


@dataclass(slots=True)
class Chunk:
    """A piece of a prefill that runs in one step: tokens `start` to `stop`."""

    prefill: Prefill
    start: int
    stop: int

    @property
    def slot(self) -> int:
        return self.prefill.choices[0].slot

    @property
    def token_ids(self) -> Sequence[int]:
        return self.prefill.token_ids[self.start : self.stop]

    @property
    def last(self) -> bool:
        """Whether the logits of its last token are the first to draw from."""
        return self.stop == len(self.prefill.token_ids)


@dataclass(slots=True)
class Batch:
    """The rows of one step: decoding choices, one token each, then chunks of prompts."""

    decoding: list[Choice]
    chunks: list[Chunk]
    known: list[Prefill] = field(default_factory=list)
    """Prompts whose last output is known: they have no row, and draw in this step."""

    @property
    def rows(self) -> int:
        return len(self.decoding) + len(self.chunks) + len(self.known)

    @property
    def prompts(self) -> list[Prefill]:
        """Those that this step completes."""
        return [chunk.prefill for chunk in self.chunks if chunk.last] + self.known

    @property
    def slots(self) -> list[int]:
        return [choice.slot for choice in self.decoding] + [chunk.slot for chunk in self.chunks]

    @property
    def lengths(self) -> list[int]:
        return [1] * len(self.decoding) + [chunk.stop - chunk.start for chunk in self.chunks]

    @property
    def positions(self) -> list[int]:
        """Of the first token of each row, in its whole sequence."""
        decoding = [one.origin + len(one.request.prompt_ids) + len(one.tokens) - 1 for one in self.decoding]
        return decoding + [chunk.prefill.choices[0].origin + chunk.start for chunk in self.chunks]

    @property
    def token_ids(self) -> list[int]:
        """Of all rows, one after the other."""
        packed = [choice.tokens[-1] for choice in self.decoding]
        for chunk in self.chunks:
            packed += chunk.token_ids
        return packed

    @property
    def ready(self) -> list[tuple[Choice, int]]:
        """Choices that draw a token in this step, with the packed position whose logits they draw from; the outputs
        of `known` prompts follow the packed ones."""
        ready = [(choice, position) for position, choice in enumerate(self.decoding)]
        for prefill, end in self.ends:
            if prefill.request.sampling.max_tokens > 0:
                ready += [(choice, end) for choice in prefill.choices]
        return ready

    @property
    def ends(self) -> list[tuple[Prefill, int]]:
        """Prompts that this step completes, with the position of their last output, as in `ready`."""
        ends, position = [], len(self.decoding)
        for chunk in self.chunks:
            position += chunk.stop - chunk.start
            if chunk.last:
                ends.append((chunk.prefill, position - 1))
        return ends + [(prefill, position + index) for index, prefill in enumerate(self.known)]

    @property
    def choices(self) -> list[Choice]:
        """Every choice that depends on this step."""
        prefills = [chunk.prefill for chunk in self.chunks] + self.known
        return self.decoding + [choice for prefill in prefills for choice in prefill.choices]


def fair_shares(budget: int, wants: Sequence[int]) -> list[int]:
    """Split `budget` max-min fairly: nobody gets more than he wants, and what one leaves goes to the others.

    So short prompts are done in the first step they get, and a long one takes what is left. Where the budget is below
    the number of takers, the first ones get a token each; `wants` is therefore in order of arrival.
    """
    shares = [0] * len(wants)
    takers = sorted(range(min(budget, len(wants))), key=wants.__getitem__)
    for done, taker in enumerate(takers):
        shares[taker] = min(wants[taker], -(-budget // (len(takers) - done)))
        budget -= shares[taker]
    return shares


class FairQueue:
    """Requests that wait for slots: first come, first served within a tenant, tenants in turn.

    The head keeps its turn until it fits, even where a later, smaller request would fit now: otherwise a request of
    many choices could wait for ever.
    """

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, deque[Prefill]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, prefill: Prefill) -> bool:
        return prefill in self._tenants.get(prefill.request.tenant, ())

    def waits(self, tenant: str) -> bool:
        return tenant in self._tenants

    def push(self, prefill: Prefill, *, first: bool = False) -> None:
        waiting = self._tenants.setdefault(prefill.request.tenant, deque())
        if first:
            waiting.appendleft(prefill)
            self._tenants.move_to_end(prefill.request.tenant, last=False)
        else:
            waiting.append(prefill)
        self._size += 1

    def head(self) -> Prefill | None:
        return next(iter(self._tenants.values()))[0] if self._tenants else None

    def pop(self) -> Prefill:
        """Take the head; its tenant goes to the end of the round."""
        tenant, waiting = self._tenants.popitem(last=False)
        prefill = waiting.popleft()
        if waiting:
            self._tenants[tenant] = waiting
        self._size -= 1
        return prefill

    def remove(self, prefill: Prefill) -> None:
        tenant = prefill.request.tenant
        waiting = self._tenants[tenant]
        waiting.remove(prefill)
        if not waiting:
            del self._tenants[tenant]
        self._size -= 1


class Scheduler:
    """Slots, the queue before them, and what each step runs."""

    def __init__(self, *, max_batch: int, max_queue: int, prefill_budget: int) -> None:
        self.max_batch = max_batch
        self.max_queue = max_queue
        self.prefill_budget = prefill_budget
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

    @property
    def running(self) -> int:
        """Requests that have slots."""
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
        waits = len(self.queue) > 0 or request.choices > len(self._free)
        if not first and waits and len(self.queue) >= self.max_queue and self.queue.waits(request.tenant):
            raise QueueFull(f"{len(self.queue)} requests wait already; try again later", retry_after_s=1)
        choices = [Choice(request, index, origin) for index in range(request.choices)]
        self._requests[request.id] = choices
        self.queue.push(Prefill(request, request.prompt_ids, list(choices)), first=first)
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
            return Batch([], [Chunk(suspect, suspect.position, stop)])
        known = [prefill for prefill in self.prefills if prefill.ready]
        decoding = [choice for choice in self.decoding.values() if not choice.held]
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
            self.queue.pop()
            for choice in head.choices:
                choice.slot = self._free.pop()
            self.prefills.append(head)

    def _next_chunks(self) -> list[Chunk]:
        """Share the budget among the tenants that prefill, and each one's part among its requests."""
        tenants: dict[str, list[Prefill]] = {}
        for prefill in self.prefills[: self.prefill_budget]:
            tenants.setdefault(prefill.request.tenant, []).append(prefill)
        wants = [[one.remaining for one in prefills] for prefills in tenants.values()]
        chunks = []
        for prefills, want, share in zip(
            tenants.values(), wants, fair_shares(self.prefill_budget, [sum(want) for want in wants]), strict=True
        ):
            for prefill, tokens in zip(prefills, fair_shares(share, want), strict=True):
                if tokens:
                    chunks.append(Chunk(prefill, prefill.position, prefill.position + tokens))
        return chunks

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
