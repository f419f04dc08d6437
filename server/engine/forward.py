"""The forward pass of a step: the tokens of a batch through the model, and the rows of logits to draw from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import torch
from torch import Tensor

from rookery.kernels.rows import Rows

from ..model.base import Model
from ..state.pool import State, StatePool
from .batch import Batch
from .graphs import DecodeGraphs, Recorder
from .request import TokenLogprobs

SCORED_ROWS = 64
"""Rows of logits held at once for prompt log-probabilities: 16 MB at a vocabulary of 65,536."""


class Scorer(Protocol):
    """`Sampler.score_prompt`."""

    def __call__(
        self, logits: Tensor, next_ids: list[int], top: int, *, token_limit: int | None
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
        self._device = pool.wkv.device

    def check(self) -> None:
        """Run one token of no request (slot -1): warms the model up, and shows whether it still works."""
        token = torch.zeros(1, dtype=torch.int64, device=self._device)
        with torch.inference_mode():
            self.model.logits(self.model.forward(token, Rows.pack([-1], [1], self._device), self.pool))

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
                token_ids = torch.zeros(sum(lengths), dtype=torch.int64, device=self._device)
                with torch.inference_mode():
                    packed = Rows.pack([-1] * rows, lengths, self._device, decode=decode)
                    self.model.logits(self.model.forward(token_ids, packed, self.pool)[:rows])
            progress(done / len(numbers))

    def record(self, recorder: Recorder, sizes: list[int], progress: Callable[[float], None]) -> None:
        """Record decode steps of so many rows; resets the states.

        Args:
            progress: called with the share done.
        """
        self.graphs = DecodeGraphs(self.model, self.pool, recorder, sizes, progress)

    @torch.inference_mode()
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

    def run(self, batch: Batch, token_ids: Tensor | None = None, rows: Rows | None = None) -> Tensor:
        """Consume the batch's tokens: the states of its slots move on.

        Args:
            token_ids, rows: the batch's as they are on the device, where the host does not know them.

        Returns: [N + K, C]; the outputs of its N tokens, packed as the batch has them, then those of its K known
        prompts. When it raises, the states of the batch are lost.
        """
        outputs = [cast(Tensor, prefill.hidden).to(self._device)[None] for prefill in batch.known]
        if token_ids is not None and rows is not None and rows.lengths:
            outputs.insert(0, self.model.forward(token_ids, rows, self.pool))
        elif batch.slots:
            outputs.insert(0, self._pass(batch))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _pass(self, batch: Batch) -> Tensor:
        """The batch's tokens through the model, [N, C]: as one recorded step where it only decodes."""
        if self.graphs is not None and not batch.chunks:
            hidden = self.graphs.forward(batch.token_ids, batch.slots)
            if hidden is not None:
                return hidden
        token_ids = torch.tensor(batch.token_ids, dtype=torch.int64, device=self._device)
        rows = Rows.pack(
            batch.slots, batch.lengths, self._device, positions=batch.positions, decode=len(batch.decoding)
        )
        return self.model.forward(token_ids, rows, self.pool)

    def score_prompts(self, batch: Batch, hidden: Tensor, score: Scorer) -> None:
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

    def finish(self, batch: Batch, hidden: Tensor) -> None:
        """Copy the states of prompts that are done to their other choices, and keep the embeddings asked for.

        Args:
            hidden: from `run`.
        """
        for prefill in batch.prompts:
            self.pool.copy(prefill.choices[0].slot, [choice.slot for choice in prefill.choices[1:]])
        for prefill, position in batch.ends:
            if prefill.request.embed:
                prefill.embedding = hidden[position].float().cpu().numpy().astype("<f4").tobytes()

    def logits(self, batch: Batch, hidden: Tensor) -> Tensor:
        """[n, vocab_size] of the batch's `ready` choices, from what `run` gave; empty when there are none."""
        positions = [position for _, position in batch.ready]
        if not positions:
            return hidden.new_empty(0, 0)
        every = positions == list(range(len(hidden)))  # as many is not enough: choices share a position
        return self.model.logits(hidden if every else hidden[positions])
