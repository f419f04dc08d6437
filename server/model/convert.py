"""Any readable checkpoint to one `.safetensors` file under the official key names."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import save_file

from rookery.kernels.cpu.arrays import F16, Array, as_bfloat16, as_float32

from ..errors import StartupError
from .checkpoint import Checkpoint
from .files import printable
from .packed_file import kept_fingerprint, write_packed
from .scan import NotFinite, fingerprint
from .torch_arrays import to_torch
from .weights import FINGERPRINT_KEY, contents_to_digest, read_checkpoint


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    packed: str | None = None,
    force: bool = False,
    progress: Callable[[float], None] | None = None,
) -> str:
    """Write `source` as `target`; what is read back has the same bits and, unless packed, the same fingerprint.

    Under the target's name there is the old file or the whole new one, whenever the machine stops.

    Args:
        dtype: "float32", "bfloat16" or "float16"; None keeps each tensor's own.
        packed: "float32", "bfloat16", "int8" or "int4": matrices kept so, as the native library reads them
            (`packed_file`), instead of a file that other programs can read; `dtype` has no meaning then.
        force: overwrite an existing target.
        progress: called with the share of the source that is read.

    Returns:
        The fingerprint of what was written.

    Raises:
        CheckpointError: the source cannot be used.
        StartupError: the target exists, cannot be written, or `dtype` cannot hold the weights.
    """
    target_name = printable(target)
    if target.is_dir():
        raise StartupError(f"{target_name} is a folder", "give the name of a .safetensors file", exit_code=2)
    if target.exists() and not force:
        raise StartupError(
            f"{target_name} exists already", "give another name, or --force to overwrite it", exit_code=2
        )
    checkpoint = read_checkpoint(source, progress)
    if packed is not None:
        _write(target, lambda path: write_packed(path, checkpoint, packed, printable(source.name)))
        return kept_fingerprint(checkpoint.fingerprint, packed)
    tensors, digest = dict(checkpoint.tensors), checkpoint.fingerprint
    if dtype is not None:
        tensors = {key: _as_type(tensor, dtype) for key, tensor in tensors.items()}
        try:
            digest = fingerprint(contents_to_digest(tensors, checkpoint.tuned_state))
        except NotFinite as error:
            cause = f"{printable(source)}: the tensor {error.key} has numbers too large for {dtype}"
            raise StartupError(cause, "convert to bfloat16 or float32", exit_code=2) from None
    metadata = {
        "format": "pt",
        "rwkv_version": checkpoint.shape.version,
        "source": printable(source.name),
        FINGERPRINT_KEY: digest,
    }
    content = {key: to_torch(array) for key, array in _apart({**tensors, **_tuned_state(checkpoint)}).items()}
    _write(target, lambda path: save_file(content, path, metadata=metadata))
    return digest


def _as_type(array: Array, dtype: str) -> Array:
    if dtype == "bfloat16":
        return as_bfloat16(array)
    with np.errstate(over="ignore"):  # what is too large becomes infinity, which the fingerprint finds
        return as_float32(array).astype(F16 if dtype == "float16" else np.float32)


def _tuned_state(checkpoint: Checkpoint) -> dict[str, Array]:
    """The file's own initial state, a tensor a layer as training saves it; float32, which holds any other type."""
    if checkpoint.tuned_state is None:
        return {}
    return {f"blocks.{layer}.att.time_state": wkv for layer, wkv in enumerate(checkpoint.tuned_state.wkv)}


def _write(target: Path, fill: Callable[[Path], None]) -> None:
    """To a temporary name in the same folder, on the disk, then renamed.

    Raises:
        StartupError: it cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        try:
            fill(temporary)
            _sync(temporary)
            temporary.chmod(0o644)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        _sync(target.parent)
    except (OSError, SafetensorError) as error:
        cause = f"{printable(target)} cannot be written: {printable(error)}"
        raise StartupError(cause, "check the folder, its permissions and its free space") from None


def _apart(arrays: dict[str, Array]) -> dict[str, Array]:
    """Contiguous, and none in the memory of another, as the format wants them."""
    apart: dict[str, Array] = {}
    taken: set[int] = set()
    for key, array in arrays.items():
        dense = np.ascontiguousarray(array)
        apart[key] = dense.copy() if dense.ctypes.data in taken else dense
        taken.add(dense.ctypes.data)
    return apart


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
