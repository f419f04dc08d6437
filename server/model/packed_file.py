"""Models with their matrices packed for the native library already, in a safetensors file that is used as it lies.

The tensors are those of `kept.matrices`, their scales beside them under the name with `.scale`, and everything else in
float32 under its official name; all but the smallest begin at a multiple of 64 bytes. The metadata says how the
matrices are kept, which layout they have (PACKING), the official shapes, the fingerprint of the checkpoint they were
made from, and a checksum over the whole file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from zlib import crc32

import numpy as np

from rookery.kernels.cpu.arrays import BYTE, F32, LINE_BYTES, STORED, Array
from rookery.kernels.cpu.library import Format
from rookery.kernels.cpu.packed import PACKING, Numbers, Packed, layout, pack

from .checkpoint import BLANK, Checkpoint
from .files import AGAIN, PACKED_FORMAT, open_safetensors, printable, unusable
from .kept import FORMATS, TABLE, as_table, as_vector, matrices
from .official import LayoutError, fit, read_layout
from .tuned_state import take_tuned_state

SCALE = ".scale"
_PIECE_BYTES, _READ_BYTES = 2**24, 2**20
_WORKERS = 8
_NO_CHECKSUM = "0" * 64
_NAMES = {dtype: name for name, dtype in STORED.items()}
_CONVERT = "convert the checkpoint it was made from again"


def kept_fingerprint(source: str, kept: str) -> str:
    """What ties states to these weights: the checkpoint's own where only its type changes, else one of the rounding."""
    if kept not in ("int8", "int4"):
        return source
    return hashlib.sha256(f"{source} {kept} {PACKING}".encode()).hexdigest()


def read_packed(path: Path, progress: Callable[[float], None] | None = None) -> Checkpoint | None:
    """The model in a file that `write_packed` wrote, checked and mapped: pages are read when they are used, and shared.

    Args:
        progress: called with the share that is checked, growing to 1.

    Returns:
        None where it is something else, which `read_checkpoint` will tell.

    Raises:
        CheckpointError: damaged, or written for kernels of another version.
    """
    checkpoint = open_packed(path)
    if checkpoint is not None:
        written = checkpoint.checksum
        if _checksum(path, written, progress) != written:
            raise unusable(path, "its contents are not those it was written with: the file is damaged", AGAIN)
    return checkpoint


def open_packed(path: Path) -> Checkpoint | None:
    """As `read_packed`, but the numbers are not looked at."""
    opened = open_safetensors(path)
    if opened is None or opened[1].get("format") != PACKED_FORMAT:
        return None
    tensors, metadata = opened
    _check_version(path, metadata)
    try:
        return _checkpoint(path, tensors, metadata)
    except LayoutError as error:
        raise unusable(path, str(error), _CONVERT) from None
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise unusable(path, f"its metadata is not what `convert` writes ({error})", _CONVERT) from None


def _check_version(path: Path, metadata: Mapping[str, str]) -> None:
    version, kept = metadata.get("packing", ""), metadata.get("kept", "")
    if version != str(PACKING):
        later = version.isdecimal() and int(version) > PACKING
        which = "a later" if later else "another"
        what = f"it is packed for {which} version of Rookery (packing {version!r}, here {PACKING})"
        raise unusable(path, what, f"install that version, or {_CONVERT}" if later else _CONVERT)
    if kept not in FORMATS:
        raise unusable(path, f"its matrices are kept as {kept!r}, which is unknown", _CONVERT)


def _checkpoint(path: Path, tensors: dict[str, Array], metadata: Mapping[str, str]) -> Checkpoint:
    shapes: dict[str, list[int]] = json.loads(metadata["shapes"])
    official = {key: np.empty(shape, BLANK) for key, shape in shapes.items()}
    sizes = read_layout(official)
    tuned_state, rest = take_tuned_state(tensors, sizes.shape)
    kept = FORMATS[metadata["kept"]]
    fitted = fit(official, sizes)
    fitted |= {key: rest.get(key, tensor) for key, tensor in fitted.items() if not matrices(key, tensor, kept)}
    planned = _plan(fitted, kept)
    for name in planned.keys() | rest.keys():
        found = (rest[name].shape, rest[name].dtype) if name in rest else None
        if found != planned.get(name):
            what = f"the tensor {printable(name, 120)} is {found}, and should be {planned.get(name)}"
            raise unusable(path, what, _CONVERT)
    packed = {}
    for key, tensor in fitted.items():
        for name, (weight, format) in matrices(key, tensor, kept).items():
            outputs, inputs = weight.shape
            stride = layout(outputs, inputs, format)[0]
            packed[name] = Packed(rest[name], rest.get(name + SCALE), outputs, inputs, stride, format)
    return Checkpoint(
        path=path,
        tensors=fitted,
        shape=sizes.shape,
        tuned_state=tuned_state,
        fingerprint=metadata["fingerprint"],
        checksum=metadata["checksum"],
        kept=metadata["kept"],
        packed=packed,
    )


def _plan(tensors: Mapping[str, Array], kept: Format) -> dict[str, Numbers]:
    """Shape and type of every tensor in the file, from those of the checkpoint; its state not among them."""
    plan: dict[str, Numbers] = {}
    for key, tensor in tensors.items():
        kinds = matrices(key, tensor, kept)
        for name, (weight, format) in kinds.items():
            outputs, inputs = weight.shape
            _, plan[name], scale = layout(outputs, inputs, format)
            if scale is not None:
                plan[name + SCALE] = scale
        if not kinds:
            table = key == "emb.weight" and tensor.dtype in TABLE
            plan[key] = tensor.shape, tensor.dtype if table else F32
    return plan


def packed_bytes(tensors: Mapping[str, Array], kept: str) -> int:
    """What a checkpoint's tensors take when they are packed."""
    return sum(map(_size, _plan(tensors, FORMATS[kept]).values()))


def _size(numbers: Numbers) -> int:
    shape, dtype = numbers
    return math.prod(shape) * dtype.itemsize


def write_packed(path: Path, checkpoint: Checkpoint, kept: str, source: str) -> None:
    """Write a checkpoint's tensors packed, one at a time: it never needs memory for more than one.

    Args:
        path: overwritten.
        kept: a key of FORMATS.
        source: what the checkpoint is called, for the metadata.

    Raises:
        OSError: it cannot be written.
    """
    states = {}
    if checkpoint.tuned_state is not None:
        states = {f"blocks.{i}.att.time_state": wkv for i, wkv in enumerate(checkpoint.tuned_state.wkv)}
    plan = _plan(checkpoint.tensors, FORMATS[kept]) | {
        key: (tuple(wkv.shape), wkv.dtype) for key, wkv in states.items()
    }
    metadata = {
        "format": PACKED_FORMAT,
        "packing": str(PACKING),
        "kept": kept,
        "rwkv_version": checkpoint.shape.version,
        "source": source,
        "fingerprint": kept_fingerprint(checkpoint.fingerprint, kept),
        "shapes": json.dumps({key: list(tensor.shape) for key, tensor in checkpoint.tensors.items()}),
        "checksum": _NO_CHECKSUM,
    }
    header, places = _header(plan, metadata)
    with path.open("wb") as file:

        def put(name: str, tensor: Array) -> None:
            file.seek(places[name])
            file.write(tensor.ravel().view(BYTE).data)

        file.write(header)
        for key, tensor in checkpoint.tensors.items():
            kinds = matrices(key, tensor, FORMATS[kept])
            for name, kind in kinds.items():
                packed = pack(*kind)
                put(name, packed.data)
                if packed.scale is not None:
                    put(name + SCALE, packed.scale)
            if not kinds:
                put(key, as_table(tensor) if key == "emb.weight" else as_vector(tensor))
        for key, wkv in states.items():
            put(key, wkv)
        file.flush()
        file.seek(0)
        file.write(header.replace(_NO_CHECKSUM.encode(), _checksum(path, _NO_CHECKSUM, None).encode()))


def _header(plan: Mapping[str, Numbers], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The header as safetensors has it, and where each tensor begins in the file; the odd-sized come last, so that all
    others lie at whole lines."""
    sizes = {name: _size(numbers) for name, numbers in plan.items()}
    order = sorted(plan, key=lambda name: (sizes[name] % LINE_BYTES != 0, -plan[name][1].itemsize))
    entries: dict[str, object] = {"__metadata__": metadata}
    starts, end = {}, 0
    for name in order:
        starts[name] = end
        end += sizes[name]
        entries[name] = {"dtype": _NAMES[plan[name][1]], "shape": plan[name][0], "data_offsets": [starts[name], end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE_BYTES)
    begin = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {name: begin + start for name, start in starts.items()}


def _checksum(path: Path, written: str, progress: Callable[[float], None] | None) -> str:
    """CRC-32 of pieces of the file, taken side by side, then a digest of these and of the header; its own place in it
    counts as zeros. For damage, not for forgery: whoever can write the file can write the checksum.

    It is read, not mapped: what is only checked does not become resident.
    """
    with path.open("rb") as file:
        length = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = file.read(length).replace(written.encode(), _NO_CHECKSUM.encode(), 1)
        size = os.fstat(file.fileno()).st_size

        def of_piece(start: int) -> int:
            checksum, buffer = 0, memoryview(bytearray(_READ_BYTES))
            end = min(start + _PIECE_BYTES, size)
            while start < end:
                count = os.preadv(file.fileno(), [buffer[: end - start]], start)
                if not count:
                    break  # cut off meanwhile
                checksum = crc32(buffer[:count], checksum)
                start += count
            return checksum

        whole = hashlib.sha256(header)
        pieces = range(length, size, _PIECE_BYTES)
        with ThreadPoolExecutor(min(_WORKERS, os.cpu_count() or 1)) as pool:
            for done, part in enumerate(pool.map(of_piece, pieces), 1):
                whole.update(part.to_bytes(4, "little"))
                if progress is not None:
                    progress(done / len(pieces))
    return whole.hexdigest()
