"""Rows of logits drawn and scored by torch: on every device, and on a processor what the native library leaves.

Rows are grouped by what they need, so that a row pays for its own settings only: greedy rows are one argmax over the
batch, rows without penalties, bias or grammar are read where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rookery.kernels import sampling
from rookery.kernels.backend import uses_triton
from rookery.kernels.cpu.arrays import Array
from rookery.kernels.sample import Streams, sample

from .choice_sampling import ChoiceSampling, Outcome
from .request import SamplingParams, TokenLogprobs


def draw_rows(logits: Tensor, choices: Sequence[ChoiceSampling], masks: Sequence[Array | None]) -> list[Outcome]:
    """One token for each choice.

    Args:
        logits: [n, V] float32, read only; several rows may share memory.
        choices: n; they do not advance.
        masks: n; see `Constraint.allowed`.
    """
    faults: dict[int, Outcome] = {}
    token_ids = _draw(logits, _edit(logits, choices, masks), choices, faults)
    outcomes = []
    for i, choice in enumerate(choices):
        top, logprobs = choice.params.logprobs, None
        if top is not None and i not in faults:
            logprobs = score(logits[i : i + 1], [token_ids[i]], top, choice.params.token_limit)[0]
        outcomes.append(faults[i] if i in faults else Outcome(token_ids[i], logprobs=logprobs))
    return outcomes


def _edit(logits: Tensor, choices: Sequence[ChoiceSampling], masks: Sequence[Array | None]) -> dict[int, Tensor]:
    """Copies [V] of the rows whose logits change: bias, then bans, then penalties."""
    # constrained rows first, so that their masks are one operation
    masked = {i: mask for i, mask in enumerate(masks) if mask is not None}
    order = [*masked, *(i for i, choice in enumerate(choices) if choice.edited and i not in masked)]
    if not order:
        return {}
    device = logits.device
    work = logits.index_select(0, torch.tensor(order, device=device))

    biased: list[tuple[int, int, float]] = []
    banned: list[tuple[int, int]] = []
    penalties: list[tuple[Tensor, ...]] = []
    for row, i in enumerate(order):
        choice, params = choices[i], choices[i].params
        biased += [(row, token, bias) for token, bias in params.logit_bias.items() if token < work.shape[-1]]
        banned += [(row, token) for token in choice.banned_ids if token < work.shape[-1]]
        ids, counts = map(torch.from_numpy, choice.counted)
        if len(ids):
            settings = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
            penalties.append(
                (torch.full_like(ids, row), ids, counts.float(), *(torch.full((len(ids),), x) for x in settings))
            )
    if biased:
        at_rows, at_ids, values = zip(*biased, strict=True)
        work[list(at_rows), list(at_ids)] += torch.tensor(values, device=device)
    if masked:
        sampling.mask_(work[: len(masked)], torch.from_numpy(np.stack(list(masked.values()))).to(device))
    if banned:
        at_rows, at_ids = zip(*banned, strict=True)
        work[list(at_rows), list(at_ids)] = -torch.inf
    if penalties:
        sampling.penalize_(work, *(torch.cat(column).to(device) for column in zip(*penalties, strict=True)))
    return {i: work[row] for row, i in enumerate(order)}


def _draw(
    logits: Tensor, edited: dict[int, Tensor], choices: Sequence[ChoiceSampling], faults: dict[int, Outcome]
) -> list[int]:
    """Token ids in order; adds to `faults` for rows without a token to draw."""
    token_ids = [-1] * len(choices)
    limits = {_limit(choice, logits) for choice in choices}
    if len(limits) == 1 and not edited and all(choice.greedy for choice in choices):
        rows = logits[:, : limits.pop()]
        token_ids = sampling.greedy(rows).tolist()
        peaks = rows.gather(-1, torch.tensor(token_ids, device=rows.device).unsqueeze(-1)).squeeze(-1).tolist()
        faults |= {i: _undrawable(peak) for i, peak in enumerate(peaks) if not abs(peak) < torch.inf}
        return token_ids

    typical = any(choice.params.typical_p < 1 for choice in choices)
    if uses_triton(logits.device.type) and len(limits) == 1 and not typical:
        return _draw_at_once(logits[:, : limits.pop()], edited, choices, faults)

    groups: dict[tuple[bool, bool], list[int]] = {}
    views: dict[int, Tensor] = {}  # rows are read where they are, not gathered
    for i, choice in enumerate(choices):
        view = (edited[i] if i in edited else logits[i])[: _limit(choice, logits)]
        peak = float(view.amax())
        if not abs(peak) < torch.inf:
            faults[i] = _undrawable(peak)
            continue
        views[i] = view
        groups.setdefault((choice.greedy, choice.truncated), []).append(i)
    for (is_greedy, truncated), members in groups.items():
        rows_of_group = [views[i] for i in members]
        if is_greedy:
            drawn = [int(sampling.greedy(row.unsqueeze(0))) for row in rows_of_group]
        else:
            drawn = _draw_group(rows_of_group, [choices[i] for i in members], truncated).tolist()
        for i, token_id in zip(members, drawn, strict=True):
            token_ids[i] = token_id
    return token_ids


def _draw_at_once(
    logits: Tensor, edited: dict[int, Tensor], choices: Sequence[ChoiceSampling], faults: dict[int, Outcome]
) -> list[int]:
    """`_draw` for [n, V] logits where the operators run on the device: all rows, and one word to the host."""
    device, vocab_size = logits.device, logits.shape[-1]
    if edited:
        logits = torch.stack([edited[i][:vocab_size] if i in edited else row for i, row in enumerate(logits)])
    streams = Streams(
        seed=torch.tensor([_signed(c.params.seed) for c in choices], device=device),
        choice=torch.tensor([c.choice for c in choices], device=device),
        drawn=torch.tensor([c.drawn for c in choices], device=device),
    )
    token_ids: list[int] = sample(logits, _truncation([c.params for c in choices], device), streams).tolist()
    for i, token_id in enumerate(token_ids):
        if token_id < 0:
            faults[i] = _undrawable(float(logits[i].amax()))
    return token_ids


def _signed(seed: int) -> int:
    """The number of the same 64 bits as int64 has them."""
    return (seed + 2**63) % 2**64 - 2**63


def _limit(choice: ChoiceSampling, logits: Tensor) -> int:
    """Ids below it can be drawn."""
    limit = choice.params.token_limit
    return logits.shape[-1] if limit is None else min(limit, logits.shape[-1])


def _undrawable(peak: float) -> Outcome:
    """For a row with this maximum, which has no token to draw."""
    return Outcome(-1, "nothing allowed" if peak == -torch.inf else "not finite")


def _draw_group(rows: Sequence[Tensor], choices: Sequence[ChoiceSampling], truncated: bool) -> Tensor:
    """n rows of logits to [n] ids, for rows that are not greedy."""
    device = rows[0].device
    uniforms = torch.tensor([c.uniform() for c in choices], dtype=torch.float64, device=device)
    settings = _truncation([c.params for c in choices], device)
    if not truncated:
        return sampling.draw_untruncated(rows, settings.temperature, uniforms)
    return sampling.draw(rows, settings, uniforms)


def _truncation(params: Sequence[SamplingParams], device: torch.device) -> sampling.Truncation:
    return sampling.Truncation(
        temperature=torch.tensor([p.temperature for p in params], dtype=torch.float32, device=device),
        top_k=torch.tensor([p.top_k for p in params], dtype=torch.int64, device=device),
        top_p=torch.tensor([p.top_p for p in params], dtype=torch.float64, device=device),
        min_p=torch.tensor([p.min_p for p in params], dtype=torch.float64, device=device),
        typical_p=torch.tensor([p.typical_p for p in params], dtype=torch.float64, device=device),
        top_p_first=torch.tensor([p.sampling_order == "top_p_first" for p in params], device=device),
    )


def score(logits: Tensor, ids: Sequence[int], top: int, token_limit: int | None = None) -> list[TokenLogprobs]:
    """Log-probabilities of raw logits over the whole vocabulary, of one token a row and of the likeliest.

    Args:
        logits: [n, V] float32.
        ids: n.
        top: so many of the likeliest, lower ids first among equals; ids from `token_limit` on are not listed.
    """
    peak = logits.amax(-1, keepdim=True)
    norm = peak.double().squeeze(-1) + sampling.block_sums((logits - peak).exp_()).sum(-1).log()
    at = torch.tensor(ids, dtype=torch.int64, device=logits.device).unsqueeze(-1)
    chosen = (logits.gather(-1, at).squeeze(-1).double() - norm).tolist()
    if not top:
        return [TokenLogprobs(logprob) for logprob in chosen]
    scored = []
    for row, logprob in enumerate(chosen):
        likely, values = sampling.likeliest(logits[row, :token_limit], top)
        entries = zip(likely.tolist(), (values.double() - norm[row]).tolist(), strict=True)
        scored.append(TokenLogprobs(logprob, tuple(entries)))
    return scored
