"""The tensors of a `.pth` by PyTorch's restricted unpickler alone, never by the full one."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from rookery.kernels.cpu.arrays import Array

from ..errors import CheckpointError
from .files import AGAIN, CONVERT, READ_ERRORS, no_weight, unusable
from .torch_arrays import from_torch

_PICKLE_LIMIT = 64 * 2**20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_pth(path: Path) -> dict[str, Array]:
    """The named tensors in a zip archive of `torch.save`, mapped.

    Raises:
        CheckpointError: damaged, another kind of archive, or holding more than dense floats.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except READ_ERRORS:
        raise unusable(path, "its zip directory is damaged: the file is cut off or was altered", AGAIN) from None
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise unusable(path, "it is a zip archive, but none that torch.save made", CONVERT)
    if pickles[0].file_size > _PICKLE_LIMIT or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise unusable(path, "it is a zip archive packed as torch.save never does", CONVERT)
    try:
        with warnings.catch_warnings(), torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
            warnings.simplefilter("ignore")  # about kinds of tensors that are refused below
            loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except READ_ERRORS as error:
        raise _unpickling_failed(path, error) from None
    return {key: _array(path, key, tensor) for key, tensor in _named_tensors(path, loaded).items()}


def _unpickling_failed(path: Path, error: BaseException) -> CheckpointError:
    refused = re.search(r"(?:Unsupported global: GLOBAL|Trying to \w+ (?:unsupported )?\w*) ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError):
        wants = f" (it asks for {refused[1]})" if refused else ""
        mend = "do not use this file unless you know its source; weights alone, saved by torch.save, do load"
        return unusable(path, f"its pickle wants more than tensors{wants}; nothing of it was run", mend)
    reason = str(error).strip().partition("\n")[0]
    return unusable(path, f"it is damaged: {type(error).__name__} {reason}", AGAIN)


def _named_tensors(path: Path, loaded: object) -> dict[str, Tensor]:
    """The state dict, also where a trainer nested it beside its own notes."""
    for key in ("state_dict", "model", "module"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict):
        raise unusable(path, f"it holds a {type(loaded).__name__}, not named tensors", CONVERT)
    if any(key in loaded for key in ("_strategy", "_version", "_rescale_layer")):
        raise unusable(
            path,
            "it was already converted by the rwkv package for one strategy (it has _strategy or _version)",
            "use the checkpoint it was converted from",
        )
    tensors: dict[str, Tensor] = {}
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            what = f"{key!r} is a {type(value).__name__}, not a tensor"
            raise unusable(path, what, "save the weights alone: torch.save(model.state_dict(), …)")
        tensors[key] = value.detach()
    return tensors


def _array(path: Path, key: str, tensor: Tensor) -> Array:
    """A dense tensor of floats that lies wholly in the file: no view may promise more numbers than there are bytes."""
    kind = _unwanted(tensor)
    if kind is None and tensor.nbytes > tensor.untyped_storage().nbytes():
        kind = f"a view of shape {list(tensor.shape)} over fewer numbers than that"
    if kind is not None:
        raise no_weight(path, key, kind)
    return from_torch(tensor)


def _unwanted(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return f"a {type(tensor).__name__} on {tensor.device}"
    if tensor.dtype not in _FLOATS:
        return f"of type {str(tensor.dtype).removeprefix('torch.')}"
    return None
