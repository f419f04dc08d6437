"""One state as a safetensors file that says what it belongs to and whether it is whole.

Tensors `shift` and `wkv` as in `State`, and `hidden` as in `Snapshot` where it is kept; `shift` and `hidden` of earlier
versions may be bfloat16. The metadata names the format, the model (fingerprint, version), the tokenizer, the tokens
consumed, and a checksum over all of that and the tensors. What does not fit is refused before it is used.

float16 halves `wkv`: every value is rounded by at most 2**-11 of itself (and 2**-25 below 6e-5). Outputs that follow
differ by some 1e-4 of their range, less and less as the state forgets. RWKV-4's state has exponents: it stays float32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, deserialize

from rookery.kernels.cpu.arrays import BF16, F16, F32, STORED, Array, FloatArray, as_float32, type_name

from ..model.shape import ModelShape
from .pool import State

FORMAT = "rookery-state-1"
_MAX_HEADER_BYTES = 16 * 1024
_FLOATS = (F32, F16, BF16)
_LARGEST_F16 = float(np.finfo(F16).max)
"""What is larger becomes this, not infinity."""

StateDtype = Literal["float32", "float16"]


class SnapshotError(Exception):
    """The bytes are no state that can be used here; the message says why, in one clause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFormat:
    """What a state must agree with to be continued: which model and tokenizer, and the sizes."""

    fingerprint: str
    tokenizer: str
    version: str
    shift_shape: tuple[int, ...]
    wkv_shape: tuple[int, ...]

    @classmethod
    def of(cls, shape: ModelShape, *, fingerprint: str, tokenizer: str) -> StateFormat:
        """Of the states of a model."""
        return cls(
            fingerprint=fingerprint,
            tokenizer=tokenizer,
            version=shape.version,
            shift_shape=(shape.layers, 2, shape.width),
            wkv_shape=(shape.layers, *shape.wkv_shape),
        )

    @property
    def model(self) -> str:
        """One name for all that must agree."""
        names = (self.fingerprint, self.tokenizer, self.version, str(self.shift_shape), str(self.wkv_shape))
        return blake2b("\n".join(names).encode(), digest_size=16).hexdigest()


def write_snapshot(
    state: State,
    format: StateFormat,
    *,
    tokens: int,
    tuned_state: str | None,
    dtype: StateDtype,
    hidden: FloatArray | None = None,
) -> bytes:
    """The file's content; `hidden`, [C], is the model's output at the last token."""
    wkv = state.wkv
    if dtype == "float16" and format.version != "4":
        wkv = wkv.clip(-_LARGEST_F16, _LARGEST_F16).astype(F16)
    tensors = {"shift": state.shift, "wkv": wkv}
    if hidden is not None:
        tensors["hidden"] = hidden
    about = {
        "format": FORMAT,
        "fingerprint": format.fingerprint,
        "tokenizer": format.tokenizer,
        "version": format.version,
        "tokens": str(tokens),
        "tuned_state": tuned_state or "",
    }
    return safetensors.numpy.save(tensors, {**about, "checksum": _checksum(about, tensors)})


@dataclass(frozen=True, slots=True)
class Loaded:
    """A state read back."""

    state: State
    tokens: int
    tuned_state: str | None
    hidden: FloatArray | None = None


def read_snapshot(data: bytes, format: StateFormat, *, checked: bool = False) -> Loaded:
    """The state in a file's content; `checked` says that the bytes are known to be those that were written.

    Raises:
        SnapshotError: damaged, cut short, or of another model.
    """
    about = _metadata(data)
    for name, expected in (
        ("format", FORMAT),
        ("fingerprint", format.fingerprint),
        ("version", format.version),
        ("tokenizer", format.tokenizer),
    ):
        if about.get(name) != expected:
            what = {"format": "no state file of this server", "tokenizer": "of another tokenizer"}
            raise SnapshotError(f"it is {what.get(name, 'of another model')}")
    try:
        tensors = {name: _array(entry) for name, entry in deserialize(data)}  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError("it is damaged") from error
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    expected_shapes = {"shift": format.shift_shape, "wkv": format.wkv_shape}
    if "hidden" in shapes:
        expected_shapes["hidden"] = format.shift_shape[-1:]
    if shapes != expected_shapes:
        raise SnapshotError("its tensors have other shapes than this model's")
    checksum = about.pop("checksum", "")
    if not checked and checksum != _checksum(about, tensors):
        raise SnapshotError("its checksum does not match")
    if any(tensor.dtype not in _FLOATS or not np.isfinite(as_float32(tensor)).all() for tensor in tensors.values()):
        raise SnapshotError("it holds values that no state has")
    if not about["tokens"].isdecimal() or len(about["tokens"]) > 15:
        raise SnapshotError("it is damaged")
    state = State(shift=as_float32(tensors["shift"]), wkv=as_float32(tensors["wkv"]))
    hidden = as_float32(tensors["hidden"]) if "hidden" in tensors else None
    return Loaded(state, int(about["tokens"]), about.get("tuned_state") or None, hidden)


def _array(entry: Mapping[str, Any]) -> Array:
    """A tensor as `deserialize` gives it. Raises KeyError: it has a type that no state has."""
    array: Array = np.frombuffer(entry["data"], STORED[entry["dtype"]])
    return array.reshape(entry["shape"])


def _metadata(data: bytes) -> dict[str, str]:
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > _MAX_HEADER_BYTES or 8 + size > len(data):
        raise SnapshotError("it is no safetensors file, or cut short")
    try:
        header = json.loads(data[8 : 8 + size])
        about = header["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SnapshotError("its header cannot be read") from error
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        raise SnapshotError("its header cannot be read")
    if "tokens" not in about:
        raise SnapshotError("it is no state file of this server")
    return about


def _checksum(about: Mapping[str, str], tensors: Mapping[str, Array]) -> str:
    digest = blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=32)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} torch.{type_name(tensor.dtype)} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
