"""From a path to a model that can run: the class by version, dtype and device resolved."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

from rookery.kernels.backend import VARIABLE

from ..engine.request import EngineInfo
from ..errors import StartupError
from .base import Model
from .checkpoint import Checkpoint
from .mapped import release
from .native import NativeModel, native_model
from .packed_file import kept_fingerprint, read_packed
from .shape import ModelShape
from .tuned_state import read_tuned_state
from .weights import read_checkpoint

__all__ = ["construct", "load_model", "read_tuned_state", "resolve_device", "resolve_dtype"]

_CLASSES = {"4": "Rwkv4", "5.0": "Rwkv5", "5.1": "Rwkv5", "5.2": "Rwkv5", "6": "Rwkv6", "7": "Rwkv7"}
_READING = 0.9
"""Share of the progress that reading takes; casting and placing the weights is the rest."""


def load_model(
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    slot_dtype: str = "float32",
    states: Mapping[str, Path] | None = None,
    progress: Callable[[float], None] | None = None,
) -> tuple[Model, EngineInfo]:
    """Load a model and its named tuned states.

    Args:
        dtype: "float32", "bfloat16", "float16", or "auto": float32 on a CPU, bfloat16 on a GPU.
        device: "cpu", "cuda", or "auto": a GPU where there is one.
        quantize: "int8" or "int4" for the matrices, on a CPU with the native library; or "none".
        slot_dtype: "float32" or "float16": what WKV states are kept in between steps.
        states: files of tuned initial states by the name clients give.
        progress: called with the share that is done, growing to 1.

    Raises:
        CheckpointError: the model or a state cannot be used.
        StartupError: the device is not there, its memory is too small, or it has no quantised matrices or no states
            of that type.
    """
    report = progress or (lambda share: None)

    def reading(share: float) -> None:
        report(_READING * share)

    packed = read_packed(path, reading)
    if packed is not None:
        dtype, quantize, device = _as_packed(packed, dtype, quantize, device)
    place = resolve_device(device)
    number_type = resolve_dtype(dtype, place)
    wkv_type = resolve_dtype(slot_dtype, place)
    checkpoint = packed or read_checkpoint(path, reading)
    named_states = {name: read_tuned_state(file, checkpoint.shape) for name, file in (states or {}).items()}
    checkpoint = replace(checkpoint, named_states=named_states)
    try:
        model = _serving(checkpoint, number_type, place, quantize, wkv_type)
    except torch.OutOfMemoryError as error:
        raise StartupError(
            f"{path}: the weights do not fit into the memory of {place} ({str(error).partition('.')[0]})",
            "free memory on it, take a smaller model, or use --device cpu",
        ) from None
    if packed is None:
        release(checkpoint.tensors.values())  # all was read and, but for the embedding, copied
    report(1.0)
    info = _info(checkpoint, model, number_type, place)
    if isinstance(model, NativeModel) and quantize != "none":
        fingerprint = info.fingerprint if packed is not None else kept_fingerprint(info.fingerprint, quantize)
        info = replace(info, dtype=quantize, weight_bytes=model.weight_bytes, fingerprint=fingerprint)
    return model, info


def _as_packed(checkpoint: Checkpoint, dtype: str, quantize: str, device: str) -> tuple[str, str, str]:
    """dtype, quantisation and device of a packed file, which has only one of each.

    Raises:
        StartupError: others are asked for.
    """
    kept = str(checkpoint.kept)
    asked = quantize if quantize != "none" else dtype if not kept.startswith("int") else "auto"
    if asked not in ("auto", kept):
        cause = f"{checkpoint.path} holds matrices of {kept}, and {asked} is asked for"
        raise StartupError(cause, "convert the checkpoint it was made from again", exit_code=2)
    if device not in ("auto", "cpu"):
        cause = f"{checkpoint.path} is packed for the native CPU library and cannot run on {device}"
        raise StartupError(cause, "use --device cpu, or the checkpoint it was made from", exit_code=2)
    return ("float32", kept, "cpu") if kept.startswith("int") else (kept, "none", "cpu")


def resolve_device(device: str) -> torch.device:
    """The device of that name; "auto" takes a GPU where PyTorch can use one.

    Raises:
        StartupError: a GPU was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if available else "cpu")
    if device.startswith("cuda") and not available:
        mend = "use --device cpu, or install the driver and a CUDA build of PyTorch (see `rookery doctor`)"
        raise StartupError(
            f"--device {device}: PyTorch {torch.__version__} finds no CUDA device here", mend, exit_code=2
        )
    return torch.device(device)


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The type of the weights; "auto" is exact on a CPU and half as large on a GPU."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]


def state_bytes(shape: ModelShape, dtype: torch.dtype) -> int:
    """Memory of one session: WKV in float32, token shift in the model's dtype, as `StatePool` keeps them."""
    shift = shape.layers * 2 * shape.width
    return shift * dtype.itemsize + (shape.state_values - shift) * torch.float32.itemsize


def _serving(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantize: str, wkv_dtype: torch.dtype
) -> Model:
    """The model on the native library where that serves it, else on torch.

    Raises:
        StartupError: quantised matrices are asked for, which only the native library has, or states of float16, which
            it has not.
    """
    kept = quantize if quantize != "none" else str(dtype).removeprefix("torch.")
    native = native_model(checkpoint, kept) if device.type == "cpu" else None
    if native is None and checkpoint.kept is not None:
        mend = "serve the checkpoint it was made from, or install where there is a C compiler"
        raise StartupError(f"{checkpoint.path} is packed for the native CPU library, which is not used here", mend)
    if native is None and quantize != "none":
        mend = (
            "use --device cpu where the native library is built (it needs a C compiler at install), or --quantize none"
        )
        raise StartupError(f"--quantize {quantize} cannot run on {device} here", mend, exit_code=2)
    if native is not None and wkv_dtype != torch.float32:
        mend = f"use --slot-dtype float32, or serve on a GPU or, slowly, on torch ({VARIABLE}=torch)"
        raise StartupError("--slot-dtype float16: the native CPU library keeps states in float32", mend, exit_code=2)
    return native or construct(checkpoint, dtype, device, wkv_dtype)


def construct(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, wkv_dtype: torch.dtype = torch.float32
) -> Model:
    """The class of this version; imported only now, so that one generation's kernels do not load another's."""
    version = checkpoint.shape.version
    module = import_module(f".rwkv{version[0]}", __package__)
    model: Model = getattr(module, _CLASSES[version])(checkpoint, dtype=dtype, device=device, wkv_dtype=wkv_dtype)
    return model


def _info(checkpoint: Checkpoint, model: Model, dtype: torch.dtype, device: torch.device) -> EngineInfo:
    shape = checkpoint.shape
    parameters = sum(tensor.numel() for tensor in checkpoint.tensors.values())
    return EngineInfo(
        model_path=str(checkpoint.path),
        version=shape.version,
        parameters=parameters,
        layers=shape.layers,
        width=shape.width,
        vocab_size=shape.vocab_size,
        state_bytes=model.new_pool(1).state_bytes,
        weight_bytes=parameters * dtype.itemsize,
        dtype=str(dtype).removeprefix("torch."),
        device=str(device),
        fingerprint=checkpoint.fingerprint,
        tuned_states=tuple(checkpoint.named_states),
    )
