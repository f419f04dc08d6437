"""Folders and names that lead to no model, or to more than one."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from ..checkpoints import official_tensors
from .makers import KEY, PLAN, Faults, good, pth, raw

BAD = Faults()
bad = BAD.add


@bad
def folder_without_weights(folder: Path) -> Path:
    (folder / "config.json").write_text("{}")
    return folder


@bad
def folder_with_two_models(folder: Path) -> Path:
    pth(folder, good(), "one.pth")
    pth(folder, good(), "two.pth")
    return folder


def sharded(folder: Path, index: object) -> Path:
    save_file({key: t.contiguous() for key, t in official_tensors(PLAN).items()}, folder / "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


INDEXES: dict[str, object] = {
    "naming_a_missing_shard": {"weight_map": {"emb.weight": "a.safetensors", KEY: "b.safetensors"}},
    "leading_out_of_the_folder": {"weight_map": {"emb.weight": "../../etc/passwd"}},
    "naming_no_strings": {"weight_map": {"emb.weight": ["a.safetensors"]}},
    "without_a_map": {"metadata": {}},
    "that_is_a_list": ["a.safetensors"],
}
for name, index in INDEXES.items():
    BAD[f"index_{name}"] = partial(sharded, index=index)


@bad
def index_that_is_no_json(folder: Path) -> Path:
    sharded(folder, {})
    (folder / "model.safetensors.index.json").write_text("{" * 10_000)
    return folder


@bad
def shards_with_the_same_tensor(folder: Path) -> Path:
    sharded(folder, {"weight_map": {"emb.weight": "a.safetensors", "head.weight": "b.safetensors"}})
    save_file({"emb.weight": torch.ones(19, 16)}, folder / "b.safetensors")
    return folder


@bad
def config_with_another_epsilon(folder: Path) -> Path:
    pth(folder, good(), "pytorch_model.bin")
    (folder / "config.json").write_text('{"norm_eps": 1e-3}')
    return folder


@bad
def no_such_file(folder: Path) -> Path:
    return folder / "nothing" / "here.pth"


@bad
def file_taken_for_a_folder(folder: Path) -> Path:
    return raw(folder, b"text", "file") / "model.pth"


@bad
def circle_of_links(folder: Path) -> Path:
    (folder / "a.pth").symlink_to(folder / "b.pth")
    (folder / "b.pth").symlink_to(folder / "a.pth")
    return folder / "a.pth"


@bad
def named_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "model.pth")
    return folder / "model.pth"


@bad
def name_with_a_nul(folder: Path) -> Path:
    return folder / "model\0.pth"


@bad
def name_without_end(folder: Path) -> Path:
    return folder / ("m" * 5000)
