"""Files that would run code."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .makers import Faults, good, pth, raw

BAD = Faults()
bad = BAD.add

MARKER = "the-code-ran"
"""A file that they would make in the working folder."""


class Payload:
    """Pickles to a call of os.system."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {MARKER}",)


@bad
def pickle_bomb_raw(folder: Path) -> Path:
    return raw(folder, pickle.dumps(Payload()))


@bad
def pickle_bomb_in_zip(folder: Path) -> Path:
    return pth(folder, Payload())


@bad
def pickle_bomb_among_good_tensors(folder: Path) -> Path:
    return pth(folder, good() | {"blocks.0.att.x_r": Payload()})


@bad
def pickle_bomb_legacy_stream(folder: Path) -> Path:
    torch.save(good() | {"trojan": Payload()}, folder / "model.pth", _use_new_zipfile_serialization=False)
    return folder / "model.pth"


@bad
def pickle_bomb_legacy_tar(folder: Path) -> Path:
    with tarfile.open(folder / "model.pth", "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(Payload())
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, BytesIO(data))
    return folder / "model.pth"


@bad
def pickle_bomb_by_eval(folder: Path) -> Path:
    class Evaluates:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return eval, (f"open({MARKER!r}, 'w')",)

    return pth(folder, good() | {"emb.weight": Evaluates()})
