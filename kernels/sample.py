"""One token for each row of logits, all on the device: penalties, truncation and the seeded draw in one operator.

The rules are those of `sampling`, the random numbers those of `random`; what is added is that nothing waits for the
host, so that a step can follow another without one. Typical-p is not among it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import random, sampling
from .backend import uses_triton

SEEN = 1e-300
"""Smallest count of a token that was generated: decay never makes it unseen, and the cost of it is nothing."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Which random number each row draws with, as `random.uniform` names them; all [n] int64."""

    seed: Tensor
    choice: Tensor
    drawn: Tensor


@dataclass(frozen=True, slots=True)
class Penalties:
    """What rows have generated, and what it costs them.

    counts: [P, V] float64, by penalty slot: how often each token was generated, decayed; 0 is never, and what was
        generated keeps at least `SEEN`. Updated in place by the tokens drawn.
    free: [P, V] uint8, by penalty slot: 1 where drawing the token adds nothing to its count.
    slots: [n] int64; the penalty slot of each row, -1 for rows without penalties.
    repetition, presence, frequency: [n] float32.
    decay: [n] float64.
    """

    counts: Tensor
    free: Tensor
    slots: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    decay: Tensor


def sample_reference(
    logits: Tensor,
    settings: sampling.Truncation,
    streams: Streams,
    penalties: Penalties | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    """The meaning of `sample`, row by row."""
    token_ids = []
    for i, row in enumerate(logits):
        row = row.unsqueeze(0)
        slot = -1 if penalties is None else int(penalties.slots[i])
        if penalties is not None and slot >= 0:
            count = penalties.counts[slot : slot + 1]
            strengths = (x[i : i + 1] for x in (penalties.repetition, penalties.presence, penalties.frequency))
            row.copy_(sampling.penalize_reference(row, count.float(), count > 0, *strengths))
        if limits is not None:
            row = row[:, : int(limits[i])]
        if not bool(row.max().isfinite()):
            token_ids.append(-1)
            continue
        if float(settings.temperature[i]) == 0:
            token = int(sampling.greedy(row))
        else:
            one = sampling.Truncation(*(getattr(settings, name)[i : i + 1] for name in settings.__slots__))
            seed, choice, drawn = (int(x[i]) for x in (streams.seed, streams.choice, streams.drawn))
            uniform = torch.from_numpy(random.uniform(seed, choice, drawn, 1)).to(row.device)
            token = int(sampling.draw_reference(row, one, uniform))
        if penalties is not None and slot >= 0:
            count = penalties.counts[slot]
            count.copy_(torch.where(count > 0, (count * penalties.decay[i]).clamp(min=SEEN), count))
            count[token] = (count[token] + 1 - penalties.free[slot, token].double()).clamp(min=SEEN)
        token_ids.append(token)
    return torch.tensor(token_ids, dtype=torch.int64, device=logits.device)


def sample(
    logits: Tensor,
    settings: sampling.Truncation,
    streams: Streams,
    penalties: Penalties | None = None,
    limits: Tensor | None = None,
) -> Tensor:
    """Draw a token for each row.

    Args:
        logits: [n, V] float32, biased and masked; overwritten by the penalised ones.
        settings: as `sampling.draw`, but temperature 0 draws the likeliest, and typical_p is taken as 1.
        penalties: None when no row has any.
        limits: [n] int64; each row draws an id below its own. None for the whole vocabulary.

    Returns: [n] int64; -1 where no token has a finite logit or one is not a number.
    """
    if uses_triton(logits.device.type):
        from .triton import sample as kernels

        return kernels.sample(logits, settings, streams, penalties, limits)
    return sample_reference(logits, settings, streams, penalties, limits)
