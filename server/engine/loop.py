"""Steps that do not wait for each other: the next one is launched before the tokens of the last one are read.

    launch n+1  →  read n  →  launch n+2  →  read n+1  →  …

So a step takes its tokens from the device, where the last one left them (`residents.py`), and it may hold rows whose
choice turns out to be finished by a stop token. Those do nothing: the mark that ends a choice is on the device too,
and turns the row's slot into -1. The slot keeps the state after exactly the tokens that were consumed, for whoever
saves it.

A choice that needs the host to draw for it (`fits` says when not) takes part in every other step: its logits come to
the host beside its neighbours' tokens, it is drawn for while the next step runs without it, and enters the one after
that with the token it was given. The engine leaves this loop, for a step, where most choices are of that kind; and it
reads what is on its way before it touches a slot between steps. Then a step runs as it does on a CPU, and what is known
here of choices is stale: they enter anew with the next step, from what the host knows.

Steps that only decode are recorded, together with the drawing, where the device records; and so are those with short
prompts (`mixed_steps.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

import torch
from torch import Tensor

from rookery.kernels.rows import Rows

from ..state.torch_pool import TorchPool
from .batch import Batch, Choice
from .choice_sampling import ChoiceSampling
from .device import Device
from .forward import Forward
from .graphs import Recorder, record_checked
from .mixed_steps import MixedSteps, Size
from .request import SamplingParams
from .residents import Residents


@dataclass(slots=True)
class Flight:
    """A step that has been launched."""

    batch: Batch
    ready: list[Choice]
    """Who draws in it."""
    hidden: Tensor
    """As `Forward.run` gives it."""
    start: float
    """When it was launched, in seconds."""
    tokens: Callable[[], list[int]]
    """From `Device.fetch`."""
    by_host: list[int]
    """Which of those that are ready the host draws for."""
    logits: Callable[[], Tensor] | None
    """Theirs, [n, V], from `Device.bring`; None where there are none."""

    def read(self) -> list[int]:
        """Wait for the step; to be called once. One token for each that is ready: -1 where none could be drawn."""
        tokens = self.tokens()
        for choice in self.ready:
            choice.unread -= 1
        return tokens


class DeviceLoop:
    """Launches steps on a device.

    Args:
        forward: the model and the slots.
        sampling: the settings of every choice that has not ended.
    """

    def __init__(self, forward: Forward, device: Device, sampling: Mapping[Choice, ChoiceSampling]) -> None:
        self._forward = forward
        self._model, self._pool = forward.model, cast(TorchPool, forward.pool)
        self._device = device
        self._sampling = sampling
        self._on = self._pool.device
        self.residents = Residents(self._pool.slots, self._model.shape.vocab_size, self._on, device.send)
        self._pool.carrier = device
        self.mixed = MixedSteps(self._model, self._pool, self.residents, device)
        self._entered: dict[int, Choice] = {}
        """Whose column is up to date, by slot."""
        self._recorded: dict[int, tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]] = {}
        """Steps that only decode, by their number of rows: where their slots go, and what runs them."""

    @property
    def sizes(self) -> list[int]:
        """Rows of the recorded steps that can be used, growing."""
        return list(self._recorded)

    @torch.inference_mode()
    def record(
        self,
        recorder: Recorder,
        sizes: Sequence[int],
        progress: Callable[[float], None] | None = None,
        *,
        mixed: Sequence[Size] = (),
    ) -> None:
        """Record steps of so many rows that only decode; resets the states. Those that differ from what they recorded
        are not used.

        Args:
            progress: called with the share done.
            mixed: steps with prompts to record (`mixed_steps.py`).
        """
        done, tell = 0, progress or (lambda share: None)
        for both in sorted(mixed, key=sum, reverse=True):  # the largest first: the others fit in its memory
            self.mixed.record(both, recorder, self._enter_all_kinds)
            done += 1
            tell(done / (len(sizes) + len(mixed)))
        for size in sorted(sizes, reverse=True):
            slots = torch.full((size,), -1, device=self._on)
            replay = record_checked(recorder, self._step_on(slots), partial(self._rehearse, slots), f"{size} rows")
            if replay is not None:
                self._recorded[size] = slots, replay
            done += 1
            tell(done / (len(sizes) + len(mixed)))
        self._recorded = dict(sorted(self._recorded.items()))
        self._pool.reset(range(self._pool.slots))

    @torch.inference_mode()
    def launch(self, batch: Batch, start: float, by_host: Collection[Choice] = ()) -> Flight:
        """Have the batch consumed and drawn from; when it raises, the states of the batch are lost.

        Args:
            start: the time now, in seconds.
            by_host: choices that the host draws for; what the device draws for them is void.
        """
        ready = [choice for choice, _ in batch.ready]
        self._enter(ready)
        if batch.chunks or batch.known:
            hidden, tokens = self._mixed(batch)
        else:
            hidden, tokens = self._decode(batch.slots)
        fetched = self._device.fetch(tokens)
        asked = [i for i, choice in enumerate(ready) if choice in by_host]
        logits = self._logits_of([batch.ready[i][1] for i in asked], hidden) if asked else None
        for i in asked:
            del self._entered[ready[i].slot]
        for choice in ready:
            choice.unread += 1
        return Flight(batch, ready, hidden, start, fetched, asked, logits)

    def _logits_of(self, positions: list[int], hidden: Tensor) -> Callable[[], Tensor]:
        """Computed again: those of the step are penalised, and perhaps a recording's."""
        at = self._device.send(torch.tensor(positions))
        return self._device.bring(self._model.logits(hidden.index_select(0, at)))

    def leave(self) -> None:
        """The host has drawn tokens: whoever comes back enters anew."""
        self._entered.clear()

    def _enter(self, choices: list[Choice]) -> None:
        new = [choice for choice in choices if self._entered.get(choice.slot) is not choice]
        last = [choice.tokens[-1] if choice.tokens else 0 for choice in new]
        self.residents.enter([(one.slot, token, self._sampling[one]) for one, token in zip(new, last, strict=True)])
        self._entered.update((choice.slot, choice) for choice in new)

    def _decode(self, slots: list[int]) -> tuple[Tensor, Tensor]:
        """A step of one token each."""
        size = next((size for size in self._recorded if size >= len(slots)), None)
        if size is None:
            return self._step_on(self._device.send(torch.tensor(slots)))()
        into, replay = self._recorded[size]
        into.copy_(self._device.send(torch.tensor([*slots, *(-1,) * (size - len(slots))])))
        hidden, tokens = replay()
        return hidden[: len(slots)], tokens[: len(slots)]

    def _step_on(self, slots: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        """The step of the rows in these slots: its outputs [n, C] and tokens [n]."""
        size = len(slots)
        starts = torch.arange(size + 1, device=self._on)
        packed = Rows(slots, starts, torch.zeros_like(slots), (1,) * size, (0,) * size, size)

        def step() -> tuple[Tensor, Tensor]:
            live = self.residents.live(slots)
            hidden = self._model.forward(self.residents.tokens(live), replace(packed, slots=live), self._pool)
            return hidden, self.residents.draw(live, self._model.logits(hidden))

        return step

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A step with prompts in it, or with those whose output is known: outputs as `Forward.run`, tokens [n]."""
        recorded = self.mixed.run(batch)
        if recorded is not None:
            return recorded
        count = len(batch.decoding)
        token_ids = self._device.send(torch.tensor(batch.token_ids, dtype=torch.int64))
        rows = Rows.pack(batch.slots, batch.lengths, positions=batch.positions, decode=count)
        moved = self._device.send(torch.cat([rows.slots, rows.starts, rows.positions]))
        slots, starts, positions = torch.split(moved, [len(rows.slots), len(rows.starts), len(rows.positions)])
        live = self.residents.live(slots[:count])
        slots = torch.cat([live, slots[count:]])
        token_ids = torch.cat([self.residents.tokens(live), token_ids[count:]])
        hidden = self._forward.run(batch, token_ids, replace(rows, slots=slots, starts=starts, positions=positions))

        ready = batch.ready
        if not ready:
            return hidden, hidden.new_empty(0, dtype=torch.int64)
        at = self._device.send(torch.tensor([[position, choice.slot] for choice, position in ready])).T
        logits = self._model.logits(hidden[at[0]])
        return hidden, self.residents.draw(self.residents.live(at[1]), logits)

    def _rehearse(self, slots: Tensor, number: int) -> None:
        """Before the first of two steps of a rehearsal: choices of all kinds in as many slots as there are."""
        if number:
            return
        live = range(min(len(slots), self._pool.slots))
        self._pool.reset(live)
        slots.fill_(-1)
        slots[: len(live)] = torch.arange(len(live), device=self._on)
        self._enter_all_kinds(live)

    def _enter_all_kinds(self, slots: Sequence[int]) -> None:
        """Make the columns of these slots those of choices of all kinds, which are nobody's."""
        vocab_size = self._model.shape.vocab_size
        kinds = (
            SamplingParams(max_tokens=9, temperature=0.0),
            SamplingParams(max_tokens=9, seed=1),
            SamplingParams(max_tokens=9, seed=2, top_k=20, top_p=0.8, logit_bias={1: 2.0}),
            SamplingParams(max_tokens=9, temperature=0.0, logit_bias={0: 100.0}, stop_token_ids=(0,)),
            SamplingParams(max_tokens=9, seed=4, min_p=0.01, presence_penalty=0.5, frequency_penalty=0.5),
        )
        self.residents.enter(
            [(slot, (7 + 13 * slot) % vocab_size, ChoiceSampling(kinds[slot % len(kinds)])) for slot in slots]
        )
        self._entered.clear()
