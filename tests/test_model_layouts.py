"""Other namings of the same weights give the same tensors, bit for bit: each is made from a random official model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rookery.server.errors import CheckpointError
from rookery.server.model.checkpoint import Checkpoint
from rookery.server.model.inspect import describe
from rookery.server.model.shape import Version
from rookery.server.model.weights import read_checkpoint

from .arrays import equal
from .checkpoints import UNUSUAL, official_tensors, save_checkpoint

Tensors = dict[str, Tensor]


def rename(tensors: Tensors, *pairs: tuple[str, str]) -> Tensors:
    renamed = {}
    for key, tensor in tensors.items():
        for old, new in pairs:
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def to_transformers(tensors: Tensors) -> Tensors:
    renamed = rename(
        tensors,
        ("emb.", "embeddings."),
        (".ln0.", ".pre_ln."),
        (".att.", ".attention."),
        (".ffn.", ".feed_forward."),
        ("time_mix_k", "time_mix_key"),
        ("time_mix_v", "time_mix_value"),
        ("time_mix_r", "time_mix_receptance"),
        ("time_mix_g", "time_mix_gate"),
    )
    return {key if key == "head.weight" else f"rwkv.{key}": tensor for key, tensor in renamed.items()}


FLA = (
    ("emb.weight", "model.embeddings.weight"),
    ("ln_out.", "model.norm."),
    ("head.weight", "lm_head.weight"),
    ("blocks.", "model.layers."),
    (".ln0.", ".pre_norm."),
    (".ln1.", ".attn_norm."),
    (".ln2.", ".ffn_norm."),
    (".att.ln_x.", ".attn.g_norm."),
    (".att.", ".attn."),
)


def to_fla6(tensors: Tensors) -> Tensors:
    fla: Tensors = {}
    for key, tensor in rename(tensors, *FLA).items():
        block, _, name = key.partition(".attn.")
        if name == "time_maa_w1":  # [C, 5 * rank], groups w, k, v, r, g
            w, k, v, r, g = tensor.chunk(5, dim=1)
            fla[f"{block}.attn.x_proj.0.linear.weight"] = torch.cat([r, w, k, v, g], dim=1).T
        elif name == "time_maa_w2":  # [5, rank, C]
            w, k, v, r, g = tensor
            fla[f"{block}.attn.x_proj.2.weight"] = torch.cat([r, w, k, v, g], dim=0).T
        elif name in ("time_decay_w1", "time_decay_w2"):
            fla[f"{block}.attn.w_proj.linear.lora.{0 if name.endswith('1') else 2}.weight"] = tensor.T
        elif name == "time_decay":
            fla[f"{block}.attn.w_proj.linear.lora.2.bias"] = tensor.flatten()
        elif name == "time_faaaa":
            fla[f"{block}.attn.bonus"] = tensor
        elif name == "time_maa_x":
            fla[f"{block}.attn.x_proj.0.mu"] = tensor.flatten()
            mixes = [tensors[f"blocks.{block.rsplit('.', 1)[1]}.att.time_maa_{letter}"].flatten() for letter in "rwkvg"]
            fla[f"{block}.attn.x_bias"] = torch.stack(mixes)
        elif name.startswith("time_maa_"):
            continue
        elif name == "output.weight":
            fla[f"{block}.attn.o_proj.weight"] = tensor
        elif name in ("receptance.weight", "key.weight", "value.weight", "gate.weight"):
            fla[f"{block}.attn.{name[0]}_proj.linear.weight"] = tensor
        elif ".ffn.time_maa_" in key:
            linear = "key" if key.endswith("k") else "receptance"
            fla[f"{key.rpartition('.')[0]}.{linear}.mu"] = tensor.flatten()
        elif key.endswith((".ffn.key.weight", ".ffn.receptance.weight")):
            fla[key.replace(".weight", ".linear.weight")] = tensor
        else:
            fla[key] = tensor
    return fla


def to_fla7(tensors: Tensors, *, stacked: bool) -> Tensors:
    fla: Tensors = {}
    for key, tensor in rename(tensors, *FLA).items():
        block, _, name = key.partition(".attn.")
        if name[1:] in ("1", "2"):
            fla[f"{block}.attn.{name[0]}_lora.lora.{0 if name[1] == '1' else 2}.weight"] = tensor.T
        elif name[1:] == "0":
            fla[f"{block}.attn.{name[0]}_lora.lora.2.bias"] = tensor.flatten()
        elif name in ("receptance.weight", "key.weight", "value.weight"):
            fla[f"{block}.attn.{name[0]}_proj.weight"] = tensor
        elif name == "output.weight":
            fla[f"{block}.attn.o_proj.weight"] = tensor
        elif name.startswith("x_") and stacked:
            layer = block.rsplit(".", 1)[1]
            mixes = [tensors[f"blocks.{layer}.att.x_{letter}"].flatten() for letter in "rwkvag"]
            fla[f"{block}.attn.x_x"] = torch.stack(mixes)
        elif name in ("k_k", "k_a") or key.endswith("ffn.x_k"):
            fla[key] = tensor.flatten()
        else:
            fla[key] = tensor
    return fla


def to_web_rwkv(tensors: Tensors) -> Tensors:
    web: Tensors = {}
    for key, tensor in rename(tensors, ("time_faaaa", "time_first"), ("time_maa", "time_mix")).items():
        name = key.rpartition(".")[2]
        pair = name in ("time_mix_w1", "time_mix_w2", "time_decay_w1", "time_decay_w2", "time_state")
        pair = pair or (len(name) == 2 and name[0] in "wagv" and name[1] in "12")
        web[key] = tensor.transpose(-1, -2) if pair else tensor
    return web


def as_folder(folder: Path, tensors: Tensors, *, shards: int, kind: str) -> Path:
    """A Hugging Face folder in `shards` files with an index, or in one file."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "rwkv", "norm_eps": 1e-05}')
    stem, suffix = ("model", ".safetensors") if kind == "safetensors" else ("pytorch_model", ".bin")
    keys, weight_map = list(tensors), {}
    for shard in range(shards):
        name = f"{stem}{suffix}" if shards == 1 else f"{stem}-{shard + 1:05}-of-{shards:05}{suffix}"
        part = {key: tensors[key].contiguous() for key in keys[shard::shards]}
        weight_map.update(dict.fromkeys(part, name))
        if kind == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
    if shards > 1:
        (folder / f"{stem}{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def assert_same(got: Checkpoint, expected: Checkpoint) -> None:
    assert got.shape == expected.shape
    assert got.tensors.keys() == expected.tensors.keys()
    for key, tensor in expected.tensors.items():
        assert equal(got.tensors[key], tensor), key
    assert got.fingerprint == expected.fingerprint


NAMINGS = {
    "transformers 4": ("4", to_transformers, "transformers"),
    "remote code 5.2": ("5.2", to_transformers, "transformers"),
    "remote code 6": ("6", to_transformers, "transformers"),
    "fla 6": ("6", to_fla6, "fla rwkv6"),
    "fla 7": ("7", lambda tensors: to_fla7(tensors, stacked=False), "fla rwkv7"),
    "fla 7, older": ("7", lambda tensors: to_fla7(tensors, stacked=True), "fla rwkv7"),
}


@pytest.mark.parametrize("case", NAMINGS)
@pytest.mark.parametrize(("shards", "kind"), [(1, "safetensors"), (3, "safetensors"), (2, "bin")])
def test_hugging_face_folders_hold_the_official_weights(case: str, shards: int, kind: str, tmp_path: Path) -> None:
    version, to_naming, naming = NAMINGS[case]
    plan = UNUSUAL[version]  # type: ignore[index]
    expected = read_checkpoint(save_checkpoint(tmp_path / "official.pth", plan, dtype=torch.bfloat16))
    tensors = to_naming(official_tensors(plan, dtype=torch.bfloat16))
    folder = as_folder(tmp_path / "folder", tensors, shards=shards, kind=kind)
    assert_same(read_checkpoint(folder), expected)
    assert describe(folder).naming == naming


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_web_rwkv_files_hold_the_official_weights(version: Version, tmp_path: Path) -> None:
    plan = UNUSUAL[version]
    state = {
        f"blocks.{layer}.att.time_state": torch.randn(
            plan.width // plan.head_size, plan.head_size, plan.head_size
        ).half()
        for layer in range(plan.layers)
    }
    tensors = official_tensors(plan, dtype=torch.float16) | state
    torch.save(tensors, tmp_path / "official.pth")
    path = tmp_path / "web.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in to_web_rwkv(tensors).items()}, path)
    got, expected = read_checkpoint(path), read_checkpoint(tmp_path / "official.pth")
    assert_same(got, expected)
    assert got.tuned_state is not None and expected.tuned_state is not None
    assert equal(got.tuned_state.wkv, expected.tuned_state.wkv)
    assert describe(path).naming == "web-rwkv"


@pytest.mark.parametrize("prefix", ["module.", "_forward_module.", "model."])
def test_prefixes_of_trainers_are_taken_off(prefix: str, tmp_path: Path) -> None:
    expected = read_checkpoint(save_checkpoint(tmp_path / "official.pth", UNUSUAL["7"]))
    torch.save({f"{prefix}{k}": t for k, t in official_tensors(UNUSUAL["7"]).items()}, tmp_path / "trained.pth")
    assert_same(read_checkpoint(tmp_path / "trained.pth"), expected)


@pytest.mark.parametrize("nest", ["state_dict", "model", "module"])
def test_a_state_dict_is_found_beside_a_trainers_notes(nest: str, tmp_path: Path) -> None:
    expected = read_checkpoint(save_checkpoint(tmp_path / "official.pth", UNUSUAL["4"]))
    torch.save({"epoch": 3, nest: official_tensors(UNUSUAL["4"])}, tmp_path / "nested.pth")
    assert_same(read_checkpoint(tmp_path / "nested.pth"), expected)


def test_a_folder_with_one_model_file_is_that_model(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    path = save_checkpoint(tmp_path / "folder" / "anything.pth", UNUSUAL["6"])
    assert_same(read_checkpoint(tmp_path / "folder"), read_checkpoint(path))


@pytest.mark.parametrize(
    ("key", "shape"),
    [("attn.x_proj.0.linear.weight", (7, 48)), ("attn.x_proj.2.weight", (48, 7)), ("attn.x_bias", (4, 48))],
)
def test_a_fla_model_with_odd_groups_is_refused(key: str, shape: tuple[int, int], tmp_path: Path) -> None:
    tensors = to_fla6(official_tensors(UNUSUAL["6"])) | {f"model.layers.1.{key}": torch.ones(shape)}
    with pytest.raises(CheckpointError, match=r"model\.layers\.1"):
        read_checkpoint(as_folder(tmp_path / "folder", tensors, shards=1, kind="safetensors"))
