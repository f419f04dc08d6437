"""From a path to a model that can run: the class by version, dtype and device resolved.

PyTorch is imported for a GPU and for what the native library does not serve, and not otherwise.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rookery.kernels.backend import VARIABLE
from rookery.kernels.cpu.threads import threads

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

if TYPE_CHECKING:
    import torch

__all__ = ["DTYPE_BYTES", "construct", "exactly", "load_model", "read_tuned_state", "resolve_device", "state_bytes"]

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Types that models can have, and what a number takes."""

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
    device = resolve_device(device)
    if dtype == "auto":
        dtype = "bfloat16" if device.startswith("cuda") else "float32"
    checkpoint = packed or read_checkpoint(path, reading)
    named_states = {name: read_tuned_state(file, checkpoint.shape) for name, file in (states or {}).items()}
    checkpoint = replace(checkpoint, named_states=named_states)
    model = _native(checkpoint, dtype, device, quantize, slot_dtype) or _on_torch(checkpoint, dtype, device, slot_dtype)
    if packed is None:
        release(checkpoint.tensors.values())  # all was read and, but for the embedding, copied
    report(1.0)
    info = _info(checkpoint, model, dtype, device)
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


_GPU_NODES = ("/dev/nvidiactl", "/dev/nvhost-ctrl-gpu", "/dev/dxg", "/dev/kfd")
"""What Linux has where there may be a GPU: of NVIDIA's drivers for PCs and for Jetson, of WSL, of AMD's."""


def resolve_device(device: str) -> str:
    """The device of that name; "auto" takes a GPU where PyTorch can use one, and does not ask it where there is none.

    Raises:
        StartupError: a GPU was asked for and there is none.
    """
    if device == "auto" and sys.platform == "linux" and not any(map(os.path.exists, _GPU_NODES)):
        return "cpu"
    if device == "cpu":
        return device
    import torch

    available = torch.cuda.is_available()
    if device == "auto":
        return "cuda" if available else "cpu"
    if device.startswith("cuda") and not available:
        mend = "use --device cpu, or install the driver and a CUDA build of PyTorch (see `rookery doctor`)"
        raise StartupError(
            f"--device {device}: PyTorch {torch.__version__} finds no CUDA device here", mend, exit_code=2
        )
    return device


def state_bytes(shape: ModelShape, dtype: str) -> int:
    """Memory of one session: WKV in float32, token shift in the model's dtype, as pools keep them."""
    shift = shape.layers * 2 * shape.width
    return shift * DTYPE_BYTES[dtype] + (shape.state_values - shift) * DTYPE_BYTES["float32"]


def _native(checkpoint: Checkpoint, dtype: str, device: str, quantize: str, slot_dtype: str) -> NativeModel | None:
    """The model on the native library where that serves it.

    Raises:
        StartupError: quantised matrices are asked for, which only the native library has, or states of float16, which
            it has not.
    """
    kept = quantize if quantize != "none" else dtype
    native = native_model(checkpoint, kept) if device == "cpu" else None
    if native is None and checkpoint.kept is not None:
        mend = "serve the checkpoint it was made from, or install where there is a C compiler"
        raise StartupError(f"{checkpoint.path} is packed for the native CPU library, which is not used here", mend)
    if native is None and quantize != "none":
        mend = (
            "use --device cpu where the native library is built (it needs a C compiler at install), or --quantize none"
        )
        raise StartupError(f"--quantize {quantize} cannot run on {device} here", mend, exit_code=2)
    if native is not None and slot_dtype != "float32":
        mend = f"use --slot-dtype float32, or serve on a GPU or, slowly, on torch ({VARIABLE}=torch)"
        raise StartupError("--slot-dtype float16: the native CPU library keeps states in float32", mend, exit_code=2)
    return native


def _on_torch(checkpoint: Checkpoint, dtype: str, device: str, slot_dtype: str) -> Model:
    """The model on torch.

    Raises:
        StartupError: it does not fit into the device's memory.
    """
    import torch

    torch.set_num_threads(threads())
    try:
        return construct(checkpoint, getattr(torch, dtype), torch.device(device), getattr(torch, slot_dtype))
    except torch.OutOfMemoryError as error:
        raise StartupError(
            f"{checkpoint.path}: the weights do not fit into the memory of {device} ({str(error).partition('.')[0]})",
            "free memory on it, take a smaller model, or use --device cpu",
        ) from None


def construct(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, wkv_dtype: torch.dtype | None = None
) -> Model:
    """The class of this version; imported only now, so that one generation's kernels do not load another's."""
    import torch

    version = checkpoint.shape.version
    module = import_module(f".rwkv{version[0]}", __package__)
    model: Model = getattr(module, _CLASSES[version])(
        checkpoint, dtype=dtype, device=device, wkv_dtype=wkv_dtype or torch.float32
    )
    return model


def exactly(model: Model) -> Model:
    """The model, such that a row's results never depend on its batch mates, on cuts, or on where its state was kept."""
    if isinstance(model, NativeModel):
        return model
    from .exact import TokenByToken

    return TokenByToken(model)


def _info(checkpoint: Checkpoint, model: Model, dtype: str, device: str) -> EngineInfo:
    shape = checkpoint.shape
    parameters = sum(tensor.size for tensor in checkpoint.tensors.values())
    return EngineInfo(
        model_path=str(checkpoint.path),
        version=shape.version,
        parameters=parameters,
        layers=shape.layers,
        width=shape.width,
        vocab_size=shape.vocab_size,
        state_bytes=model.new_pool(1).state_bytes,
        weight_bytes=parameters * DTYPE_BYTES[dtype],
        dtype=dtype,
        device=device,
        fingerprint=checkpoint.fingerprint,
        tuned_states=tuple(checkpoint.named_states),
    )
