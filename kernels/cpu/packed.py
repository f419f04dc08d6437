"""Weights and activations as the native kernels want them; step.h describes the layouts.

Symmetric quantisation: INT8 with one scale an output, INT4 with one bfloat16 scale for each 32 inputs of an output.
Activations that meet them are rounded to 8 bits, one scale a token, so the sums are exact integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import CBuffer, CMatrix, Format, address

PANEL = 16
"""Outputs side by side."""
TILE_ROWS = 32
"""Buffers have room for a multiple of so many tokens, because the matrix unit reads whole tiles."""
LINE_BYTES = 64
"""Of a cache."""
GROUP = 32
"""Inputs that share a scale in INT4."""

_MULTIPLE = {Format.F32: 1, Format.BF16: 32, Format.INT8: 64, Format.INT4: 32}
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


def pack(weight: Tensor, format: Format) -> Packed:
    """Pack a weight [out, in] of any float dtype."""
    outputs, inputs = weight.shape
    stride = -(-inputs // _MULTIPLE[format]) * _MULTIPLE[format]
    padded = F.pad(weight.detach(), (0, stride - inputs, 0, -outputs % PANEL))
    scale: Tensor | None = None
    match format:
        case Format.F32:
            data = _panels(padded.float(), 1)
        case Format.BF16:
            data = _panels(padded.bfloat16(), 2)
        case Format.INT8:
            whole, scale = quantize_int8(padded.float())
            data = _panels((whole + 128).to(torch.uint8), 4)
        case Format.INT4:
            whole, group_scale = quantize_int4(padded.float())
            scale = _panels(group_scale, 1)
            fours = _panels((whole + 8).to(torch.uint8), 4).view(-1, stride // 8, 2, PANEL, 4)
            data = (fours[:, :, 0] | fours[:, :, 1] << 4).contiguous()
        case _:
            raise ValueError(f"weights are not kept as {format.name}")
    return Packed(data, scale, outputs, inputs, stride, format)


def _panels(x: Tensor, together: int) -> Tensor:
    """[out, n] to [out / 16, n / together, 16, together]."""
    outputs, n = x.shape
    return x.view(outputs // PANEL, PANEL, n // together, together).transpose(1, 2).contiguous()


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] float32 to integers in [-127, 127], as floats, and scales [out]."""
    scale = weight.abs().amax(1) / 127
    return (weight / torch.where(scale > 0, scale, 1).unsqueeze(1)).round(), scale


def quantize_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] float32 to integers in [-8, 7], as floats, and bfloat16 scales [out, in / 32].

    The scale puts the number of largest magnitude at -8, so one may be negative (as llama.cpp's Q4_0 does it).
    """
    groups = weight.view(len(weight), -1, GROUP)
    peak = groups.gather(2, groups.abs().argmax(2, keepdim=True))
    scale = (peak / -8).bfloat16()
    divisor = torch.where(scale == 0, 1, scale.float())
    return (groups / divisor).round().clamp(-8, 7).view_as(weight), scale.squeeze(2)


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
