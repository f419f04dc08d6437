"""Files that are cut, foreign, or bombs: what is wrong with them shows before any tensor is read."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from .makers import Faults, pth_bytes, safetensors_bytes, writes

BAD = Faults()
bad = BAD.add

for part in (0.0, 0.02, 0.5, 0.999):
    whole = pth_bytes()
    BAD[f"pth_cut_at_{part}"] = writes(whole[: int(len(whole) * part)])
    whole = safetensors_bytes()
    BAD[f"safetensors_cut_at_{part}"] = writes(whole[: int(len(whole) * part)], "model.safetensors")

FOREIGN = {
    "gguf": b"GGUF\x03\0\0\0" + bytes(200),
    "rwkv_cpp": struct.pack("<6i", 0x67676D66, 101, 256, 64, 2, 0) + bytes(200),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(200),
    "text": b"RWKV is an RNN with transformer-level performance.\n" * 20,
    "html_page": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "git_lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "zero_bytes": bytes(4096),
    "one_byte": b"P",
    "zip_magic_only": b"PK\x03\x04" + bytes(100),
}
for name, content in FOREIGN.items():
    BAD[name] = writes(content)


@bad
def zip_of_something_else(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.pth", "w") as archive:
        archive.writestr("readme.txt", "not a model")
    return folder / "model.pth"


@bad
def another_architecture(folder: Path) -> Path:
    tensors = {
        "model.embed_tokens.weight": torch.ones(4, 4),
        "model.layers.0.self_attn.q_proj.weight": torch.ones(4, 4),
    }
    save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


@bad
def zip_bomb(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "model.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/data.pkl", bytes(80 * 2**20))
        archive.writestr("model/version", "3")
    return folder / "model.pth"


def header(fields: bytes | dict[str, Any], *, length: int | None = None, data: bytes = bytes(64)) -> bytes:
    """A safetensors file with this header; `length` is what it claims its header's length to be."""
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HEADERS = {
    "longer_than_the_file": header({"emb.weight": entry(0, 64, [4, 4])}, length=10**6),
    "of_an_exabyte": header({"emb.weight": entry(0, 64, [4, 4])}, length=2**60),
    "that_is_no_json": header(b"{]" + b"x" * 60),
    "nested_without_end": header(b'{"a":' * 100_000),
    "with_overlapping_offsets": header({"emb.weight": entry(0, 64, [4, 4]), "head.weight": entry(32, 64, [2, 4])}),
    "with_offsets_beyond_the_file": header({"emb.weight": entry(0, 640, [40, 4])}),
    "with_a_shape_beyond_its_bytes": header({"emb.weight": entry(0, 64, [2**40, 2**40])}),
    "with_a_negative_shape": header({"emb.weight": entry(0, 64, [-4, -4])}),
    "with_an_unknown_type": header({"emb.weight": entry(0, 64, [4, 4], "F1")}),
    "without_tensors": header({}, data=b""),
}
for name, content in HEADERS.items():
    BAD[f"safetensors_header_{name}"] = writes(content, "model.safetensors")
