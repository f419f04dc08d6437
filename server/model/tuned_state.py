"""Tuned initial states: what state tuning saves, `blocks.N.att.time_state` [H, value, key] for each layer.

The file has the WKV state alone; both shift vectors start from zero. The axes are those of our pool, so nothing is
transposed. Source: RWKV-LM `RWKV_Tmix_x060_state` and its CUDA kernel, which reads value rows and key columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rookery.kernels.cpu.arrays import Array, as_float32

from ..state.pool import State
from .files import read_contents, unusable
from .official import LayoutError
from .scan import is_finite
from .shape import ModelShape

_KEY = "blocks.{}.att.time_state"
_MEND = "use a state that was tuned for this very model"


def read_tuned_state(path: Path, shape: ModelShape) -> State:
    """The state in a `.pth` file, for a model of that shape.

    Returns:
        float32, both arrays.

    Raises:
        CheckpointError: the file is unusable, or the state is not of this model's shape or not finite.
    """
    contents = read_contents(path)
    if (
        contents.container != "pth"
    ):  # web-rwkv and Ai00 store it transposed under the same names: nothing tells them apart
        message = "it is no .pth file; in other files the order of a tuned state's axes is not certain"
        raise unusable(path, message, "use the .pth file that state tuning saved")
    try:
        state, rest = take_tuned_state(contents.tensors, shape)
    except LayoutError as error:
        raise unusable(path, str(error), error.mend) from None
    if rest:
        raise unusable(path, f"it has the tensor {min(rest)}, which is no part of a tuned state", _MEND)
    if state is None:
        raise unusable(path, "it has no tuned state (no key ends in time_state)", _MEND)
    return state


def take_tuned_state(tensors: Mapping[str, Array], shape: ModelShape) -> tuple[State | None, dict[str, Array]]:
    """Part tensors into the initial state they hold, if any, and the rest.

    Raises:
        LayoutError: layers missing, wrong sizes, numbers that are not finite, or a version without tuned states.
    """
    rest = {key: tensor for key, tensor in tensors.items() if not key.endswith(".time_state")}
    if len(rest) == len(tensors):
        return None, rest
    if shape.version == "4":
        raise LayoutError("it has a tuned state, which RWKV-4 does not know", _MEND)
    needed = [_KEY.format(layer) for layer in range(shape.layers)]
    found = len(tensors) - len(rest)
    layers = []
    for key in needed:
        tensor = tensors.get(key)
        if tensor is None or found != shape.layers:
            what = f"its tuned state has {found} layers, the model has {shape.layers}"
            raise LayoutError(what if found != shape.layers else f"its tuned state has no {key}", _MEND)
        if tuple(tensor.shape) != shape.wkv_shape:
            message = f"the tensor {key} has the shape {list(tensor.shape)}; this model needs {list(shape.wkv_shape)}"
            raise LayoutError(message, _MEND)
        if not is_finite(tensor):
            raise LayoutError(f"the tensor {key} has a number that is not finite", _MEND)
        layers.append(as_float32(tensor))
    shift = np.zeros((shape.layers, 2, shape.width), np.float32)
    return State(shift=shift, wkv=np.stack(layers)), rest
