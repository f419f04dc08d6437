"""Named tensors out of files of unknown origin, without running any of their code.

Three containers: a `.pth` (a zip archive made by `torch.save`), a `.safetensors`, a folder of shards with an index.
What a file is, is told by its first bytes, never by its name. Arrays stay mapped to the file until someone reads
them, so opening costs neither time nor memory, whatever a header claims. Only a `.pth` needs PyTorch (`pth.py`).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import pickle
import stat
import struct
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from rookery.kernels.cpu.arrays import BF16, BYTE, F16, F32, F64, STORED, Array, type_name

from ..errors import CheckpointError

FLOATS = (F32, BF16, F16, F64)
"""Types weights may be stored in."""

PACKED_FORMAT = "rookery-packed"
"""What the metadata of a file calls its format that `packed_file` wrote."""

AGAIN = "download or copy the file again, and compare its size or checksum with its source"
CONVERT = "use the .pth, .safetensors or Hugging Face folder the model was published as"
_JSON_LIMIT = 64 * 2**20
_MODEL_SUFFIXES = (".pth", ".pt", ".safetensors")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")

# Whatever a reader may raise over bytes that someone prepared; listed, so that a mistake of ours is not among them.
READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a file or folder holds: dense tensors of floats by the file's own names, its metadata, a folder's config."""

    tensors: dict[str, Array]
    container: str
    """"pth", "safetensors" or "folder"."""
    size_bytes: int
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def printable(text: object, limit: int = 300) -> str:
    """One line of harmless characters: names inside files come from strangers and end up in terminals and logs."""
    line = "".join(c if c.isprintable() else "?" for c in str(text)[: 4 * limit])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def unusable(path: Path, what: str, mend: str) -> CheckpointError:
    """The error for this file: `<file>: <what>`, and what to do about it, one line each."""
    return CheckpointError(f"{printable(path)}: {printable(what, 500)}", printable(mend, 500))


def read_contents(path: Path) -> Contents:
    """The tensors of a model or state file, or of a folder with one model.

    Raises:
        CheckpointError: nothing there, not readable, damaged, of another format, or holding more than dense floats.
    """
    status = _status(path)
    if stat.S_ISDIR(status.st_mode):
        return _read_folder(path)
    return _read_file(path, status)


def open_safetensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]] | None:
    """Tensors of any type, mapped, and the metadata of one `.safetensors` file; None where it is something else.

    Raises:
        CheckpointError: nothing there, not readable, or its header does not fit.
    """
    if not stat.S_ISREG(_status(path).st_mode):
        return None
    return _read_safetensors(path) if _head(path)[8:9] == b"{" else None


def _status(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from None


def _unreachable(path: Path, error: OSError | ValueError) -> CheckpointError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOENT, errno.ENOTDIR):
        return unusable(path, "there is no such file or folder", _what_exists(path))
    if number == errno.ELOOP:
        return unusable(path, "its symbolic links lead in a circle", "give the path of the file itself")
    if number in (errno.EACCES, errno.EPERM):
        return unusable(path, "this user may not read it", "give the user that runs the server read access to it")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return unusable(path, f"it cannot be read ({reason})", "check the path and the disk it lies on")


def _what_exists(path: Path) -> str:
    """For a wrong path: the models in the nearest folder that exists."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.suffix in _MODEL_SUFFIXES)
    except OSError:
        names = []
    if not names:
        return f"check the path; {folder} exists, but holds no .pth or .safetensors file"
    return f"check the path; {folder} has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}"


def _read_file(path: Path, status: os.stat_result) -> Contents:
    if not stat.S_ISREG(status.st_mode):
        raise unusable(path, "it is neither a file nor a folder", CONVERT)
    if status.st_size == 0:
        raise unusable(path, "it is empty", AGAIN)
    head = _head(path)
    metadata: Mapping[str, str] = {}
    if head.startswith(b"PK\x03\x04"):
        from .pth import read_pth  # imports PyTorch, which nothing else here needs

        container, tensors = "pth", read_pth(path)
    elif head[8:9] == b"{":
        container = "safetensors"
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") == PACKED_FORMAT:
            raise unusable(path, "its matrices are packed for serving already", "use the checkpoint it was made from")
    else:
        raise unusable(path, *_foreign(head))
    _check_arrays(path, tensors, status.st_size)
    return Contents(tensors=tensors, container=container, size_bytes=status.st_size, metadata=metadata)


def _head(path: Path) -> bytes:
    """The first bytes, which tell what it is."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError as error:
        raise _unreachable(path, error) from None


def _foreign(head: bytes) -> tuple[str, str]:
    """What a file of another format is, and what to do."""
    text = head.lstrip().lower()
    if head.startswith(b"GGUF"):
        return "it is a GGUF file, the format of llama.cpp", CONVERT
    if head[:4] in (b"fmgg", b"lmgg", b"tjgg"):
        return "it is a ggml file, the format of rwkv.cpp", CONVERT
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, not a model: the download went wrong", AGAIN
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the model itself", "run `git lfs pull` in its folder"
    if head[257:262] == b"ustar" or head.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")):
        mend = "if you trust its source, save it again in the zip format with torch.save; else use another file"
        return "it is a bare pickle or tar of PyTorch's old format, which can run code and is never opened", mend
    if not head.strip(b"\0"):
        return "it begins with nothing but zero bytes: a download that was never filled", AGAIN
    return f"it is no model file (it begins with {head[:12]!r})", CONVERT


def _read_safetensors(path: Path) -> tuple[dict[str, Array], Mapping[str, str]]:
    """Checked by the package, then mapped: a copy of what is written to, the file of all else."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
        with path.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            entries = json.loads(opened.read(length))
            mapped = np.frombuffer(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY), BYTE)
    except READ_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise unusable(path, f"its safetensors header does not fit the file ({reason})", AGAIN) from None
    arrays = {}
    for key, entry in entries.items():
        if key == "__metadata__":
            continue
        dtype = STORED.get(entry["dtype"])
        if dtype is None:
            raise no_weight(path, key, f"of type {entry['dtype']}")
        start, end = entry["data_offsets"]
        arrays[key] = mapped[8 + length + start : 8 + length + end].view(dtype).reshape(entry["shape"])
    return arrays, metadata


def _check_arrays(path: Path, arrays: Mapping[str, Array], size_bytes: int) -> None:
    """Only floats, and no more of them than there are bytes: no view may promise more."""
    total = 0
    for key, array in arrays.items():
        total += array.nbytes
        if array.dtype not in FLOATS:
            raise no_weight(path, key, f"of type {type_name(array.dtype)}")
        if total > 2 * size_bytes:
            raise no_weight(path, key, f"a view of shape {list(array.shape)} over fewer numbers than that")


def no_weight(path: Path, key: str, kind: str) -> CheckpointError:
    mend = "use the model as published, in bfloat16, float16 or float32 (quantising is a flag of the server)"
    return unusable(path, f"the tensor {printable(key, 120)} is {kind}; weights must be dense floats", mend)


def _read_folder(folder: Path) -> Contents:
    """A Hugging Face folder (config.json, shards with an index or one file), or a folder with one model file in it."""
    tensors: dict[str, Array] = {}
    metadata: Mapping[str, str] = {}
    size_bytes = 0
    for path in _shards(folder):
        part = _read_file(path, _status(path))
        twice = tensors.keys() & part.tensors.keys()
        if twice:
            raise unusable(path, f"the tensor {min(twice)} is in another shard too", AGAIN)
        tensors.update(part.tensors)
        metadata = part.metadata
        size_bytes += part.size_bytes
    config = _read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    return Contents(tensors=tensors, container="folder", size_bytes=size_bytes, metadata=metadata, config=config)


def _shards(folder: Path) -> Iterable[Path]:
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise _unreachable(folder, error) from None
    for index, whole in zip(_INDEXES, _WHOLE, strict=True):
        if whole in names:
            return [folder / whole]
        if index in names:
            return _indexed(folder, folder / index)
    models = [name for name in names if name.endswith(_MODEL_SUFFIXES)]
    if len(models) == 1:
        return [folder / models[0]]
    if models:
        raise unusable(folder, f"it has several models: {', '.join(models[:8])}", "give the path of one of these files")
    mend = "give a .pth or .safetensors file, or a folder with model.safetensors or pytorch_model.bin in it"
    raise unusable(folder, "the folder has no weights in it", mend)


def _indexed(folder: Path, index: Path) -> list[Path]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise unusable(index, "it has no weight_map", AGAIN)
    for name in weight_map.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise unusable(index, f"the shard name {name!r} is not a plain file name", "use the folder as published")
    shards = set(weight_map.values())
    for name in sorted(shards):
        if not (folder / name).exists():
            raise unusable(
                folder / name, f"this shard is missing, but {index.name} names it", "download the missing shard"
            )
    return [folder / name for name in sorted(shards)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _JSON_LIMIT:
            raise unusable(path, "it is far too large for what it should be", AGAIN)
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise _unreachable(path, error) from None
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"it is not valid JSON ({error})", AGAIN) from None
    if not isinstance(value, dict):
        raise unusable(path, "it is JSON, but not an object", AGAIN)
    return value
