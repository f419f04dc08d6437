"""From logits to token ids, for rows with different settings: penalties, grammar masks, truncations, seeded draw.

Both sampling orders are one formula. A row draws from exp(logit / temperature) over a kept set; the set is chosen on
softmax(logit / T), where T is the temperature (`temperature_first`: top-k, then top-p of what top-k left) or 1
(`top_p_first`, as ChatRWKV's `sample_logits`: top-p of everything, then top-k). In both, min-p and then typical-p
narrow what is left.

Ties: top-k keeps exactly k tokens, the lower id first; top-p and typical-p keep every token equal to the last one
they need. The draw inverts the cumulative distribution in token-id order.

All results of a row come from that row alone, by operations whose order does not depend on the number of rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 256
"""Tokens summed at once on the way to a draw."""
_LIKELY = 1e-4
"""First guess of the probability under which top-p keeps nothing: it leaves at most 10,000 candidates to sort."""


@dataclass(frozen=True, slots=True)
class Truncation:
    """Settings of n rows that draw; every field is [n]. The neutral values switch a truncation off."""

    temperature: Tensor
    """float32, above 0."""
    top_k: Tensor
    """int64; 0 is off."""
    top_p: Tensor
    """float64; 1 is off, 0 keeps the likeliest."""
    min_p: Tensor
    """float64; 0 is off."""
    typical_p: Tensor
    """float64; 1 is off."""
    top_p_first: Tensor
    """bool; False is `temperature_first`."""


def penalize_reference(
    logits: Tensor, counts: Tensor, seen: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> Tensor:
    """Dense form of the penalties: the meaning of `penalize_`.

    Args:
        logits: [n, V] float32.
        counts: [n, V]; how often each token was generated before this step, decayed.
        seen: [n, V] bool; generated at all. Presence and repetition do not decay.
        repetition, presence, frequency: [n]; neutral at 1, 0, 0.

    Returns: [n, V]. Repetition first (Keskar et al. 2019, as Hugging Face: divides positive logits, multiplies
    negative ones), then minus presence + count * frequency (ChatRWKV's `generate`).
    """
    repetition, presence, frequency = (x.unsqueeze(-1) for x in (repetition, presence, frequency))
    penalized = torch.where(logits > 0, logits / repetition, logits * repetition) - (presence + counts * frequency)
    return torch.where(seen, penalized, logits)


def penalize_(
    logits: Tensor, rows: Tensor, ids: Tensor, counts: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> None:
    """Penalise in place the tokens listed, each (row, id) at most once.

    Args:
        logits: [n, V] float32, changed in place.
        rows, ids: [m] int64; the tokens each row has generated.
        counts, repetition, presence, frequency: [m] float32, one for each token listed.
    """
    value = logits[rows, ids]
    value = torch.where(value > 0, value / repetition, value * repetition) - (presence + counts * frequency)
    logits[rows, ids] = value


def mask_(logits: Tensor, bitmask: Tensor) -> None:
    """Ban in place every token whose bit is 0: token t is bit t % 32 of word t // 32.

    Args:
        logits: [n, V] float32.
        bitmask: [n, W] int32; ids from 32 W on are banned too.
    """
    n, words = bitmask.shape
    bits = torch.arange(8, dtype=torch.uint8, device=bitmask.device)
    allowed = ((bitmask.view(torch.uint8).unsqueeze(-1) >> bits) & 1).view(n, words * 32).bool()
    known = min(logits.shape[-1], words * 32)
    logits[:, :known].masked_fill_(~allowed[:, :known], -torch.inf)
    logits[:, known:] = -torch.inf


def greedy(logits: Tensor) -> Tensor:
    """[n, V] to [n] int64: the likeliest token, the lowest id among equals."""
    return logits.argmax(-1)


def truncate(weights: Tensor, total: Tensor, settings: Truncation) -> Tensor:
    """Which tokens are kept.

    Args:
        weights: [n, c] float32; exp((logit - row maximum) / T) of tokens in id order, T as in the module's text. They
            may be a part of the vocabulary if it holds every token that can be kept; 0 is padding.
        total: [n] float64; the sum of the weights over the whole vocabulary.

    Returns: [n, c] bool; at least one token of each row.
    """
    column = Truncation(*(getattr(settings, name).unsqueeze(-1) for name in Truncation.__slots__))
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)  # stable: equal weights stay in id order
    ordered = ordered.double()
    rank = torch.arange(weights.shape[-1], device=weights.device)
    within_k = (column.top_k == 0) | (rank < column.top_k)

    mass = torch.where(column.top_p_first, ordered, ordered * within_k).cumsum(-1)
    whole = torch.where(column.top_p_first, total.unsqueeze(-1), mass[:, -1:])
    cutoff = ordered.gather(-1, _reached(mass, column.top_p * whole))
    keep = within_k & ((ordered >= cutoff) | (column.top_p >= 1))
    keep &= ordered >= column.min_p * ordered[:, :1]

    if bool((settings.typical_p < 1).any()):
        kept = ordered * keep
        probability = kept / kept.cumsum(-1)[:, -1:]
        entropy = torch.special.entr(probability).cumsum(-1)[:, -1:]
        surprise = (-probability.log() - entropy).abs()  # inf for what is not kept
        nearest, by_surprise = surprise.sort(dim=-1, stable=True)
        mass = probability.gather(-1, by_surprise).cumsum(-1)
        cutoff = nearest.gather(-1, _reached(mass, column.typical_p))
        keep &= (surprise <= cutoff) | (column.typical_p >= 1)
    keep &= ordered > 0  # padding, and what is too unlikely for float32
    return torch.zeros_like(keep).scatter(-1, order, keep)


def _reached(mass: Tensor, wanted: Tensor) -> Tensor:
    """[n, 1]: the first index where a running sum [n, c] is at least `wanted` [n, 1]; the last if it never is."""
    return (mass < wanted).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)


def draw_reference(logits: Tensor, settings: Truncation, uniform: Tensor) -> Tensor:
    """One token for each row: the meaning of `draw`.

    Args:
        logits: [n, V] float32, with a finite maximum in every row.
        uniform: [n] float64 in [0, 1).

    Returns: [n] int64.
    """
    weights = _weights(logits, _truncation_temperature(settings))
    keep = truncate(weights, weights.double().sum(-1), settings)
    mass = (_weights(logits, settings.temperature) * keep).double().cumsum(-1)
    chosen = (mass <= uniform.unsqueeze(-1) * mass[:, -1:]).sum(-1)
    last = keep.shape[-1] - 1 - keep.flip(-1).int().argmax(-1)
    return torch.minimum(chosen, last)


def draw(logits: Tensor, settings: Truncation, uniform: Tensor) -> Tensor:
    """`draw_reference` without sorting the vocabulary: only tokens that can be kept are looked at.

    Args and returns: as `draw_reference`.
    """
    weights = _weights(logits, _truncation_temperature(settings))
    total = block_sums(weights).sum(-1)
    candidates = weights >= _floor(weights, total, settings).unsqueeze(-1)
    rows, ids = candidates.nonzero(as_tuple=True)
    sizes = candidates.sum(-1)
    column = torch.arange(len(ids), device=ids.device) - (sizes.cumsum(0) - sizes)[rows]
    shape = (len(logits), int(sizes.max()))
    few_weights = weights.new_zeros(shape)
    few_weights[rows, column] = weights[rows, ids]
    few_ids = ids.new_zeros(shape)
    few_ids[rows, column] = ids

    keep = truncate(few_weights, total, settings)
    few_logits = logits.gather(-1, few_ids).masked_fill(~keep, -torch.inf)
    mass = _weights(few_logits, settings.temperature).double().cumsum(-1)
    chosen = (mass <= uniform.unsqueeze(-1) * mass[:, -1:]).sum(-1)
    last = shape[-1] - 1 - keep.flip(-1).int().argmax(-1)
    return few_ids.gather(-1, torch.minimum(chosen, last).unsqueeze(-1)).squeeze(-1)


def draw_untruncated(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """`draw` for rows that keep every token: no search, no sort.

    Args:
        logits: [n, V] float32, with a finite maximum in every row.
        temperature: [n] float32, above 0.
        uniform: [n] float64 in [0, 1).

    Returns: [n] int64.
    """
    weights = _weights(logits, temperature)
    blocks = block_sums(weights)
    mass = blocks.cumsum(-1)
    target = uniform * mass[:, -1]
    block = torch.minimum((mass <= target.unsqueeze(-1)).sum(-1), _last_positive(blocks))
    start = mass.gather(-1, block.unsqueeze(-1)).squeeze(-1) - blocks.gather(-1, block.unsqueeze(-1)).squeeze(-1)

    ids = (block * _BLOCK).unsqueeze(-1) + torch.arange(_BLOCK, device=block.device)
    inside = weights.gather(-1, ids.clamp(max=weights.shape[-1] - 1)) * (ids < weights.shape[-1])
    chosen = (inside.double().cumsum(-1) <= (target - start).unsqueeze(-1)).sum(-1)
    return block * _BLOCK + torch.minimum(chosen, _last_positive(inside))


def _last_positive(mass: Tensor) -> Tensor:
    """[n, c] to [n]: where rounding may not push a draw past."""
    return mass.shape[-1] - 1 - (mass > 0).flip(-1).int().argmax(-1)


def block_sums(weights: Tensor) -> Tensor:
    """[n, V] to [n, ceil(V / 256)] float64: sums of neighbours, in an order that does not depend on n."""
    whole = weights.shape[-1] // _BLOCK * _BLOCK
    blocks = weights[:, :whole].view(len(weights), -1, _BLOCK).sum(-1).double()
    if whole == weights.shape[-1]:
        return blocks
    rest = weights.new_zeros(len(weights), _BLOCK)
    rest[:, : weights.shape[-1] - whole] = weights[:, whole:]
    return torch.cat([blocks, rest.sum(-1, keepdim=True).double()], -1)


def _weights(logits: Tensor, temperature: Tensor) -> Tensor:
    """[n, V] float32: exp((logit - row maximum) / temperature); the likeliest has 1."""
    return ((logits - logits.amax(-1, keepdim=True)) / temperature.unsqueeze(-1)).exp_()


def _truncation_temperature(settings: Truncation) -> Tensor:
    return torch.where(settings.top_p_first, torch.ones_like(settings.temperature), settings.temperature)


def _floor(weights: Tensor, total: Tensor, settings: Truncation) -> Tensor:
    """[n] float32: a weight under which no token of the row can be kept; as high as is cheap to know.

    Tokens under (1 - top_p) / V in probability have less than 1 - top_p together, so those above reach top-p.
    """
    vocab_size = weights.shape[-1]
    floor = settings.min_p.clone()
    if bool((settings.top_k > 0).any()):
        limited = settings.top_k > 0
        k = settings.top_k.clamp(1, vocab_size)
        likeliest = weights.topk(int((k * limited).max()), dim=-1).values
        floor = torch.where(
            limited,
            torch.maximum(
                floor, likeliest.gather(-1, (k - 1).clamp(max=likeliest.shape[-1] - 1).unsqueeze(-1)).squeeze(-1)
            ),
            floor,
        )
    by_mass = (settings.top_p < 1) & (settings.top_p_first | (settings.top_k == 0))
    if bool(by_mass.any()):
        guess = (total * _LIKELY).float()
        likely = block_sums(weights * (weights >= guess.unsqueeze(-1))).sum(-1)
        certain = total * (1 - settings.top_p) / vocab_size * 0.5  # half: room for rounding
        enough = likely > settings.top_p * total * (1 + 1e-5)
        floor = torch.where(by_mass, torch.maximum(floor, torch.where(enough, guess.double(), certain)), floor)
    return (floor * (1 - 1e-6)).float()
