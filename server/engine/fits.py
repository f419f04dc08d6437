"""Whether a device can draw the tokens of a request by itself; the tables of `residents.py` have room for so much."""

from __future__ import annotations

from .request import SamplingParams

MAX_STOPS, MAX_BIASES = 8, 32
"""Of one request."""


def fits(params: SamplingParams) -> bool:
    """Whether a request's tokens can be drawn without the host."""
    return (
        params.grammar is None
        and params.logprobs is None
        and params.typical_p >= 1
        and len(params.stop_token_ids) <= MAX_STOPS
        and len(params.logit_bias) <= MAX_BIASES
    )
