"""What a step runs, as plain data: choices, the prompts they wait for, and the rows made of them."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .request import Request, TokenLogprobs

if TYPE_CHECKING:
    from rookery.kernels.cpu.arrays import FloatArray


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
    unread: int = 0
    """Tokens drawn on a device that have not been read: `tokens` lags so many behind."""

    @property
    def spent(self) -> bool:
        """Whether its last token is drawn, if not read."""
        return len(self.tokens) + self.unread >= self.request.sampling.max_tokens


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
    hidden: FloatArray | None = None
    """The output of the last token, where that came with the state: then nothing is left to consume."""
    embedding: bytes | None = None
    """The same as it is sent, where the request asks for it; the engine fills it."""
    planned: bool = False
    """Whether `PrefixReuse` has looked at it."""
    served: int = 0
    """The step that last computed a part of it, or it came in; whoever has waited longest goes first."""
    parked: bool = False
    """It had slots and gave them to another tenant: it waits in the queue to go on where it was."""
    state: object | None = None
    """What its slot held when it was parked; the engine fills it."""

    @property
    def remaining(self) -> int:
        """Tokens that may be consumed now, up to the next cut."""
        if self.waits:
            return 0
        cut = min((cut for cut in self.cuts if cut > self.position), default=len(self.token_ids))
        return max(0, min(cut, len(self.token_ids) - self.held) - self.position)

    @classmethod
    def parking(cls, choice: Choice) -> Prefill:
        """What a decoding choice waits in for a slot: nothing is left to consume."""
        prefill = cls(choice.request, (), [choice], planned=True)
        choice.prefill = None
        return prefill

    def aligned(self, stop: int, block: int) -> int:
        """Where a chunk ends that may go up to `stop`: at a multiple of `block` in the whole sequence, or where the
        prompt ends or is cut. Not past `position` where that is impossible."""
        if stop == len(self.token_ids) or stop in self.cuts:
            return stop
        origin = self.choices[0].origin
        return max(self.position, (origin + stop) // block * block - origin)

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
        before = [one.origin + len(one.request.prompt_ids) - 1 for one in self.decoding]
        decoding = [at + len(one.tokens) + one.unread for at, one in zip(before, self.decoding, strict=True)]
        return decoding + [chunk.prefill.choices[0].origin + chunk.start for chunk in self.chunks]

    @property
    def token_ids(self) -> list[int]:
        """Of all rows, one after the other; 0 for a choice none of whose tokens has been read."""
        packed = [choice.tokens[-1] if choice.tokens else 0 for choice in self.decoding]
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
