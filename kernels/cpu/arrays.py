"""Arrays as the native library takes them: number types, memory at whole lines, addresses.

numpy has no bfloat16, so here it is a type of one field: such an array is sliced, transposed, reshaped and stored like
any other, and can not be computed with by mistake. `as_float32` and `as_bfloat16` go there and back.
"""

from __future__ import annotations

import math
import mmap
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]

F64, F32, F16 = np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16)
BF16 = np.dtype([("bfloat16", np.uint16)])
BYTE = np.dtype(np.uint8)
STORED: dict[str, np.dtype[Any]] = {"F64": F64, "F32": F32, "F16": F16, "BF16": BF16, "U8": BYTE}
"""By their names in the safetensors format."""

LINE_BYTES = 64
"""Of a cache."""


def type_name(dtype: np.dtype[Any]) -> str:
    """As people write it: "bfloat16"."""
    return "bfloat16" if dtype == BF16 else dtype.name


def as_float32(array: Array) -> FloatArray:
    """The same numbers as float32, rounded where they are float64; the array itself where it has that type."""
    if array.dtype == BF16:
        return (array["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)


def as_bfloat16(array: Array) -> Array:
    """The nearest bfloat16 of finite numbers, the even one of two."""
    bits = np.ascontiguousarray(as_float32(array)).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(BF16)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """As numpy's, but it begins at a whole line."""
    size = math.prod(shape) * dtype.itemsize
    room = np.empty(size + LINE_BYTES, np.uint8)
    start = -room.ctypes.data % LINE_BYTES
    return room[start : start + size].view(dtype).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """As numpy's, at a whole page; what nobody writes to takes no memory.

    Raises:
        MemoryError: the host has not so much.
    """
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return np.zeros(shape, dtype)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        raise MemoryError(f"no {size} bytes of memory") from error
    return np.frombuffer(memory, dtype).reshape(shape)


def forget(array: Array) -> None:
    """Give the memory of an array that `zeros` made back to the system: it is zeros again, and takes none."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    if isinstance(base, memoryview) and isinstance(base.obj, mmap.mmap):
        base.obj.madvise(mmap.MADV_DONTNEED)


def address(array: Array | None) -> int | None:
    """Where an array's numbers lie; it must be contiguous, and the caller has to keep it."""
    if array is None:
        return None
    if not array.flags.c_contiguous:
        raise ValueError("native kernels read contiguous arrays only")
    return array.ctypes.data
