"""Named tensors out of files of unknown origin, without running any of their code.

Three containers: a `.pth` (a zip archive made by `torch.save`), a `.safetensors`, a folder of shards with an index.
What a file is, is told by its first bytes, never by its name. Tensors stay mapped to the file until someone reads
them, so opening costs neither time nor memory, whatever a header claims.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import CheckpointError

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""Types weights may be stored in."""

PACKED_FORMAT = "rookery-packed"
"""What the metadata of a file calls its format that `packed_file` wrote."""

AGAIN = "download or copy the file again, and compare its size or checksum with its source"
CONVERT = "use the .pth, .safetensors or Hugging Face folder the model was published as"
_PICKLE_LIMIT = 64 * 2**20
_JSON_LIMIT = 64 * 2**20
_MODEL_SUFFIXES = (".pth", ".pt", ".safetensors")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE = ("model.safetensors", "pytorch_model.bin")

# Whatever a reader may raise over bytes that someone prepared; listed, so that a mistake of ours is not among them.
_READ_ERRORS = (
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

    tensors: dict[str, Tensor]
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


def open_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]] | None:
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
        container, tensors = "pth", _read_pth(path)
    elif head[8:9] == b"{":
        container = "safetensors"
        tensors, metadata = _read_safetensors(path)
        if metadata.get("format") == PACKED_FORMAT:
            raise unusable(path, "its matrices are packed for serving already", "use the checkpoint it was made from")
    else:
        raise unusable(path, *_foreign(head))
    _check_tensors(path, tensors, status.st_size)
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


def _read_pth(path: Path) -> dict[str, Tensor]:
    """A zip archive of `torch.save`, by PyTorch's restricted unpickler alone: never by the full one."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _READ_ERRORS:
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
    except _READ_ERRORS as error:
        raise _unpickling_failed(path, error) from None
    return _named_tensors(path, loaded)


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}
    except _READ_ERRORS as error:
        reason = str(error).strip().partition("\n")[0]
        raise unusable(path, f"its safetensors header does not fit the file ({reason})", AGAIN) from None


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], size_bytes: int) -> None:
    """Only dense floats that lie wholly in the file: no view may promise more numbers than there are bytes."""
    total = 0
    for key, tensor in tensors.items():
        kind = _unwanted(tensor)
        if kind is None:
            total += tensor.nbytes
            if tensor.nbytes > tensor.untyped_storage().nbytes() or total > 2 * size_bytes:
                kind = f"a view of shape {list(tensor.shape)} over fewer numbers than that"
        if kind is not None:
            mend = "use the model as published, in bfloat16, float16 or float32 (quantising is a flag of the server)"
            raise unusable(path, f"the tensor {printable(key, 120)} is {kind}; weights must be dense floats", mend)


def _unwanted(tensor: Tensor) -> str | None:
    if tensor.is_quantized:
        return "quantised"
    if tensor.layout != torch.strided:
        return "sparse"
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return f"a {type(tensor).__name__} on {tensor.device}"
    if tensor.dtype not in FLOATS:
        return f"of type {str(tensor.dtype).removeprefix('torch.')}"
    return None


def _read_folder(folder: Path) -> Contents:
    """A Hugging Face folder (config.json, shards with an index or one file), or a folder with one model file in it."""
    tensors: dict[str, Tensor] = {}
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
