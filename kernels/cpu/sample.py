"""Tokens drawn from rows of logits by the native library; the meaning is that of `rookery.kernels.sampling`.

Each row has its own settings, and its result depends on nothing else: not on the other rows, nor on the number of
threads. A draw equals the torch one but where a random number or a truncation falls within
rounding of an edge.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_double, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from enum import IntEnum

from .library import CCall, CMatrix, COp, Kind, Team


class Fault(IntEnum):
    """Why a row has no token."""

    NONE, NOTHING_ALLOWED, NOT_FINITE = range(3)


class CSample(Structure):
    """A row of logits and how a token is drawn from it: `Sample` of step.h, field by field.

    What it points to has to be kept while it is used.
    """

    _fields_ = (
        ("logits", c_void_p),
        ("mask", c_void_p),
        ("bias_ids", c_void_p),
        ("ban_ids", c_void_p),
        ("seen_ids", c_void_p),
        ("bias", c_void_p),
        ("counts", c_void_p),
        ("words", c_int64),
        ("biases", c_int64),
        ("bans", c_int64),
        ("seen", c_int64),
        ("vocabulary", c_int64),
        ("limit", c_int64),
        ("top_p", c_double),
        ("min_p", c_double),
        ("typical_p", c_double),
        ("temperature", c_float),
        ("repetition", c_float),
        ("presence", c_float),
        ("frequency", c_float),
        ("top_k", c_int32),
        ("top_p_first", c_int32),
        ("seed", c_uint64),
        ("choice", c_uint32),
        ("drawn", c_uint32),
        ("token", c_int64),
        ("fault", c_int32),
        ("top", c_int32),
        ("logprob", c_double),
        ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
    )


def sample_rows(team: Team, rows: Sequence[CSample], vocab_size: int) -> None:
    """Draw a token for each row whose `token` is -1, and score the tokens of those with `top` of 0 or more.

    Args:
        team: threads to share the rows; one row alone is the caller's.
        rows: all different; `token`, `fault`, `logprob` and what `top_ids` and `top_logprobs` point to are written.
        vocab_size: the largest of them.
    """
    if not rows:
        return
    addresses = (c_void_p * len(rows))(*map(ctypes.addressof, rows))
    op = COp(kind=Kind.SAMPLE, last=1, matrix=CMatrix(data=ctypes.addressof(addresses), in_=vocab_size))
    team.run((COp * 1)(op), CCall(rows=len(rows)))
