"""Logits to token ids, for rows with different settings.

The mathematics is in `rookery.kernels.sampling`; here rows are grouped by what they need, so that a row pays for
its own settings only: greedy rows are one argmax over the batch, rows without penalties, bias or grammar are read
where they are. A row's draw depends on its own logits, settings, seed, choice and token index alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rookery.kernels import random, sampling
from rookery.kernels.backend import uses_triton
from rookery.kernels.sample import Streams, sample

from .constraint import Constraint, ConstraintError
from .request import SamplingParams, TokenLogprobs

_UNIFORMS = 64
"""Random numbers made at a time for one choice."""
_SCORED_ROWS = 16
"""Rows of logits worked on at a time when a prompt is scored, which bounds the memory for it."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What one step drew for one choice."""

    token_id: int
    """-1 with an `error`."""
    logprobs: TokenLogprobs | None = None
    ended: bool = False
    """A stop token was drawn, or the grammar is complete."""
    error: str | None = None
    """One sentence for the client: this choice cannot go on; its neighbours can."""
    refused: bool = False
    """What the request asks for is at fault, not the engine."""


class ChoiceSampling:
    """The draw state of one choice of one request: tokens drawn, penalty counts, random numbers, grammar.

    Penalties count generated tokens, not the prompt. Memory is bounded by the number of distinct tokens, whatever
    the length.

    Args:
        params: the request's settings.
        choice: index of the choice; with the seed, it names the random stream.
        constraint: from `Constraints.start`, when `params.grammar` is set.
        drawn: tokens this choice has already drawn (a choice that is resumed goes on in its random stream).
    """

    def __init__(
        self, params: SamplingParams, choice: int = 0, constraint: Constraint | None = None, *, drawn: int = 0
    ) -> None:
        self.params = params
        self.choice = choice
        self.constraint = constraint
        self.drawn = drawn
        self.penalized = params.presence_penalty != 0 or params.frequency_penalty != 0 or params.repetition_penalty != 1
        self.truncated = params.top_k > 0 or params.top_p < 1 or params.min_p > 0 or params.typical_p < 1
        self._uncounted = frozenset(params.uncounted_ids)
        self._positions: dict[int, int] = {}
        self._ids = torch.empty(16 if self.penalized else 0, dtype=torch.int64)
        self._counts = torch.empty(16 if self.penalized else 0, dtype=torch.float64)
        self._uniforms: list[float] = []
        self._uniforms_start = 0

    @property
    def greedy(self) -> bool:
        """Draws the likeliest token."""
        return self.params.temperature == 0

    @property
    def edited(self) -> bool:
        """This step's logits differ from the model's (beyond `token_limit`)."""
        params = self.params
        return (
            self.constraint is not None
            or bool(params.logit_bias)
            or bool(self._positions)
            or (self.drawn < params.min_tokens and bool(params.stop_token_ids))
        )

    @property
    def counted(self) -> tuple[Tensor, Tensor]:
        """Distinct generated ids [m] int64 and their decayed counts [m] float64."""
        m = len(self._positions)
        return self._ids[:m], self._counts[:m]

    def uniform(self) -> float:
        """The random number of the next token."""
        offset = self.drawn - self._uniforms_start
        if not 0 <= offset < len(self._uniforms):
            self._uniforms_start, offset = self.drawn, 0
            numbers: list[float] = random.uniform(self.params.seed, self.choice, self.drawn, _UNIFORMS).tolist()
            self._uniforms = numbers
        return self._uniforms[offset]

    def advance(self, token_id: int) -> None:
        """Count a token that was drawn: every count decays, then this one gains 1, unless it is not counted."""
        self.drawn += 1
        if not self.penalized:
            return
        m = len(self._positions)
        if self.params.penalty_decay != 1:
            self._counts[:m] *= self.params.penalty_decay
        gain = 0 if token_id in self._uncounted else 1
        position = self._positions.setdefault(token_id, m)
        if position < m:
            self._counts[position] += gain
            return
        if m == len(self._ids):
            self._ids = torch.cat([self._ids, torch.empty_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.empty_like(self._counts)])
        self._ids[m] = token_id
        self._counts[m] = gain


class Sampler:
    """Draws the next token of each row of a step. Holds no state: what a choice remembers is in `ChoiceSampling`."""

    def sample(self, logits: Tensor, choices: Sequence[ChoiceSampling]) -> list[Draw]:
        """One token for each choice; each choice advances by it.

        Args:
            logits: [n, V] float32, read only; several rows may share memory.
            choices: n, all different.

        Returns: n draws in order. A row that cannot be drawn (its grammar failed, nothing is allowed, the logits are
        not finite) has an `error`; the others are unaffected.
        """
        errors: dict[int, Draw] = {}
        rows = self._edit(logits, choices, errors)
        token_ids = self._draw(logits, rows, choices, errors)
        wanting = [i for i, c in enumerate(choices) if c.params.logprobs is not None and i not in errors]
        logprobs = {
            i: score(logits[i : i + 1], [token_ids[i]], choices[i].params.logprobs or 0, choices[i].params.token_limit)[
                0
            ]
            for i in wanting
        }
        return [
            errors[i] if i in errors else self._commit(choice, token_ids[i], logprobs.get(i))
            for i, choice in enumerate(choices)
        ]

    def score_prompt(
        self, logits: Tensor, next_ids: Sequence[int], top: int, *, token_limit: int | None = None
    ) -> list[TokenLogprobs]:
        """Log-probabilities of the tokens that follow.

        Args:
            logits: [T, V] float32.
            next_ids: T; the token after each position.
            top: so many of the likeliest at each position.
            token_limit: ids from here on are not listed among the likeliest.
        """
        scored: list[TokenLogprobs] = []
        for start in range(0, len(next_ids), _SCORED_ROWS):
            stop = start + _SCORED_ROWS
            scored += score(logits[start:stop], next_ids[start:stop], top, token_limit)
        return scored

    def _commit(self, choice: ChoiceSampling, token_id: int, logprobs: TokenLogprobs | None) -> Draw:
        choice.advance(token_id)
        if token_id in choice.params.stop_token_ids:
            return Draw(token_id, logprobs, ended=True)
        if choice.constraint is None:
            return Draw(token_id, logprobs)
        try:
            choice.constraint.accept(token_id)
        except ConstraintError as error:
            return _refused(error)
        ended = choice.constraint.complete
        if not ended:
            choice.constraint.prepare()  # the next mask is made while the next forward pass runs
        return Draw(token_id, logprobs, ended=ended)

    def _edit(self, logits: Tensor, choices: Sequence[ChoiceSampling], errors: dict[int, Draw]) -> dict[int, Tensor]:
        """Copies [V] of the rows whose logits change: bias, then bans, then penalties."""
        masks: dict[int, Tensor] = {}
        for i, choice in enumerate(choices):
            if choice.constraint is not None:
                try:
                    masks[i] = choice.constraint.allowed()
                except ConstraintError as error:
                    errors[i] = _refused(error)
        # constrained rows first, so that their masks are one operation
        order = [*masks, *(i for i, c in enumerate(choices) if c.edited and i not in masks and i not in errors)]
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
            if choice.drawn < params.min_tokens:
                banned += [(row, token) for token in params.stop_token_ids if token < work.shape[-1]]
            ids, counts = choice.counted
            if len(ids):
                settings = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty)
                penalties.append(
                    (torch.full_like(ids, row), ids, counts.float(), *(torch.full((len(ids),), x) for x in settings))
                )
        if biased:
            at_rows, at_ids, values = zip(*biased, strict=True)
            work[list(at_rows), list(at_ids)] += torch.tensor(values, device=device)
        if masks:
            sampling.mask_(work[: len(masks)], torch.stack(list(masks.values())).to(device))
        if banned:
            at_rows, at_ids = zip(*banned, strict=True)
            work[list(at_rows), list(at_ids)] = -torch.inf
        if penalties:
            sampling.penalize_(work, *(torch.cat(column).to(device) for column in zip(*penalties, strict=True)))
        return {i: work[row] for row, i in enumerate(order)}

    def _draw(
        self, logits: Tensor, edited: dict[int, Tensor], choices: Sequence[ChoiceSampling], errors: dict[int, Draw]
    ) -> list[int]:
        """Token ids in order; adds to `errors` for rows without a token to draw."""
        token_ids = [-1] * len(choices)
        limits = {_limit(choice, logits) for choice in choices}
        if len(limits) == 1 and not edited and not errors and all(choice.greedy for choice in choices):
            rows = logits[:, : limits.pop()]
            token_ids = sampling.greedy(rows).tolist()
            peaks = rows.gather(-1, torch.tensor(token_ids, device=rows.device).unsqueeze(-1)).squeeze(-1).tolist()
            errors |= {i: _undrawable(peak) for i, peak in enumerate(peaks) if not abs(peak) < torch.inf}
            return token_ids

        typical = any(choice.params.typical_p < 1 for choice in choices)
        if uses_triton(logits.device.type) and len(limits) == 1 and not typical:
            return _draw_at_once(logits[:, : limits.pop()], edited, choices, errors)

        groups: dict[tuple[bool, bool], list[int]] = {}
        views: dict[int, Tensor] = {}  # rows are read where they are, not gathered
        for i, choice in enumerate(choices):
            if i in errors:
                continue
            view = (edited[i] if i in edited else logits[i])[: _limit(choice, logits)]
            peak = float(view.amax())
            if not abs(peak) < torch.inf:
                errors[i] = _undrawable(peak)
                continue
            views[i] = view
            groups.setdefault((choice.greedy, choice.truncated), []).append(i)
        for (is_greedy, truncated), members in groups.items():
            rows_of_group = [views[i] for i in members]
            if is_greedy:
                drawn = [int(sampling.greedy(row.unsqueeze(0))) for row in rows_of_group]
            else:
                drawn = _draw_rows(rows_of_group, [choices[i] for i in members], truncated).tolist()
            for i, token_id in zip(members, drawn, strict=True):
                token_ids[i] = token_id
        return token_ids


def _draw_at_once(
    logits: Tensor, edited: dict[int, Tensor], choices: Sequence[ChoiceSampling], errors: dict[int, Draw]
) -> list[int]:
    """`Sampler._draw` for [n, V] logits where the operators run on the device: all rows, and one word to the host."""
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
        if token_id < 0 and i not in errors:
            errors[i] = _undrawable(float(logits[i].amax()))
    return [-1 if i in errors else token_id for i, token_id in enumerate(token_ids)]


def _signed(seed: int) -> int:
    """The number of the same 64 bits as int64 has them."""
    return (seed + 2**63) % 2**64 - 2**63


def _limit(choice: ChoiceSampling, logits: Tensor) -> int:
    """Ids below it can be drawn."""
    limit = choice.params.token_limit
    return logits.shape[-1] if limit is None else min(limit, logits.shape[-1])


def _refused(error: ConstraintError) -> Draw:
    return Draw(-1, error=str(error), refused=True)


def _undrawable(peak: float) -> Draw:
    """For a row with this maximum, which has no token to draw."""
    if peak == -torch.inf:
        return Draw(-1, error="no token is allowed here by the grammar and the settings together", refused=True)
    return Draw(-1, error="the model's output is not finite")


def _draw_rows(rows: Sequence[Tensor], choices: Sequence[ChoiceSampling], truncated: bool) -> Tensor:
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
