"""What a device must know of the choices that decode on it, and how it draws for them without the host.

Tables with a column for each slot, and one more that belongs to nobody: rows that are padding or finished read and
write there. The host fills a column when a choice enters; from then on the device itself moves on the last token, the
count of tokens drawn, the counts of the penalties and the mark that says the choice is finished: a stop token was
drawn, or none could be. That the last token allowed was drawn the host knows by counting (`Choice.spent`).

To draw takes and gives nothing on the host, so that it can be recorded together with the step that it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, repeat
from typing import TypeVar

import torch
from torch import Tensor

from rookery.kernels.sample import SEEN, Penalties, Streams, sample
from rookery.kernels.sampling import Truncation

from .choice_sampling import ChoiceSampling
from .fits import MAX_BIASES, MAX_STOPS
from .request import SamplingParams

T = TypeVar("T")

NOTHING = -2
"""Stands for the token of a row that drew none, because its choice is finished."""

_TOKEN, _DRAWN, _FINISHED, _MIN_TOKENS, _SEED, _CHOICE, _TOP_K, _TOP_P_FIRST, _LIMIT, _PENALIZED = range(10)
_STOPS = slice(10, 10 + MAX_STOPS)
_BIASED = slice(10 + MAX_STOPS, 10 + MAX_STOPS + MAX_BIASES)
_MOVING = slice(0, 3)
"""Numbers that the device changes: token, drawn, finished."""
_TEMPERATURE, _TOP_P, _MIN_P, _REPETITION, _PRESENCE, _FREQUENCY, _DECAY = range(7)
_BIASES = slice(7, 7 + MAX_BIASES)


class Residents:
    """The tables, for a pool of `slots` and a vocabulary.

    Shapes (S slots, and the column of nobody):
        numbers: [50, S + 1] int64.
        shares: [39, S + 1] float64.
        counts: [S, V] float64 and free: [S, V] uint8, as `Penalties` has them; 0.6 MB a slot at 65,536 tokens.

    Args:
        send: `Device.send`.
    """

    def __init__(self, slots: int, vocab_size: int, device: torch.device, send: Callable[[Tensor], Tensor]) -> None:
        self._slots, self._vocab_size, self._send = slots, vocab_size, send
        self._numbers = torch.zeros(_BIASED.stop, slots + 1, dtype=torch.int64, device=device)
        self._shares = torch.zeros(_BIASES.stop, slots + 1, dtype=torch.float64, device=device)
        self._counts = torch.zeros(slots, vocab_size, dtype=torch.float64, device=device)
        self._free = torch.zeros(slots, vocab_size, dtype=torch.uint8, device=device)
        self._one = torch.ones(1, dtype=torch.float64, device=device)
        self._numbers[_FINISHED] = 1
        self._numbers[_LIMIT] = vocab_size

    def enter(self, choices: Sequence[tuple[int, int, ChoiceSampling]]) -> None:
        """Fill the columns of choices: the slot of each, its last token (any number before the first), its settings."""
        if not choices:
            return
        slots = self._send(torch.tensor([slot for slot, _, _ in choices]))
        numbers = [self._numbers_of(token, sampling) for _, token, sampling in choices]
        self._numbers.index_copy_(1, slots, self._send(torch.tensor(numbers)).T)
        shares = [self._shares_of(sampling.params) for _, _, sampling in choices]
        self._shares.index_copy_(1, slots, self._send(torch.tensor(shares, dtype=torch.float64)).T)
        for slot, _, sampling in choices:
            if sampling.penalized:
                self._count(slot, sampling)

    def live(self, slots: Tensor) -> Tensor:
        """The slots [n] again, -1 where the choice is finished."""
        return slots.masked_fill(self._numbers[_FINISHED].index_select(0, self._columns(slots)) != 0, -1)

    def tokens(self, slots: Tensor) -> Tensor:
        """The last token of each choice, [n]; 0 for slot -1."""
        return self._numbers[_TOKEN].index_select(0, self._columns(slots)).masked_fill(slots < 0, 0)

    def draw(self, slots: Tensor, logits: Tensor) -> Tensor:
        """Draw the next token of each choice, and move its column on.

        Args:
            slots: [n], from `live`.
            logits: [n, V] float32; overwritten.

        Returns: [n] int64; -1 where no token could be drawn, `NOTHING` for slot -1.
        """
        columns = self._columns(slots)
        numbers, shares = self._numbers.index_select(1, columns), self._shares.index_select(1, columns)
        drawn, stops = numbers[_DRAWN], numbers[_STOPS]
        singles = shares.float()

        bans = torch.where((drawn < numbers[_MIN_TOKENS]) & (stops >= 0), -torch.inf, 0.0)
        at = torch.cat([numbers[_BIASED], stops.clamp(min=0)]).T
        logits.scatter_add_(1, at, torch.cat([singles[_BIASES], bans]).T)

        settings = Truncation(
            temperature=singles[_TEMPERATURE],
            top_k=numbers[_TOP_K],
            top_p=shares[_TOP_P],
            min_p=shares[_MIN_P],
            typical_p=self._one.expand(len(slots)),
            top_p_first=numbers[_TOP_P_FIRST] != 0,
        )
        penalties = Penalties(
            counts=self._counts,
            free=self._free,
            slots=slots.masked_fill(numbers[_PENALIZED] == 0, -1),
            repetition=singles[_REPETITION],
            presence=singles[_PRESENCE],
            frequency=singles[_FREQUENCY],
            decay=shares[_DECAY],
        )
        streams = Streams(seed=numbers[_SEED], choice=numbers[_CHOICE], drawn=drawn)
        tokens = sample(logits, settings, streams, penalties, numbers[_LIMIT])

        finished = (tokens < 0) | (tokens == stops).any(0)
        self._numbers[_MOVING].index_copy_(1, columns, torch.stack([tokens, drawn + 1, finished.long()]))
        return tokens.masked_fill(slots < 0, NOTHING)

    def _columns(self, slots: Tensor) -> Tensor:
        return slots.remainder(self._slots + 1)  # -1 is the last

    def _numbers_of(self, token: int, sampling: ChoiceSampling) -> list[int]:
        params = sampling.params
        stops = [id for id in params.stop_token_ids if id < self._vocab_size]
        biased = [id for id in params.logit_bias if id < self._vocab_size]
        limit = self._vocab_size if params.token_limit is None else min(params.token_limit, self._vocab_size)
        return [
            token,
            sampling.drawn,
            0,
            params.min_tokens,
            (params.seed + 2**63) % 2**64 - 2**63,  # the number of the same 64 bits as int64 has them
            sampling.choice,
            params.top_k,
            int(params.sampling_order == "top_p_first"),
            limit,
            int(sampling.penalized),
            *_padded(stops, MAX_STOPS, -1),
            *_padded(biased, MAX_BIASES, 0),
        ]

    def _shares_of(self, params: SamplingParams) -> list[float]:
        biases = [bias for id, bias in params.logit_bias.items() if id < self._vocab_size]
        return [
            params.temperature,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
            params.penalty_decay,
            *_padded(biases, MAX_BIASES, 0.0),
        ]

    def _count(self, slot: int, sampling: ChoiceSampling) -> None:
        """What the choice has drawn so far, and what will not be counted."""
        ids, counts = map(torch.from_numpy, sampling.counted)
        self._counts[slot].zero_()
        self._free[slot].zero_()
        if len(ids):
            self._counts[slot].index_copy_(0, self._send(ids.clone()), self._send(counts.clamp(min=SEEN)))
        free = [id for id in sampling.params.uncounted_ids if id < self._vocab_size]
        if free:
            self._free[slot].index_fill_(0, self._send(torch.tensor(free)), 1)


def _padded(values: Sequence[T], size: int, by: T) -> chain[T]:
    return chain(values, repeat(by, size - len(values)))
