"""One row of logits as the native library draws from it: the settings of a choice, handed over once."""

from __future__ import annotations

import ctypes

from rookery.kernels.cpu.arrays import Array
from rookery.kernels.cpu.sample import CSample

from .request import SamplingParams, TokenLogprobs


class NativeRow:
    """A `CSample` and what it points to.

    Args:
        params: the request's settings.
        choice: see `ChoiceSampling`.
    """

    def __init__(self, params: SamplingParams, choice: int) -> None:
        self._token_limit = params.token_limit
        self._bias_ids = (ctypes.c_int64 * len(params.logit_bias))(*params.logit_bias)
        self._bias = (ctypes.c_float * len(params.logit_bias))(*params.logit_bias.values())
        stop_ids = set(params.stop_token_ids)
        self._ban_ids = (ctypes.c_int64 * len(stop_ids))(*stop_ids)
        listed = params.logprobs or 0
        self._top_ids = (ctypes.c_int64 * listed)()
        self._top_logprobs = (ctypes.c_double * listed)()
        self._kept: tuple[Array | None, tuple[Array, Array] | None] = None, None
        self.struct = CSample(
            bias_ids=ctypes.addressof(self._bias_ids),
            bias=ctypes.addressof(self._bias),
            biases=len(self._bias),
            ban_ids=ctypes.addressof(self._ban_ids),
            top_p=params.top_p,
            min_p=params.min_p,
            typical_p=params.typical_p,
            temperature=params.temperature,
            repetition=params.repetition_penalty,
            presence=params.presence_penalty,
            frequency=params.frequency_penalty,
            top_k=min(params.top_k, 2**31 - 1),
            top_p_first=params.sampling_order == "top_p_first",
            seed=params.seed,
            choice=choice,
            top=-1 if params.logprobs is None else params.logprobs,
            top_ids=ctypes.addressof(self._top_ids),
            top_logprobs=ctypes.addressof(self._top_logprobs),
        )

    def place(self, logits: int, vocab_size: int, *, token_id: int = -1, drawn: int = 0) -> None:
        """What is to be drawn next, by no more than the settings.

        Args:
            logits: address of [vocab_size] float32, which has to stay there until the row is drawn.
            token_id: only score this one; -1 draws.
            drawn: tokens drawn before it.
        """
        row = self.struct
        row.logits, row.vocabulary = logits, vocab_size
        row.limit = vocab_size if self._token_limit is None else min(self._token_limit, vocab_size)
        row.token, row.drawn = token_id, drawn

    def edit(self, mask: Array | None, counted: tuple[Array, Array] | None, *, banned: bool) -> None:
        """What else bears on it.

        Args:
            mask: see `Constraint.allowed`.
            counted: see `ChoiceSampling.counted`; None where there are no penalties.
            banned: whether stop tokens are.
        """
        row = self.struct
        self._kept = mask, counted
        if mask is not None:
            row.mask, row.words = mask.ctypes.data, len(mask)
        if counted is not None:
            seen_ids, counts = counted
            row.seen, row.seen_ids, row.counts = len(counts), seen_ids.ctypes.data, counts.ctypes.data
        row.bans = len(self._ban_ids) if banned else 0

    def logprobs(self) -> TokenLogprobs:
        """Of the token, once the row is drawn; `params.logprobs` must not be None."""
        listed = min(len(self._top_ids), self.struct.limit)
        likely = zip(self._top_ids[:listed], self._top_logprobs[:listed], strict=True)
        return TokenLogprobs(self.struct.logprob, tuple(likely))
