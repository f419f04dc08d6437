"""What the makers of bad files share: a good model, ways to write it, and the table of faults."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from rookery.server.model.synthetic import Plan

from ..checkpoints import official_tensors

PLAN = Plan(version="7", layers=2, width=16, ffn_width=24, vocab_size=19, head_size=8, ranks=(3, 4, 2, 5))
KEY = "blocks.1.ffn.key.weight"
"""Of the tensor that is spoiled where one is enough."""

Maker = Callable[[Path], Path]
"""Makes one bad file or folder in a folder; its path."""


class Faults(dict[str, Maker]):
    """Makers by the name of the fault."""

    def add(self, make: Maker) -> Maker:
        """Take a function under its own name."""
        self[make.__name__] = make
        return make


def good() -> dict[str, Any]:
    return dict(official_tensors(PLAN))


def pth(folder: Path, contents: object, name: str = "model.pth") -> Path:
    torch.save(contents, folder / name)
    return folder / name


def raw(folder: Path, data: bytes, name: str = "model.pth") -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def changed(folder: Path, key: str, change: Callable[[Tensor], Tensor]) -> Path:
    return pth(folder, good() | {key: change(good()[key])})


def writes(data: bytes, name: str = "model.pth") -> Maker:
    return lambda folder: raw(folder, data, name)


def pth_bytes() -> bytes:
    buffer = BytesIO()
    torch.save(good(), buffer)
    return buffer.getvalue()


def safetensors_bytes() -> bytes:
    return save({key: tensor.contiguous() for key, tensor in official_tensors(PLAN).items()})
