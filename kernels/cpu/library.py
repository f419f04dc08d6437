"""The binding of the native library: the structs of step.h, field by field, and the team of threads that runs them.

The library is plain C behind ctypes, so it depends on neither the version of Python nor that of torch.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_uint64, c_void_p, sizeof
from enum import IntEnum
from functools import cache
from pathlib import Path

from . import threads
from .sources import digest

TIER_VARIABLE = "ROOKERY_CPU_TIER"
"""Environment: "portable", "avx2" or "avx512" instead of the best this machine has; for tests and comparisons."""

LIBRARY_VARIABLE = "ROOKERY_CPU_LIBRARY"
"""Environment: another build of the library, such as the one with sanitizers."""


class StaleLibrary(RuntimeError):
    """The library was built from other sources than these."""


class Kind(IntEnum):
    """What an op does; see the function of that name in the C sources."""

    EMBED, MIX, LERP, PACK, MATMUL, WKV4, WKV6, WKV7, SAMPLE = range(9)


class Act(IntEnum):
    """What becomes of a product before it is stored; ADD adds it to what is there, ADD_GATED after a factor."""

    NONE, TANH, SIGMOID, RELU2, ADD, ADD_GATED = range(6)


class Format(IntEnum):
    """How numbers are kept: of weights, of what is multiplied with them, and (F16 too) of the embedding."""

    F32, BF16, INT8, INT4, F16 = range(5)


class CBuffer(Structure):
    """Activations, one row a token."""

    _fields_ = (
        ("data", c_void_p),
        ("scale", c_void_p),
        ("width", c_int32),
        ("stride", c_int32),
        ("scale_stride", c_int32),
        ("format", c_int32),
    )


class CMatrix(Structure):
    """A packed weight."""

    _fields_ = (
        ("data", c_void_p),
        ("scale", c_void_p),
        ("out", c_int32),
        ("in_", c_int32),
        ("stride", c_int32),
        ("format", c_int32),
    )


class COp(Structure):
    """One op of a program."""

    _fields_ = (
        ("kind", c_int32),
        ("last", c_int32),
        ("act", c_int32),
        ("count", c_int32),
        ("heads", c_int32),
        ("head_size", c_int32),
        ("eps", c_float),
        ("unused", c_int32),
        ("offset", c_int64),
        ("matrix", CMatrix),
        ("in_", CBuffer * 8),
        ("out", CBuffer * 8),
        ("vec", c_void_p * 10),
    )


class CCall(Structure):
    """The tokens and states of one run."""

    _fields_ = (
        ("tokens", c_int64),
        ("rows", c_int64),
        ("ids", c_void_p),
        ("slots", c_void_p),
        ("starts", c_void_p),
        ("shift", c_void_p),
        ("wkv", c_void_p),
        ("shift_stride", c_int64),
        ("wkv_stride", c_int64),
    )


PROGRAM = 5 << 32 | sizeof(COp)
"""PROGRAM_VERSION of step.h and the size of an op: a library that was built from other sources has another."""


@cache
def library() -> ctypes.CDLL | None:
    """The built library, or None where the install had no compiler.

    Raises:
        StaleLibrary: it would take a program for another one.
    """
    named = os.environ.get(LIBRARY_VARIABLE)
    built = [Path(named)] if named else sorted(Path(__file__).parent.glob("_native*.so"))
    if not built:
        return None
    native = ctypes.CDLL(str(built[-1]))
    if _stale(native):
        raise StaleLibrary(f"{built[-1]} was built from other sources than these")
    native.rookery_team.restype, native.rookery_team.argtypes = c_void_p, (c_int,)
    native.rookery_free.restype, native.rookery_free.argtypes = None, (c_void_p,)
    native.rookery_tier.restype, native.rookery_tier.argtypes = c_void_p, (c_char_p,)
    native.rookery_tier_name.restype, native.rookery_tier_name.argtypes = c_char_p, (c_void_p,)
    native.rookery_run.restype = None
    native.rookery_run.argtypes = (c_void_p, c_void_p, POINTER(COp), c_int64, POINTER(CCall))
    return native


def _stale(native: ctypes.CDLL) -> bool:
    """Whether its sources mean something else by a program, or are not those beside this file."""
    try:
        program, sources = native.rookery_program, native.rookery_sources
    except AttributeError:
        return True
    program.restype, program.argtypes = c_int64, ()
    sources.restype, sources.argtypes = c_uint64, ()
    told, here = sources(), digest(Path(__file__).parent)
    return program() != PROGRAM or (told != here and 0 not in (told, here))


class Team:
    """Threads that run programs together, one program at a time; the caller's thread is one of them.

    Args:
        threads: how many, 1 to 256.
        tier: instructions to use; "" is the best there are.

    Raises:
        RuntimeError: there is no library, or the machine lacks the tier.
    """

    def __init__(self, threads: int, tier: str = "") -> None:
        native = library()
        if native is None:
            raise RuntimeError("the native library is not built")
        self._native = native
        self._tier: int | None = native.rookery_tier(tier.encode())
        if self._tier is None:
            raise RuntimeError(f"this processor has no {tier}")
        self._team: int | None = native.rookery_team(threads)
        if self._team is None:
            raise RuntimeError(f"cannot start {threads} threads")
        self._lock = threading.Lock()
        self.tier: str = native.rookery_tier_name(self._tier).decode()
        self.threads = threads

    def run(self, ops: ctypes.Array[COp], call: CCall) -> None:
        """Run the ops over the call's tokens; returns when all is stored."""
        with self._lock:
            self._native.rookery_run(self._team, self._tier, ops, len(ops), byref(call))

    def close(self) -> None:
        """End the threads."""
        with self._lock:
            team, self._team = self._team, None
            if team is not None:
                self._native.rookery_free(team)


def shared_team(size: int | None = None) -> Team:
    """The team of that size of this process, which models and samplers share; by default as `threads` says."""
    return _team(size or threads.threads())


@cache
def _team(size: int) -> Team:
    return Team(size, os.environ.get(TIER_VARIABLE, ""))
