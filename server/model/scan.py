"""One pass over all weights, as they come from the disk: are they finite, and what is their fingerprint.

The fingerprint is a SHA-256 over every byte. A sample would be faster and would miss a fine-tune that left the sampled
places alone; stored states would then be continued with the wrong weights. On one core the pass does about 1 GB/s,
it runs on up to eight, and the disk is rarely faster.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import numpy as np

from rookery.kernels.cpu.arrays import BF16, F16, F32, F64, Array, type_name

_CHUNK_BYTES = 2**20
"""Small enough to stay in a core's cache from one check to the next."""
_WORKERS = 8

# Without its sign, a float is not finite exactly when its bits reach those of infinity; so one integer maximum will do.
_BITS: dict[np.dtype[Any], tuple[type[np.unsignedinteger[Any]], int]] = {
    BF16: (np.uint16, 0x7F80 << 1),
    F16: (np.uint16, 0x7C00 << 1),
    F32: (np.uint32, 0x7F800000 << 1),
    F64: (np.uint64, 0x7FF0000000000000 << 1),
}


class NotFinite(Exception):
    """A tensor has a NaN or an infinity."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def fingerprint(tensors: Mapping[str, Array], progress: Callable[[float], None] | None = None) -> str:
    """A hex digest of names, shapes, types and all bytes, whatever the order of the keys and the container.

    Args:
        tensors: floats.
        progress: called from this thread with the share of bytes done, growing to 1.

    Raises:
        NotFinite: for a tensor with a NaN or an infinity.
    """
    total = sum(tensor.nbytes for tensor in tensors.values())
    digests: dict[str, bytes] = {}
    done = 0
    with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
        pending = {pool.submit(_digest, key, tensor): key for key, tensor in tensors.items()}
        try:
            for future in as_completed(pending):
                key = pending[future]
                digests[key] = future.result()
                done += tensors[key].nbytes
                if progress is not None:
                    progress(done / total)
        except NotFinite:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    whole = hashlib.sha256(b"rookery weights 1")
    for key in sorted(digests):
        whole.update(digests[key])
    return whole.hexdigest()


def is_finite(tensor: Array) -> bool:
    """Whether every number is; for tensors too few to be worth a thread."""
    try:
        _digest("", tensor)
    except NotFinite:
        return False
    return True


def _digest(key: str, tensor: Array) -> bytes:
    digest = hashlib.sha256(f"{key}\0torch.{type_name(tensor.dtype)}\0{list(tensor.shape)}\0".encode())
    bits, limit = _BITS[tensor.dtype]
    numbers = tensor.ravel().view(bits)
    step = _CHUNK_BYTES // numbers.itemsize
    for start in range(0, len(numbers), step):
        chunk = numbers[start : start + step]
        if int((chunk << 1).max()) >= limit:
            raise NotFinite(key)
        digest.update(chunk.data)
    return digest.digest()
