"""Giving back the memory of files that were read through a map."""

from __future__ import annotations

import ctypes
import mmap
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rookery.kernels.cpu.arrays import Array

_MAPS = Path("/proc/self/maps")
_DONTNEED = 4


def release(arrays: Iterable[Array]) -> None:
    """Take the pages of arrays that lie in mapped files out of this process; they come back when they are read again.

    An array must be as the file has it: what was written into it would be lost. Arrays elsewhere are left alone. On
    systems that do not tell what is mapped, nothing happens.
    """
    if not _MAPS.is_file():
        return
    ranges = sorted(_files_mapped())
    libc = ctypes.CDLL(None)
    page = mmap.PAGESIZE
    for array in arrays:
        first, last = np.lib.array_utils.byte_bounds(array)
        at = bisect_right(ranges, (first, 2**64)) - 1
        if at >= 0 and ranges[at][0] <= first and last <= ranges[at][1]:
            begin, end = -(-first // page) * page, last // page * page
            if begin < end:
                libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DONTNEED)


def _files_mapped() -> Iterable[tuple[int, int]]:
    """Addresses from and to, of what is mapped from files."""
    for line in _MAPS.read_text().splitlines():
        addresses, _, _, _, inode, *_ = line.split()
        if inode != "0":
            first, _, last = addresses.partition("-")
            yield int(first, 16), int(last, 16)
