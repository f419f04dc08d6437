"""Counter-based random numbers: a draw is a function of (seed, choice, token index) and of nothing else.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in the convention of Triton's
`tl.randint4x(seed, offset)`: the key is the 64-bit seed, low word first; the counter is the 64-bit offset, low word
first, then two zeros. The offset is `choice << 32 | token index`, so slot, batch, step and restart play no part.
"""

from __future__ import annotations

import numpy as np

from .cpu.arrays import Array

_MULTIPLIER_A, _MULTIPLIER_B = 0xD2511F53, 0xCD9E8D57
_WEYL_A, _WEYL_B = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]) -> tuple[Array, ...]:
    """Ten rounds of Philox4x32 on words kept in int64 arrays of one shape, each in [0, 2**32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high_a, low_a = _multiply(c0, _MULTIPLIER_A)
        high_b, low_b = _multiply(c2, _MULTIPLIER_B)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + _WEYL_A) & _WORD, (k1 + _WEYL_B) & _WORD
    return c0, c1, c2, c3


def _multiply(word: Array, by: int) -> tuple[Array, Array]:
    """High and low word of a 32 x 32 bit product; in halves, because int64 is signed."""
    low = (word & 0xFFFF) * by
    high = (word >> 16) * by + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def uniform(seed: int, choice: int, start: int, count: int) -> Array:
    """The random numbers of one choice for the tokens `start : start + count`.

    Args:
        seed: taken modulo 2**64.
        choice, start: taken modulo 2**32.

    Returns: [count] float64 in [0, 1), with 53 random bits from the first two Philox words.
    """
    index = (np.arange(count, dtype=np.int64) + start) & _WORD
    zero = np.zeros_like(index)
    key = (zero + (seed & _WORD), zero + (seed >> 32 & _WORD))
    first, second, _, _ = philox4x32((index, zero + (choice & _WORD), zero, zero), key)
    return ((first << 21) | (second >> 11)).astype(np.float64) * 2.0**-53
