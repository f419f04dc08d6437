"""The forward pass of a step: the tokens of a batch through the model, and the rows of logits to draw from."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, cast

from ..model.base import Model
from ..state.pool import State, StatePool
from .arrays import arrays_of
from .batch import Batch
from .request import TokenLogprobs

if TYPE_CHECKING:  # they need torch, and a device that records
    from .graphs import DecodeGraphs, Recorder

SCORED_ROWS = 64
"""Rows of logits held at once for prompt log-probabilities: 16 MB at a vocabulary of 65,536."""


class Scorer(Protocol):
    """`Sampler.score_prompt`."""

    def __call__(
        self, logits: Any, next_ids: list[int], top: int, *, token_limit: int | None
    ) -> list[TokenLogprobs]: ...


class Forward:
    """A model and the slots it works in.

    Attributes:
        graphs: recorded decode steps, which `record` makes; None where every step is launched by itself.
    """

    def __init__(self, model: Model, pool: StatePool) -> None:
        self.model = model
        self.pool = pool
        self.graphs: DecodeGraphs | None = None
        self.arrays = arrays_of(pool)

    def computing(self) -> AbstractContextManager[None]:
        """What everything that computes with the model runs in."""
        return self.arrays.computing()

    def check(self) -> None:
        """Run one token of no request (slot -1): warms the model up, and shows whether it still works."""
        token, rows = self.arrays.pack([0], [-1], [1])
        with self.computing():
            self.model.logits(self.model.forward(token, rows, self.pool))

    def compile(self, progress: Callable[[float], None]) -> None:
        """Run prompts of no request, alone and beside decode rows, of all numbers of rows that kernels differ in: a
        kernel that is compiled at its first use would stop every stream for seconds.

        Args:
            progress: called with the share done.
        """
        slots = self.pool.slots
        numbers = sorted({min(slots, rows) for rows in (1, 2, 3, 65, 66, slots)})  # odd and even: how pointers align
        for done, rows in enumerate(numbers, 1):
            for decode in {0, rows // 2}:
                lengths = [1] * decode + [17] * (rows - decode)
                token_ids, packed = self.arrays.pack([0] * sum(lengths), [-1] * rows, lengths, decode=decode)
                with self.computing():
                    self.model.logits(self.model.forward(token_ids, packed, self.pool)[:rows])
            progress(done / len(numbers))

    def record(self, recorder: Recorder, sizes: list[int], progress: Callable[[float], None]) -> None:
        """Record decode steps of so many rows; resets the states.

        Args:
            progress: called with the share done.
        """
        from ..state.torch_pool import TorchPool
        from .graphs import DecodeGraphs

        self.graphs = DecodeGraphs(self.model, cast(TorchPool, self.pool), recorder, sizes, progress)

    def start(self, batch: Batch, base: Callable[[str], State | None]) -> None:
        """Give the slots of prompts that start in this step their first state.

        Args:
            base: of a request's id, the state it goes on from; None for the model's own, tuned or zero.
        """
        fresh = []
        for chunk in batch.chunks:
            if chunk.start > 0:
                continue
            request = chunk.prefill.request
            state = base(request.id)
            if state is None:
                state = self.model.initial_state(request.tuned_state)
            if state is None:
                fresh.append(chunk.slot)
            else:
                self.pool.write(chunk.slot, state)
        self.pool.reset(fresh)

    def run(self, batch: Batch, token_ids: Any = None, rows: Any = None) -> Any:
        """Consume the batch's tokens: the states of its slots move on.

        Args:
            token_ids, rows: the batch's as they are on the device, where the host does not know them.

        Returns: [N + K, C]; the outputs of its N tokens, packed as the batch has them, then those of its K known
        prompts. When it raises, the states of the batch are lost.
        """
        outputs = [self.arrays.from_host(prefill.hidden)[None] for prefill in batch.known if prefill.hidden is not None]
        if rows is not None and rows.lengths:
            outputs.insert(0, self.model.forward(token_ids, rows, self.pool))
        elif batch.slots:
            outputs.insert(0, self._pass(batch))
        return self.arrays.join(outputs)

    def _pass(self, batch: Batch) -> Any:
        """The batch's tokens through the model, [N, C]: as one recorded step where it only decodes."""
        if self.graphs is not None and not batch.chunks:
            hidden = self.graphs.forward(batch.token_ids, batch.slots)
            if hidden is not None:
                return hidden
        token_ids, rows = self.arrays.pack(
            batch.token_ids, batch.slots, batch.lengths, positions=batch.positions, decode=len(batch.decoding)
        )
        return self.model.forward(token_ids, rows, self.pool)

    def score_prompts(self, batch: Batch, hidden: Any, score: Scorer) -> None:
        """Log-probabilities of the prompt tokens that follow the batch's, where a request asks for them.

        Args:
            hidden: from `run`.
        """
        position = len(batch.decoding)
        for chunk in batch.chunks:
            prefill, length = chunk.prefill, chunk.stop - chunk.start
            top = prefill.request.sampling.prompt_logprobs
            if top is not None and not prefill.choices[0].tokens:
                if chunk.start == 0:
                    prefill.prompt_logprobs = [None]
                next_ids = prefill.token_ids[chunk.start + 1 : chunk.stop + 1]
                for start in range(0, len(next_ids), SCORED_ROWS):
                    ids = list(next_ids[start : start + SCORED_ROWS])
                    logits = self.model.logits(hidden[position + start : position + start + len(ids)])
                    limit = prefill.request.sampling.token_limit
                    prefill.prompt_logprobs += score(logits, ids, top, token_limit=limit)
            position += length

    def finish(self, batch: Batch, hidden: Any) -> None:
        """Copy the states of prompts that are done to their other choices, and keep the embeddings asked for.

        Args:
            hidden: from `run`.
        """
        for prefill in batch.prompts:
            self.pool.copy(prefill.choices[0].slot, [choice.slot for choice in prefill.choices[1:]])
        for prefill, position in batch.ends:
            if prefill.request.embed:
                prefill.embedding = self.arrays.to_host(hidden[position]).astype("<f4").tobytes()

    def logits(self, batch: Batch, hidden: Any) -> Any:
        """[n, vocab_size] of the batch's `ready` choices, from what `run` gave; empty when there are none."""
        positions = [position for _, position in batch.ready]
        if not positions:
            return self.arrays.empty()
        every = positions == list(range(len(hidden)))  # as many is not enough: choices share a position
        return self.model.logits(hidden if every else hidden[positions])
