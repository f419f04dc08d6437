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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

_BLOCK = 256
"""Tokens summed at once on the way to a draw."""
_NEIGHBOURS = 64
"""Tokens skipped at once in the search for candidates."""
_LIKELY = 1e-3
"""First guess of the probability under which top-p keeps nothing: it leaves at most 1,000 candidates to sort."""
_FEW = 1024
"""Rows with so many candidates or fewer are padded to one length and worked on together."""
_BIAS_OF_BYTE = torch.where((torch.arange(256).unsqueeze(-1) >> torch.arange(8)) & 1 == 1, 0.0, -torch.inf).numpy()
"""[256, 8] float32: what eight tokens' bits in a mask add to their logits."""


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
    known = min(logits.shape[-1], words * 32)
    if logits.device.type == "cpu":
        bias = torch.empty(words * 4, 8)  # of one row after the other: it stays in the processor's cache
        for row, mask in zip(logits, bitmask, strict=True):
            _BIAS_OF_BYTE.take(mask.numpy().view("uint8"), axis=0, out=bias.numpy(), mode="clip")  # clip: unbuffered
            row[:known] += bias.view(-1)[:known]
    else:
        table = torch.from_numpy(_BIAS_OF_BYTE).to(logits.device)
        logits[:, :known] += table.index_select(0, bitmask.view(torch.uint8).flatten().int()).view(n, -1)[:, :known]
    logits[:, known:] = -torch.inf


def greedy(logits: Tensor) -> Tensor:
    """[n, V] to [n] int64: the likeliest token, the lowest id among equals."""
    # block maxima first: several times faster than one argmax over the row
    start = _block_maxima(logits, _BLOCK).argmax(-1, keepdim=True) * _BLOCK
    ids = (start + torch.arange(_BLOCK, device=logits.device)).clamp(max=logits.shape[-1] - 1)
    return (start + logits.gather(-1, ids).argmax(-1, keepdim=True)).squeeze(-1)


def truncate(weights: Tensor, total: Tensor, settings: Truncation) -> Tensor:
    """Which tokens are kept.

    Args:
        weights: [n, c] float32; exp((logit - row maximum) / T) of tokens in id order, T as in the module's text. They
            may be a part of the vocabulary if it holds every token that can be kept; 0 is padding.
        total: [n] float64; the sum of the weights over the whole vocabulary. Not used by rows without top-p, nor by
            rows with top-k in `temperature_first`.

    Returns: [n, c] bool; at least one token of each row.
    """
    column = Truncation(*(getattr(settings, name).unsqueeze(-1) for name in Truncation.__slots__))
    if not bool(((settings.top_k > 0) | (settings.typical_p < 1)).any()):
        return _truncate_by_value(weights, total, column)
    ordered, order = weights.sort(dim=-1, descending=True, stable=True)  # stable: equal weights stay in id order
    ordered = ordered.double()
    rank = torch.arange(weights.shape[-1], device=weights.device)
    within_k = (column.top_k == 0) | (rank < column.top_k)

    mass = torch.where(column.top_p_first, ordered, ordered * within_k).cumsum(-1)
    whole = torch.where(column.top_p_first | (column.top_k == 0), total.unsqueeze(-1), mass[:, -1:])
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


def _truncate_by_value(weights: Tensor, total: Tensor, column: Truncation) -> Tensor:
    """`truncate` by top-p and min-p alone: values decide, so nothing has to be known of their places."""
    if weights.device.type == "cpu":
        ordered = weights.clone()
        ordered.numpy().sort(axis=-1)  # many times faster than torch's
        ordered = ordered.flip(-1).double()
    else:
        ordered = weights.sort(dim=-1, descending=True).values.double()
    cutoff = ordered.gather(-1, _reached(ordered.cumsum(-1), column.top_p * total.unsqueeze(-1)))
    keep = (weights >= cutoff) | (column.top_p >= 1)
    keep &= weights >= column.min_p * ordered[:, :1]
    return keep & (weights > 0)


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
    return _draw_kept(logits, None, settings, uniform)


def draw(logits: Tensor | Sequence[Tensor], settings: Truncation, uniform: Tensor) -> Tensor:
    """`draw_reference` without sorting the vocabulary: only tokens that can be kept are looked at.

    Args and returns: as `draw_reference`; the rows may also come one by one, and differ in length.
    """
    rows = zip(*(getattr(settings, name).tolist() for name in Truncation.__slots__), strict=True)
    found = [_candidates(row, *setting) for row, setting in zip(logits, rows, strict=True)]
    token_ids = torch.empty(len(found), dtype=torch.int64, device=uniform.device)
    few = [i for i, (ids, _, _) in enumerate(found) if len(ids) <= _FEW]
    alone = [[i] for i, (ids, _, _) in enumerate(found) if len(ids) > _FEW]  # would make the others' padding long
    for members in [few, *alone] if few else alone:
        at = torch.tensor(members, device=uniform.device)
        ids = pad_sequence([found[i][0] for i in members], batch_first=True)
        near = pad_sequence([found[i][1] for i in members], batch_first=True, padding_value=-torch.inf)
        setting = Truncation(*(getattr(settings, name)[at] for name in Truncation.__slots__))
        total = torch.tensor([found[i][2] for i in members], dtype=torch.float64, device=uniform.device)
        chosen = _draw_kept(near, total, setting, uniform[at])
        token_ids[at] = ids.gather(-1, chosen.unsqueeze(-1)).squeeze(-1)
    return token_ids


def _draw_kept(logits: Tensor, total: Tensor | None, settings: Truncation, uniform: Tensor) -> Tensor:
    """[n, c] logits to [n] columns; `total` as in `truncate`, None for the sum over what is given."""
    weights = _weights(logits, _truncation_temperature(settings))
    keep = truncate(weights, weights.double().sum(-1) if total is None else total, settings)
    mass = (_weights(logits, settings.temperature) * keep).double().cumsum(-1)
    chosen = (mass <= uniform.unsqueeze(-1) * mass[:, -1:]).sum(-1)
    return torch.minimum(chosen, _last_positive(keep))


def _candidates(
    logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, top_p_first: bool
) -> tuple[Tensor, Tensor, float]:
    """Ids of one row [V], in order, that hold every token its settings can keep; their logits; the sum of weights.

    The sum is nan where top-p does not need it. A floor on the logit is found from block maxima (top-k: k blocks
    reach the k-th largest maximum, so k tokens do), from the likeliest token (min-p), or from the mass above it
    (top-p: tokens under (1 - top_p) / V in probability have less than 1 - top_p together, so the others reach top-p;
    higher floors are tried first).
    """
    vocab_size = logits.shape[-1]
    maxima = _block_maxima(logits.unsqueeze(0), _NEIGHBOURS).squeeze(0)
    peak = float(maxima.max())
    scale = 1.0 if top_p_first else temperature
    floor, total = -math.inf, math.nan
    of_top_k = top_k > 0 and top_p < 1 and not top_p_first  # top-p needs the mass of all of them
    if min_p > 0 and not of_top_k:
        floor = peak + scale * math.log(min_p)
    if 0 < top_k < vocab_size:
        source = maxima if top_k <= len(maxima) else logits
        floor = max(floor, float(source.topk(top_k, sorted=False).values.min()))
    if top_p < 1 and not of_top_k:
        weights = (logits - peak).div_(scale).exp_()
        total = float(block_sums(weights.unsqueeze(0)).sum())
        probability, certain = _LIKELY, (1 - top_p) / vocab_size / 2  # half: room for rounding
        while probability > certain:
            above = torch.threshold(weights, probability * total, 0.0)
            if float(above.sum()) > top_p * total * (1 + 1e-5):
                break
            probability /= 4
        floor = max(floor, peak + scale * math.log(max(probability, certain, 1e-300) * total))
    floor -= scale * 1e-4  # room for rounding again: too many candidates do no harm
    if top_k == 0 and 2 * int((maxima >= floor).sum()) > len(maxima):  # picking them out would cost more than it saves
        return torch.arange(vocab_size, device=logits.device), logits, total
    near = (maxima >= floor).nonzero() * _NEIGHBOURS + torch.arange(_NEIGHBOURS, device=logits.device)
    values = logits[near.clamp(max=vocab_size - 1)]
    enough = (values >= floor) & (near < vocab_size)
    return near[enough], values[enough], total


def likeliest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Ids [k] and logits [k] of the k largest of one row [V], largest first, lower ids first among equals."""
    ids, values, _ = _candidates(logits, 1.0, k, 1.0, 0.0, 1.0, False)
    values, order = values.sort(descending=True, stable=True)
    return ids[order[:k]], values[:k]


def _block_maxima(logits: Tensor, size: int) -> Tensor:
    """[n, V] to [n, ceil(V / size)]: the largest of each `size` neighbours."""
    whole = logits.shape[-1] // size * size
    maxima = logits[:, :whole].view(len(logits), -1, size).amax(-1)
    if whole == logits.shape[-1]:
        return maxima
    return torch.cat([maxima, logits[:, whole:].amax(-1, keepdim=True)], -1)


def draw_untruncated(logits: Tensor | Sequence[Tensor], temperature: Tensor, uniform: Tensor) -> Tensor:
    """`draw` for rows that keep every token: no search, no sort.

    Args:
        logits: [n, V] float32 or n rows, with a finite maximum each.
        temperature: [n] float32, above 0.
        uniform: [n] float64 in [0, 1).

    Returns: [n] int64.
    """
    # row by row: a row's few hundred kilobytes stay in the cache
    rows = zip(logits, temperature.unsqueeze(-1), uniform, strict=True)
    return torch.cat([_draw_row(row.unsqueeze(0), scale, u) for row, scale, u in rows])


def _draw_row(logits: Tensor, temperature: Tensor, uniform: Tensor) -> Tensor:
    """[1, V] to [1]: first the block the random number falls in, then the token."""
    weights = _weights(logits, temperature)
    blocks = block_sums(weights)
    mass = blocks.cumsum(-1)
    target = uniform * mass[:, -1:]
    block = torch.minimum((mass <= target).sum(-1), _last_positive(blocks)).unsqueeze(-1)
    start = mass.gather(-1, block) - blocks.gather(-1, block)

    ids = block * _BLOCK + torch.arange(_BLOCK, device=block.device)
    inside = weights.gather(-1, ids.clamp(max=weights.shape[-1] - 1)) * (ids < weights.shape[-1])
    chosen = (inside.double().cumsum(-1) <= target - start).sum(-1)
    return block.squeeze(-1) * _BLOCK + torch.minimum(chosen, _last_positive(inside))


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
    return (logits - logits.amax(-1, keepdim=True)).div_(temperature.unsqueeze(-1)).exp_()


def _truncation_temperature(settings: Truncation) -> Tensor:
    return torch.where(settings.top_p_first, torch.ones_like(settings.temperature), settings.temperature)
