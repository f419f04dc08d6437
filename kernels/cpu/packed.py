"""Weights and activations as the native kernels want them; step.h describes the layouts.

Symmetric quantisation: INT8 with one scale an output; INT4 besides it with a small integer for each 32 inputs, so that
a number of 4 bits times its group's integer is one of 8 bits, and all that serves INT8 serves INT4.
Activations that meet them are rounded to 8 bits, one scale a token, so the sums are exact integers.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import (
    BF16,
    BYTE,
    F32,
    LINE_BYTES,
    Array,
    FloatArray,
    address,
    as_bfloat16,
    as_float32,
    empty,
    zeros,
)
from .library import CBuffer, CMatrix, Format
from .threads import threads

PACKING = 3
"""Of these layouts and rules of rounding, as files say it: raise it whenever `pack` would give other numbers."""

PANEL = 16
"""Outputs side by side."""
TILE_ROWS = 32
"""Buffers have room for a multiple of so many tokens, because the matrix unit reads whole tiles."""
GROUP = 32
"""Inputs that share a multiplier in INT4."""
BATCH = 4
"""Groups of a panel whose multipliers lie together, behind their numbers: whole lines, read as one stream."""
LARGEST_MULTIPLIER = 15
"""So that eight times it, and 128 more, is still a byte."""

_AT_ONCE = 16 * PANEL
"""Outputs that are packed at a time: few enough for the caches."""

_MULTIPLE = {Format.F32: 1, Format.BF16: 32, Format.INT8: 64, Format.INT4: 64}
"""Inputs are padded to a multiple of this."""

MEETS = {Format.F32: Format.F32, Format.BF16: Format.BF16, Format.INT8: Format.INT8, Format.INT4: Format.INT8}
"""Format of the activations that a weight of a format is multiplied with."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight [out, in], packed. Its arrays must live as long as its struct is used."""

    data: Array
    scale: Array | None
    outputs: int
    inputs: int
    stride: int
    format: Format

    def struct(self) -> CMatrix:
        return CMatrix(address(self.data), address(self.scale), self.outputs, self.inputs, self.stride, self.format)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


Numbers = tuple[tuple[int, ...], "np.dtype[Any]"]
"""Shape and type of an array."""


def layout(outputs: int, inputs: int, format: Format) -> tuple[int, Numbers, Numbers | None]:
    """Stride, numbers and scales of a packed weight [out, in]."""
    stride = -(-inputs // _MULTIPLE[format]) * _MULTIPLE[format]
    panels = -(-outputs // PANEL)
    match format:
        case Format.F32:
            return stride, ((panels, stride, PANEL, 1), F32), None
        case Format.BF16:
            return stride, ((panels, stride // 2, PANEL, 2), BF16), None
        case Format.INT8:
            return stride, ((panels, stride // 4, PANEL, 4), BYTE), ((panels * PANEL,), F32)
        case Format.INT4:
            batches = -(-stride // (BATCH * GROUP))
            data_bytes = batches * BATCH * (GROUP // 2 + 1) * PANEL
            return stride, ((panels, data_bytes), BYTE), ((panels * PANEL,), F32)
    raise ValueError(f"weights are not kept as {format.name}")


def pack(weight: Array, format: Format) -> Packed:
    """Pack a weight [out, in] of any float type; some outputs at a time, so that little memory is needed beside it, and
    on every core."""
    outputs, inputs = weight.shape
    stride, numbers, scales = layout(outputs, inputs, format)
    data = empty(*numbers)
    scale = None if scales is None else empty(*scales)

    def pack_part(start: int) -> None:
        part = weight[start : start + _AT_ONCE]
        padded = np.zeros((-(-len(part) // PANEL) * PANEL, stride), np.float32)
        padded[: len(part), :inputs] = as_float32(part)
        panels = slice(start // PANEL, (start + len(padded)) // PANEL)
        match format:
            case Format.F32:
                data[panels] = _panels(padded, 1)
            case Format.BF16:
                data[panels] = _panels(as_bfloat16(padded), 2)
            case Format.INT8:
                whole, row_scale = quantize_int8(padded)
                data[panels] = _panels((whole + 128).astype(np.uint8), 4)
            case _:
                whole, multipliers, row_scale = quantize_int4(padded)
                fours = _panels((whole + 8).astype(np.uint8), 4).reshape(-1, stride // 8, 2, PANEL, 4)
                both = (fours[:, :, 0] | fours[:, :, 1] << 4).reshape(-1, stride // GROUP, GROUP // 2 * PANEL)
                ends = _panels(multipliers.astype(np.int8), 1).reshape(-1, stride // GROUP, PANEL).view(np.uint8)
                data[panels] = np.concatenate([_batches(both), _batches(ends)], 2).reshape(len(both), -1)
        if scale is not None:
            scale[start : start + len(padded)] = row_scale

    with ThreadPoolExecutor(threads()) as pool:
        list(pool.map(pack_part, range(0, outputs, _AT_ONCE)))
    return Packed(data, scale, outputs, inputs, stride, format)


def _panels(x: Array, together: int) -> Array:
    """[out, n] to [out / 16, n / together, 16, together]."""
    outputs, n = x.shape
    return x.reshape(outputs // PANEL, PANEL, n // together, together).swapaxes(1, 2)


def _batches(x: Array) -> Array:
    """[panels, groups, n] to [panels, batches, BATCH * n], with zeros in the groups that the last batch lacks."""
    x = np.pad(x, ((0, 0), (0, -x.shape[1] % BATCH), (0, 0)))
    return x.reshape(len(x), -1, BATCH * x.shape[2])


def quantize_int8(weight: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[out, in] float32 to integers in [-127, 127], as floats, and scales [out]."""
    scale = np.abs(weight).max(1) / np.float32(127)
    return np.rint(weight / np.where(scale > 0, scale, np.float32(1))[:, None]), scale


def quantize_int4(weight: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """[out, in] float32 to integers in [-8, 7] and multipliers [out, in / 32] to 15, all as floats, and scales [out].

    A number stands for integer * multiplier * scale. The multiplier puts the number of largest magnitude near -8, so it
    may be negative; of the three integers around, each group takes the one with the smallest squared error. On weights
    with a normal distribution the error is 5 percent below that of a float scale for each group.
    """
    groups = weight.reshape(len(weight), -1, GROUP)
    step = np.take_along_axis(groups, np.abs(groups).argmax(2, keepdims=True), 2) / np.float32(-8)
    scale = np.abs(step).max((1, 2), keepdims=True) / np.float32(LARGEST_MULTIPLIER)
    unit = np.where(scale > 0, scale, np.float32(1))
    middle = np.rint(np.abs(step) / unit)
    least, numbers, multipliers = np.full_like(step, np.inf), groups, step
    for more in (-1, 0, 1):
        multiplier = np.copysign((middle + np.float32(more)).clip(1, LARGEST_MULTIPLIER), step)
        stands_for = multiplier * unit
        whole = np.rint(groups / stands_for).clip(-8, 7)
        rest = (groups - whole * stands_for.astype(np.float64)).astype(np.float32)  # as if by one fused operation
        error = np.square(rest).sum(2, keepdims=True)
        better = error < least
        numbers = np.where(better, whole, numbers)
        multipliers = np.where(better, multiplier, multipliers)
        least = np.where(better, error, least)
    return numbers.reshape(weight.shape), multipliers[..., 0], scale.ravel()


class Activations:
    """A buffer [tokens, width], zero at first, which the kernels write and read."""

    def __init__(self, tokens: int, width: int, format: Format = Format.F32) -> None:
        rows = -(-tokens // TILE_ROWS) * TILE_ROWS
        self.width, self.format = width, format
        dtype = {Format.F32: F32, Format.BF16: BF16, Format.INT8: BYTE}[format]
        self.stride = -(-width // _MULTIPLE[format]) * _MULTIPLE[format]
        if self.stride * dtype.itemsize % 1024 == 0:  # rows would fall on the same lines of the nearest cache
            self.stride += LINE_BYTES // dtype.itemsize
        self.data = zeros((rows, self.stride), dtype)
        self.scale = zeros((rows, 2 + self.stride // GROUP), np.dtype(np.int32)) if format == Format.INT8 else None

    def struct(self) -> CBuffer:
        scale_stride = 0 if self.scale is None else self.scale.shape[1]
        return CBuffer(address(self.data), address(self.scale), self.width, self.stride, scale_stride, self.format)
