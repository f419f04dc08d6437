"""A checkpoint's tensors as the native kernels want them: matrices in a format, all else in float32.

How each tensor is kept is said here alone; a file that `convert` packed holds the same matrices under the same names.
"""

from __future__ import annotations

import re

import numpy as np

from rookery.kernels.cpu.arrays import BF16, F16, F32, Array, FloatArray, as_float32
from rookery.kernels.cpu.library import Format
from rookery.kernels.cpu.packed import Packed, pack

from .checkpoint import Checkpoint

FORMATS = {"float32": Format.F32, "bfloat16": Format.BF16, "int8": Format.INT8, "int4": Format.INT4}
"""How matrices can be kept, by the name of the dtype or of the quantisation."""

TABLE = {F32: Format.F32, BF16: Format.BF16, F16: Format.F16}
"""Types the embedding may have."""

_LOW_RANK = re.compile(r"\.att\.(?:[wavg]|time_maa_w|time_decay_w)[12]$")


def matrices(key: str, tensor: Array, kept: Format) -> dict[str, tuple[Array, Format]]:
    """What is kept of one tensor: matrices [out, in] and their formats by name; none where it is no matrix.

    Args:
        key: official name; matrices have it too, with `.0`, `.1` … behind it where the tensor is several.
        tensor: in the official layout; only its shape is used, so it may be `BLANK`.
        kept: of the model's large matrices. The head never goes below INT8. Low-rank pairs are small, and their
            rounding would reach the decay: they stay in BF16 at least.
    """
    if tensor.ndim == 2 and key.endswith(".weight") and key != "emb.weight":
        return {key: (tensor, Format.INT8 if key == "head.weight" and kept == Format.INT4 else kept)}
    if not _LOW_RANK.search(key):
        return {}
    parts = list(tensor) if tensor.ndim == 3 else [tensor]
    if key.endswith("time_maa_w1"):  # five matrices side by side
        parts = np.split(tensor, 5, axis=1)
    narrow = Format.F32 if kept == Format.F32 else Format.BF16
    if len(parts) == 1:
        return {key: (tensor.T, narrow)}
    return {f"{key}.{i}": (part.T, narrow) for i, part in enumerate(parts)}


def as_vector(tensor: Array) -> FloatArray:
    """All else: float32, flat."""
    return as_float32(tensor).ravel()


def as_table(tensor: Array) -> Array:
    """The embedding as it is stored; rows are looked up, never multiplied."""
    return np.ascontiguousarray(tensor if tensor.dtype in TABLE else as_float32(tensor))


class Kept:
    """Hands a checkpoint's tensors to a program: those packed already as they are, the others packed now.

    Attributes:
        format: of the large matrices.
        narrow: of low-rank pairs.
        bytes: of all matrices handed out.
    """

    def __init__(self, checkpoint: Checkpoint, weights: Format) -> None:
        self.shape = checkpoint.shape
        self.format = weights
        self.narrow = Format.F32 if weights == Format.F32 else Format.BF16
        self.bytes = 0
        self._tensors = checkpoint.tensors
        self._packed = checkpoint.packed

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def vector(self, key: str) -> FloatArray:
        return as_vector(self._tensors[key])

    def norm(self, key: str) -> list[FloatArray]:
        return [self.vector(f"{key}.weight"), self.vector(f"{key}.bias")]

    def matrix(self, name: str) -> Packed:
        """A matrix by its name as `matrices` has it."""
        packed = self._packed.get(name)
        if packed is None:
            key = name if name in self._tensors else name.rpartition(".")[0]
            packed = pack(*matrices(key, self._tensors[key], self.format)[name])
        self.bytes += packed.nbytes
        return packed

    def embedding(self) -> Packed:
        table = as_table(self._tensors["emb.weight"])
        self.bytes += table.nbytes
        return Packed(table, None, len(table), table.shape[1], table.shape[1], TABLE[table.dtype])
