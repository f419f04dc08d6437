"""Official checkpoints: sizes from keys alone, exact round trips, fingerprints, tuned states, reports."""

from __future__ import annotations

import json
import math
import os
import random
import resource
from itertools import product
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rookery.kernels.rows import Rows
from rookery.server.errors import CheckpointError, StartupError
from rookery.server.model.convert import convert
from rookery.server.model.inspect import describe, render
from rookery.server.model.load import load_model, resolve_device
from rookery.server.model.official import Layout
from rookery.server.model.shape import ModelShape, Version
from rookery.server.model.synthetic import Plan
from rookery.server.model.tuned_state import read_tuned_state
from rookery.server.model.weights import read_checkpoint

from .arrays import equal, in_tensors, tensor
from .checkpoints import UNUSUAL, official_tensors, save_checkpoint

FIXTURES: dict[str, tuple[Version, int, int, int, int]] = {
    "tiny-rwkv4-660K": ("4", 4, 128, 256, 0),
    "tiny-rwkv5.2-730K": ("5.2", 12, 64, 256, 8),
    "tiny-rwkv6-3m": ("6", 12, 128, 448, 16),
    "tiny-rwkv7-834K": ("7", 12, 64, 256, 1),
    "micro-rwkv4": ("4", 3, 128, 512, 0),
    "micro-rwkv5.1": ("5.1", 3, 128, 448, 2),
    "micro-rwkv6": ("6", 3, 128, 448, 2),
    "micro-rwkv7": ("7", 3, 128, 512, 2),
}
"""Version, layers, width, ffn width, heads."""


@pytest.mark.parametrize("name", FIXTURES)
def test_fixtures_have_their_shapes(name: str, fixtures: Path, tmp_path: Path) -> None:
    version, layers, width, ffn_width, heads = FIXTURES[name]
    checkpoint = read_checkpoint(fixtures / f"{name}.pth")
    assert checkpoint.shape == ModelShape(
        version=version,
        vocab_size=256,
        layers=layers,
        width=width,
        mix_width=width,
        ffn_width=ffn_width,
        heads=heads,
        head_size=width // heads if heads else 0,
    )
    model, info = load_model(fixtures / f"{name}.pth", dtype="float32", device="cpu")
    assert info.version == version and info.fingerprint == checkpoint.fingerprint
    assert info.state_bytes == model.new_pool(1).state_bytes
    assert convert(fixtures / f"{name}.pth", tmp_path / "x.safetensors") == checkpoint.fingerprint


@pytest.mark.parametrize("version", UNUSUAL)
def test_neither_order_nor_name_nor_container_matters(version: Version, tmp_path: Path) -> None:
    plan = UNUSUAL[version]
    expected = read_checkpoint(save_checkpoint(tmp_path / "a.pth", plan))
    assert (expected.shape.version, expected.shape.head_size) == (version, 0 if version == "4" else plan.head_size)
    items = list(official_tensors(plan).items())
    random.Random(0).shuffle(items)
    torch.save(dict(items), tmp_path / "weights")
    save_file(dict(items), tmp_path / "RWKV-x051a-not-what-it-says.pth")
    for other in ("weights", "RWKV-x051a-not-what-it-says.pth"):
        checkpoint = read_checkpoint(tmp_path / other)
        assert checkpoint.shape == expected.shape and checkpoint.fingerprint == expected.fingerprint
        assert all(equal(checkpoint.tensors[key], tensor) for key, tensor in expected.tensors.items())


@pytest.mark.parametrize(("version", "head_size"), [*product(UNUSUAL, [12, 4]), ("5.1", 1), ("6", 1), ("7", 1)])
def test_one_layer_and_one_head_are_models_too(version: Version, head_size: int, tmp_path: Path) -> None:
    ranks = {"6": (1, 1), "7": (1, 1, 1, 1)}.get(version, ())
    plan = Plan(version=version, layers=1, width=12, ffn_width=5, vocab_size=3, head_size=head_size, ranks=ranks)
    shape = read_checkpoint(save_checkpoint(tmp_path / "m.pth", plan)).shape
    assert (shape.version, shape.layers, shape.width, shape.ffn_width, shape.vocab_size) == (version, 1, 12, 5, 3)
    assert shape.head_size == (0 if version == "4" else head_size)


def test_vectors_come_with_one_axis(tmp_path: Path) -> None:
    checkpoint = read_checkpoint(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"]))
    assert checkpoint.tensors["blocks.1.att.x_r"].shape == (60,)
    assert checkpoint.tensors["blocks.1.att.r_k"].shape == (3, 20)


def test_unused_tensors_of_layer_0_change_nothing(tmp_path: Path) -> None:
    plan = UNUSUAL["7"]
    expected = read_checkpoint(save_checkpoint(tmp_path / "m.pth", plan))
    unused = {f"blocks.0.att.{name}": torch.full((1, 1, 60), float("nan")) for name in ("v0", "v1", "v2")}
    torch.save(official_tensors(plan) | unused, tmp_path / "more.pth")
    got = read_checkpoint(tmp_path / "more.pth")
    assert got.tensors.keys() == expected.tensors.keys() and got.fingerprint == expected.fingerprint


def test_mixed_types_are_kept(tmp_path: Path) -> None:
    tensors = official_tensors(UNUSUAL["6"])
    types = {key: random.Random(key).choice([torch.float32, torch.bfloat16, torch.float16]) for key in tensors}
    torch.save({key: tensor.to(types[key]) for key, tensor in tensors.items()}, tmp_path / "mixed.pth")
    got = read_checkpoint(tmp_path / "mixed.pth")
    assert {key: tensor(array).dtype for key, array in got.tensors.items()} == types


def test_the_fingerprint_sees_one_bit_of_any_tensor(tmp_path: Path) -> None:
    plan = UNUSUAL["5.1"]
    tensors = official_tensors(plan)
    seen = {read_checkpoint(save_checkpoint(tmp_path / "m.pth", plan)).fingerprint}
    for key in random.Random(1).sample(sorted(tensors), 12):
        changed = tensors[key].clone()
        changed.view(-1).view(torch.int32)[-1] ^= 1
        torch.save(tensors | {key: changed}, tmp_path / "m.pth")
        seen.add(read_checkpoint(tmp_path / "m.pth").fingerprint)
    assert len(seen) == 13


def test_progress_grows_to_one(tmp_path: Path) -> None:
    shares: list[float] = []
    load_model(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"]), dtype="float32", device="cpu", progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0 and len(shares) > 10


# Writing


@pytest.mark.parametrize("version", UNUSUAL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_converted_file_reads_back_bit_for_bit(version: Version, dtype: torch.dtype, tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m.pth", UNUSUAL[version], dtype=dtype)
    digest = convert(source, tmp_path / "m.safetensors")
    old, new = read_checkpoint(source), read_checkpoint(tmp_path / "m.safetensors")
    assert old.fingerprint == new.fingerprint == digest
    assert old.tensors.keys() == new.tensors.keys()
    assert all(equal(new.tensors[key], tensor) for key, tensor in old.tensors.items())
    assert sorted(os.listdir(tmp_path)) == ["m.pth", "m.safetensors"], "no temporary file is left"


def test_converting_to_another_type_rounds_once(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"])
    digest = convert(source, tmp_path / "m.safetensors", dtype="bfloat16")
    new = read_checkpoint(tmp_path / "m.safetensors")
    assert new.fingerprint == digest != read_checkpoint(source).fingerprint
    for key, array in read_checkpoint(source).tensors.items():
        assert equal(new.tensors[key], tensor(array).bfloat16())


def test_converting_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    tensors = official_tensors(UNUSUAL["4"])
    torch.save(tensors | {"emb.weight": tensors["emb.weight"] * 1e6}, tmp_path / "m.pth")
    with pytest.raises(StartupError, match=r"emb\.weight"):
        convert(tmp_path / "m.pth", tmp_path / "m.safetensors", dtype="float16")


def test_converting_overwrites_only_by_force(tmp_path: Path) -> None:
    source, target = save_checkpoint(tmp_path / "m.pth", UNUSUAL["4"]), tmp_path / "m.safetensors"
    target.write_text("precious")
    with pytest.raises(StartupError, match="exists already"):
        convert(source, target)
    assert target.read_text() == "precious"
    convert(source, target, force=True)
    convert(target, target, force=True)  # onto itself, while its pages are mapped
    assert read_checkpoint(target).fingerprint == read_checkpoint(source).fingerprint


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = save_checkpoint(tmp_path / "m.pth", UNUSUAL["4"]), tmp_path / "m.safetensors"
    target.write_text("precious")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartupError, match="No space left"):
        convert(source, target, force=True)
    assert target.read_text() == "precious" and sorted(os.listdir(tmp_path)) == ["m.pth", "m.safetensors"]


def test_bit_rot_in_a_converted_file_is_found(tmp_path: Path) -> None:
    target = tmp_path / "m.safetensors"
    convert(save_checkpoint(tmp_path / "m.pth", UNUSUAL["4"]), target)
    content = bytearray(target.read_bytes())
    content[-5] ^= 1
    target.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        read_checkpoint(target)


# Tuned states


@pytest.mark.parametrize("name", ["micro-rwkv6", "micro-rwkv7"])
def test_tuned_states_load_from_their_files(name: str, fixtures: Path) -> None:
    stored = torch.load(fixtures / f"{name}.time_state.pth", weights_only=True)
    model, info = load_model(
        fixtures / f"{name}.pth",
        dtype="float32",
        device="cpu",
        states={"pirate": fixtures / f"{name}.time_state.pth"},
    )
    state = model.initial_state("pirate")
    assert info.tuned_states == ("pirate",) and model.initial_state(None) is None
    assert state is not None and not state.shift.any()
    for layer, wkv in enumerate(state.wkv):  # [H, value, key] in the file as in our pool
        assert equal(wkv, stored[f"blocks.{layer}.att.time_state"].float())
    with pytest.raises(CheckpointError, match="has 3 layers, the model has 12"):
        read_tuned_state(fixtures / f"{name}.time_state.pth", read_checkpoint(fixtures / "tiny-rwkv7-834K.pth").shape)


def test_a_state_inside_the_model_file_is_where_sessions_start(tmp_path: Path) -> None:
    plan = UNUSUAL["7"]
    state = {f"blocks.{layer}.att.time_state": torch.randn(3, 20, 20).bfloat16() for layer in range(plan.layers)}
    torch.save(official_tensors(plan) | state, tmp_path / "m.pth")
    checkpoint = read_checkpoint(tmp_path / "m.pth")
    assert checkpoint.tuned_state is not None
    assert equal(checkpoint.tuned_state.wkv[1], state["blocks.1.att.time_state"].float())
    assert checkpoint.fingerprint != read_checkpoint(save_checkpoint(tmp_path / "plain.pth", plan)).fingerprint
    assert convert(tmp_path / "m.pth", tmp_path / "m.safetensors") == checkpoint.fingerprint
    again = read_checkpoint(tmp_path / "m.safetensors").tuned_state
    assert again is not None and equal(again.wkv, checkpoint.tuned_state.wkv)


@pytest.mark.parametrize("fault", ["a layer short", "not finite", "misshapen", "more than a state", "safetensors"])
def test_wrong_tuned_states_are_refused(fault: str, tmp_path: Path) -> None:
    shape = read_checkpoint(save_checkpoint(tmp_path / "m.pth", UNUSUAL["6"])).shape
    state = {f"blocks.{layer}.att.time_state": torch.zeros(3, 16, 16) for layer in range(3)}
    path = tmp_path / "state.pth"
    if fault == "a layer short":
        del state["blocks.1.att.time_state"]
    elif fault == "not finite":
        state["blocks.2.att.time_state"][0, 0, 0] = float("inf")
    elif fault == "misshapen":
        state["blocks.2.att.time_state"] = torch.zeros(3, 16, 8)
    elif fault == "more than a state":
        state["blocks.0.att.time_offset"] = torch.zeros(48)
    if fault == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"state\.pth"):
        read_tuned_state(path, shape)


# Loading and describing


def test_auto_is_float32_on_a_cpu(tmp_path: Path) -> None:
    _, info = load_model(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"], dtype=torch.bfloat16), device="cpu")
    assert (info.dtype, info.device) == ("float32", "cpu")
    assert info.weight_bytes == 4 * info.parameters


def test_a_loaded_model_runs(tmp_path: Path) -> None:
    for version, plan in UNUSUAL.items():
        model, info = load_model(save_checkpoint(tmp_path / f"{version}.pth", plan), device="cpu")
        model = in_tensors(model)
        hidden = model.forward(torch.tensor([1, 2, 3]), Rows.pack([0], [3]), model.new_pool(1))
        assert model.logits(hidden).shape == (3, info.vocab_size)


def test_a_gpu_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(StartupError, match="no CUDA device") as caught:
        resolve_device("cuda")
    assert caught.value.exit_code == 2
    assert resolve_device("auto") == "cpu"


def test_describe_reads_no_weights(tmp_path: Path) -> None:
    """A sparse file of the size of a 0.4B model, none of whose pages exists: sizes as the specification's table has."""
    shape = ModelShape(
        version="7",
        vocab_size=65536,
        layers=24,
        width=1024,
        mix_width=1024,
        ffn_width=4096,
        heads=16,
        head_size=64,
    )
    entries, offset = {}, 0
    for key, sizes in Layout(shape, {"w": 64, "a": 64, "v": 32, "g": 128}).tensors():
        size_bytes = 2 * math.prod(sizes)
        entries[key] = {"dtype": "BF16", "shape": sizes, "data_offsets": [offset, offset + size_bytes]}
        offset += size_bytes
    header = json.dumps(entries).encode()
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + offset)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = describe(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "memory, in KiB"
    assert (report.version, report.layers, report.width, report.heads) == ("7", 24, 1024, 16)
    assert report.parameters == 450_767_872
    assert report.state_bytes["float32"] == 6_488_064 and report.state_bytes["bfloat16"] == 6_389_760
    assert report.weight_bytes["bfloat16"] == 901_535_744


def test_a_report_is_plain_data_and_a_table(tmp_path: Path) -> None:
    report = describe(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"], dtype=torch.bfloat16))
    data = json.loads(json.dumps(report.as_dict()))
    assert data["version"] == "7" and data["ranks"] == {"w": 7, "a": 9, "g": 13, "v": 5}
    assert data["stored_dtypes"] == {"bfloat16": data["parameters"]}
    assert data["state_bytes"]["float32"] == 4 * 3 * (2 * 60 + 60 * 20)
    sizes = data["weight_bytes"]
    assert sizes["float32"] == 2 * sizes["bfloat16"] > sizes["int8"] > sizes["int4"] > 0
    assert render(report).row_count == 13
