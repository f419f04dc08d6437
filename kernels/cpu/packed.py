"""Weights and activations as the native kernels want them; step.h describes the layouts.

Symmetric quantisation: INT8 with one scale an output; INT4 besides it with a small integer for each 32 inputs, so that
a number of 4 bits times its group's integer is one of 8 bits, and all that serves INT8 serves INT4.
Activations that meet them are rounded to 8 bits, one scale a token, so the sums are exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import CBuffer, CMatrix, Format, address

PACKING = 3
"""Of these layouts and rules of rounding, as files say it: raise it whenever `pack` would give other numbers."""

PANEL = 16
"""Outputs side by side."""
TILE_ROWS = 32
"""Buffers have room for a multiple of so many tokens, because the matrix unit reads whole tiles."""
LINE_BYTES = 64
"""Of a cache."""
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
    """A weight [out, in], packed. Its tensors must live as long as its struct is used."""

    data: Tensor
    scale: Tensor | None
    outputs: int
    inputs: int
    stride: int
    format: Format

    def struct(self) -> CMatrix:
        return CMatrix(address(self.data), address(self.scale), self.outputs, self.inputs, self.stride, self.format)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scale is None else self.scale.nbytes)


Numbers = tuple[tuple[int, ...], torch.dtype]
"""Shape and type of an array."""


def layout(outputs: int, inputs: int, format: Format) -> tuple[int, Numbers, Numbers | None]:
    """Stride, numbers and scales of a packed weight [out, in]."""
    stride = -(-inputs // _MULTIPLE[format]) * _MULTIPLE[format]
    panels = -(-outputs // PANEL)
    match format:
        case Format.F32:
            return stride, ((panels, stride, PANEL, 1), torch.float32), None
        case Format.BF16:
            return stride, ((panels, stride // 2, PANEL, 2), torch.bfloat16), None
        case Format.INT8:
            data = (panels, stride // 4, PANEL, 4)
            return stride, (data, torch.uint8), ((panels * PANEL,), torch.float32)
        case Format.INT4:
            batches = -(-stride // (BATCH * GROUP))
            data_bytes = batches * BATCH * (GROUP // 2 + 1) * PANEL
            return stride, ((panels, data_bytes), torch.uint8), ((panels * PANEL,), torch.float32)
    raise ValueError(f"weights are not kept as {format.name}")


def pack(weight: Tensor, format: Format) -> Packed:
    """Pack a weight [out, in] of any float dtype; some outputs at a time, so that little memory is needed beside it."""
    outputs, inputs = weight.shape
    stride, numbers, scales = layout(outputs, inputs, format)
    data = torch.empty(numbers[0], dtype=numbers[1])
    scale = None if scales is None else torch.empty(scales[0], dtype=scales[1])
    for start in range(0, outputs, _AT_ONCE):
        part = weight[start : start + _AT_ONCE].detach()
        padded = torch.zeros(-(-len(part) // PANEL) * PANEL, stride)
        padded[: len(part), :inputs] = part
        panels = slice(start // PANEL, (start + len(padded)) // PANEL)
        match format:
            case Format.INT8:
                whole, row_scale = quantize_int8(padded)
                data[panels] = _panels((whole + 128).to(torch.uint8), 4)
                assert scale is not None
                scale[start : start + len(padded)] = row_scale
            case Format.INT4:
                whole, multipliers, row_scale = quantize_int4(padded)
                fours = _panels((whole + 8).to(torch.uint8), 4).view(-1, stride // 8, 2, PANEL, 4)
                both = (fours[:, :, 0] | fours[:, :, 1] << 4).reshape(-1, stride // GROUP, GROUP // 2 * PANEL)
                ends = _panels(multipliers.to(torch.int8), 1).contiguous().view(torch.uint8).flatten(2)
                data[panels] = torch.cat([_batches(both), _batches(ends)], 2).flatten(1)
                assert scale is not None
                scale[start : start + len(padded)] = row_scale
            case _:
                data[panels] = _panels(padded, numbers[0][-1])
    return Packed(data, scale, outputs, inputs, stride, format)


def _panels(x: Tensor, together: int) -> Tensor:
    """[out, n] to [out / 16, n / together, 16, together]."""
    outputs, n = x.shape
    return x.view(outputs // PANEL, PANEL, n // together, together).transpose(1, 2)


def _batches(x: Tensor) -> Tensor:
    """[panels, groups, n] to [panels, batches, BATCH * n], with zeros in the groups that the last batch lacks."""
    x = F.pad(x, (0, 0, 0, -x.shape[1] % BATCH))
    return x.view(len(x), -1, BATCH * x.shape[2])


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] float32 to integers in [-127, 127], as floats, and scales [out]."""
    scale = weight.abs().amax(1) / 127
    return (weight / torch.where(scale > 0, scale, 1).unsqueeze(1)).round(), scale


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] float32 to integers in [-8, 7] and multipliers [out, in / 32] to 15, all as floats, and scales [out].

    A number stands for integer * multiplier * scale. The multiplier puts the number of largest magnitude near -8, so it
    may be negative; of the three integers around, each group takes the one with the smallest squared error. On weights
    with a normal distribution the error is 5 percent below that of a float scale for each group.
    """
    groups = weight.view(len(weight), -1, GROUP)
    step = groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -8
    scale = step.abs().amax((1, 2), keepdim=True) / LARGEST_MULTIPLIER
    unit = torch.where(scale > 0, scale, 1)
    middle = (step.abs() / unit).round()
    least, numbers, multipliers = torch.full_like(step, torch.inf), groups, step
    for more in (-1, 0, 1):
        multiplier = (middle + more).clamp_(1, LARGEST_MULTIPLIER).copysign_(step)
        stands_for = multiplier * unit
        whole = (groups / stands_for).round_().clamp_(-8, 7)
        error = torch.addcmul(groups, whole, stands_for, value=-1).square_().sum(2, keepdim=True)
        better = error < least
        numbers = torch.where(better, whole, numbers)
        multipliers = torch.where(better, multiplier, multipliers)
        least = torch.where(better, error, least)
    return numbers.view_as(weight), multipliers.squeeze(2), scale.flatten()


class Activations:
    """A buffer [tokens, width], zero at first, which the kernels write and read."""

    def __init__(self, tokens: int, width: int, format: Format = Format.F32) -> None:
        rows = -(-tokens // TILE_ROWS) * TILE_ROWS
        self.width, self.format = width, format
        dtype = {Format.F32: torch.float32, Format.BF16: torch.bfloat16, Format.INT8: torch.int8}[format]
        self.stride = -(-width // _MULTIPLE[format]) * _MULTIPLE[format]
        if self.stride * dtype.itemsize % 1024 == 0:  # rows would fall on the same lines of the nearest cache
            self.stride += LINE_BYTES // dtype.itemsize
        self.data = torch.zeros(rows, self.stride, dtype=dtype)
        self.scale = torch.zeros(rows, 2 + self.stride // GROUP, dtype=torch.int32) if format == Format.INT8 else None

    def struct(self) -> CBuffer:
        scale_stride = 0 if self.scale is None else self.scale.shape[1]
        return CBuffer(address(self.data), address(self.scale), self.width, self.stride, scale_stride, self.format)
