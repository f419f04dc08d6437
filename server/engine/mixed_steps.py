"""Recorded steps that have prompts in them: for short ones, whose launches would take longer than their work.

A recording has one number of everything, so there is one for each pair of a number of decode rows and a number of
prompt tokens; a step takes the smallest that holds it. What is left over is padding: decode rows and prompts of slot
-1, one of which, the last, has the tokens that are left. All that a step is told lies in one buffer, sent at once.

Only for operators that read on the device where rows begin, as the Triton kernels do: a recording knows no lengths
but its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from rookery.kernels.rows import Rows

from ..model.base import Model
from ..state.torch_pool import TorchPool
from .batch import Batch
from .device import Device
from .graphs import Recorder, record_checked
from .residents import Residents

Size = tuple[int, int]
"""Decode rows, and tokens of prompts."""

PROMPTS = 8
"""In one step at most; more are launched one by one."""
FIRSTS = 16
"""Choices that draw their first token in one step at most."""
_TOKENS = (32, 64, 128, 192, 256, 384, 512, 768, 1024)
"""A longer step's work hides its launches."""
_ROWS = (0, 4, 16, 64, 128, 256, 512)


def mixed_sizes(slots: int, budget: int) -> list[Size]:
    """What to record for so many slots, and so many prompt tokens in a step at most."""
    rows = sorted({min(one, slots) for one in (*_ROWS, slots)})
    tokens = [one for one in _TOKENS if one < budget] + [one for one in _TOKENS if one >= budget][:1]
    return [(row, token) for row in rows for token in tokens]


class MixedSteps:
    """Recordings of one model, its states and what is known of its choices."""

    def __init__(self, model: Model, pool: TorchPool, residents: Residents, device: Device) -> None:
        self._model, self._pool, self._residents, self._device = model, pool, residents, device
        self._recorded: dict[Size, tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]] = {}
        """Where what a step is told goes, and what runs it."""

    @property
    def sizes(self) -> list[Size]:
        """Of the recordings that can be used."""
        return sorted(self._recorded)

    def record(self, size: Size, recorder: Recorder, enter: Callable[[Sequence[int]], None]) -> None:
        """Record one size, and keep it if it does exactly what it recorded; spoils the states.

        Args:
            enter: makes the columns of these slots those of choices of all kinds.
        """
        told = self._told(size, [], [], [], [], []).to(self._pool.device)
        replay = record_checked(
            recorder, self._step_on(size, told), partial(self._rehearse, size, told, enter), f"{size}"
        )
        if replay is not None:
            self._recorded[size] = told, replay

    def run(self, batch: Batch) -> tuple[Tensor, Tensor] | None:
        """The outputs of the batch's tokens, [N, C], and the tokens drawn [n]; None where no recording holds it."""
        count, prompts = len(batch.decoding), len(batch.chunks)
        tokens = sum(batch.lengths) - count
        ready = batch.ready
        if batch.known or prompts > PROMPTS or len(ready) > count + FIRSTS:
            return None
        size = min((size for size in self._recorded if size[0] >= count and size[1] >= tokens), default=None)
        if size is None:
            return None
        into, replay = self._recorded[size]
        drawn = [(at if at < count else at - count + size[0], choice.slot) for choice, at in ready]
        told = self._told(size, batch.slots[:count], batch.slots[count:], batch.token_ids[count:],
                          list(zip(batch.lengths[count:], batch.positions[count:], strict=True)), drawn)  # fmt: skip
        into.copy_(self._device.send(told))
        hidden, token_ids = replay()
        of_prompts = hidden[size[0] : size[0] + tokens]
        return torch.cat([hidden[:count], of_prompts]) if count else of_prompts, token_ids[: len(ready)]

    def _told(
        self,
        size: Size,
        decoding: Sequence[int],
        prompts: Sequence[int],
        token_ids: Sequence[int],
        spans: Sequence[tuple[int, int]],
        drawn: Sequence[tuple[int, int]],
    ) -> Tensor:
        """What a step is told, as one tensor: tokens of prompts; slots, beginnings and positions of rows; outputs to
        draw from, and for which slots.

        Args:
            decoding, prompts: slots.
            spans: length and position of each prompt.
            drawn: output and slot of each draw.
        """
        rows, tokens = size
        missing = [-1] * (PROMPTS - len(prompts)), [0] * (PROMPTS - len(prompts))
        starts = [rows]
        for length, _ in spans:
            starts.append(starts[-1] + length)
        starts += [starts[-1]] * (PROMPTS - len(prompts)) + [rows + tokens]
        idle = rows + FIRSTS - len(drawn)
        return torch.tensor(
            [
                *token_ids, *(0,) * (tokens - len(token_ids)),
                *decoding, *(-1,) * (rows - len(decoding)), *prompts, *missing[0], -1,
                *range(rows), *starts,
                *(0,) * rows, *(position for _, position in spans), *missing[1], 0,
                *(at for at, _ in drawn), *(0,) * idle,
                *(slot for _, slot in drawn), *(-1,) * idle,
            ],
            dtype=torch.int64,
        )  # fmt: skip

    def _step_on(self, size: Size, told: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """The step of what this buffer tells."""
        rows, tokens = size
        every = rows + PROMPTS + 1
        parts = [tokens, every, every + 1, every, rows + FIRSTS, rows + FIRSTS]
        token_ids, slots, starts, positions, at, of = torch.split(told, parts)
        lengths = (*(1,) * rows, *(0,) * PROMPTS, tokens)

        def step() -> tuple[Tensor, Tensor]:
            live = self._residents.live(slots[:rows])
            ids = torch.cat([self._residents.tokens(live), token_ids])
            packed = Rows(torch.cat([live, slots[rows:]]), starts, positions, lengths, (0,) * every, rows)
            hidden = self._model.forward(ids, packed, self._pool)
            logits = self._model.logits(hidden.index_select(0, at))
            return hidden, self._residents.draw(self._residents.live(of), logits)

        return step

    def _rehearse(self, size: Size, told: Tensor, enter: Callable[[Sequence[int]], None], number: int) -> None:
        """Before each of two steps of a rehearsal: as many of everything as there are slots for; prompts go on."""
        rows, tokens = size
        slots = range(self._pool.slots)
        if number == 0:
            self._pool.reset(slots)
            enter(slots)
        prompts = slots[: min(PROMPTS, tokens, max(1, len(slots) - rows))]
        decoding = slots[len(prompts) : len(prompts) + rows]
        length = (tokens - 1) // len(prompts)  # and some padding
        ends = [(rows + (i + 1) * length - 1, slot) for i, slot in enumerate(prompts)]
        ids = [(1 + i % 23) % self._model.shape.vocab_size for i in range(length * len(prompts))]
        spans = [(length, number * length)] * len(prompts)
        told.copy_(self._device.send(self._told(size, decoding, prompts, ids, spans, [*enumerate(decoding), *ends])))
