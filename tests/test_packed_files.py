"""Files packed for the native library: the same bits as packing at load, mapped as they lie, refused when damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from rookery.kernels.cpu.library import library
from rookery.kernels.cpu.packed import PACKING
from rookery.kernels.rows import Rows
from rookery.server.errors import CheckpointError, StartupError
from rookery.server.model.base import Model
from rookery.server.model.checkpoint import BLANK, Checkpoint
from rookery.server.model.convert import convert
from rookery.server.model.inspect import describe, render
from rookery.server.model.kept import FORMATS
from rookery.server.model.load import load_model
from rookery.server.model.mapped import release
from rookery.server.model.packed_file import read_packed
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import Plan
from rookery.server.model.weights import read_checkpoint

from .arrays import equal, in_tensors
from .checkpoints import UNUSUAL, official_tensors, save_checkpoint

needs_library = pytest.mark.skipif(library() is None, reason="the native library is not built here")
LATER = PACKING + 1


def packed(folder: Path, kept: str = "int8", version: Version = "7") -> Path:
    target = folder / f"m-{kept}.safetensors"
    convert(save_checkpoint(folder / "m.pth", UNUSUAL[version]), target, packed=kept)
    return target


def read(path: Path) -> Checkpoint:
    """As loading does."""
    return read_packed(path) or read_checkpoint(path)


def logits(model: Model) -> Tensor:
    tokens = torch.arange(40)
    model = in_tensors(model)
    found: Tensor = model.logits(model.forward(tokens, Rows.pack([0], [40]), model.new_pool(1)))
    return found


@needs_library
@pytest.mark.parametrize("version", UNUSUAL)
@pytest.mark.parametrize("kept", FORMATS)
def test_it_computes_the_same_bits_as_packing_at_load(version: Version, kept: str, tmp_path: Path) -> None:
    path = packed(tmp_path, kept, version)
    dtype, quantize = ("auto", kept) if kept.startswith("int") else (kept, "none")
    model, info = load_model(path)
    at_load, info_at_load = load_model(tmp_path / "m.pth", device="cpu", dtype=dtype, quantize=quantize)
    assert torch.equal(logits(model), logits(at_load))
    assert (info.dtype, info.parameters, info.weight_bytes) == (
        kept,
        info_at_load.parameters,
        info_at_load.weight_bytes,
    )
    assert info.fingerprint == info_at_load.fingerprint, "a session goes on in either"


@needs_library
def test_states_belong_to_the_rounding_that_made_them(tmp_path: Path) -> None:
    source = save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"])
    kinds = ("none", "int8", "int4")
    assert len({load_model(source, device="cpu", quantize=kind)[1].fingerprint for kind in kinds}) == 3


@pytest.mark.parametrize("name", ["micro-rwkv6", "micro-rwkv7"])
def test_a_tuned_state_travels_along(name: str, fixtures: Path, tmp_path: Path) -> None:
    whole = torch.load(fixtures / f"{name}.pth", weights_only=True)
    whole |= torch.load(fixtures / f"{name}.time_state.pth", weights_only=True)
    torch.save(whole, tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "p.safetensors", packed="int8")
    old, new = read_checkpoint(tmp_path / "m.pth").tuned_state, read(tmp_path / "p.safetensors").tuned_state
    assert old is not None and new is not None and equal(old.wkv, new.wkv)


def test_its_matrices_lie_in_the_mapped_file_at_whole_lines(tmp_path: Path) -> None:
    path = packed(tmp_path)
    checkpoint = read(path)
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(path)):
            first, _, last = line.split()[0].partition("-")
            ranges.append(range(int(first, 16), int(last, 16)))
    for matrix in checkpoint.packed.values():
        assert matrix.data.ctypes.data % 64 == 0
        assert any(matrix.data.ctypes.data in mapped for mapped in ranges)
    assert any(checkpoint.tensors["emb.weight"].ctypes.data in mapped for mapped in ranges)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


@needs_library
def test_loading_it_copies_nothing(tmp_path: Path) -> None:
    plan = Plan(version="7", layers=1, width=256, vocab_size=65536, ffn_width=512, ranks=(16, 16, 16, 16))
    torch.save(official_tensors(plan, dtype=torch.bfloat16), tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "p.safetensors", packed="bfloat16")
    before = anonymous_bytes()
    model, info = load_model(tmp_path / "p.safetensors")
    assert info.weight_bytes > 64e6 and anonymous_bytes() - before < 20e6
    assert logits(model).isfinite().all()


def resident_of_files() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssFile"))


@needs_library
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_packing_at_load_gives_back_the_memory_of_the_checkpoint(ending: str, tmp_path: Path) -> None:
    plan = Plan(version="7", layers=1, width=256, vocab_size=65536, ffn_width=512, ranks=(16, 16, 16, 16))
    tensors = official_tensors(plan, dtype=torch.bfloat16)
    path = tmp_path / f"big.{ending}"
    torch.save(tensors, path) if ending == "pth" else save_file(tensors, path)
    load_model(packed(tmp_path), device="cpu")  # what is loaded once is loaded
    before = resident_of_files()
    model, info = load_model(path, device="cpu", quantize="int8")
    assert path.stat().st_size > 64e6 and resident_of_files() - before < 10e6
    again, _ = load_model(path, device="cpu", quantize="int8")
    assert torch.equal(logits(model), logits(again)) and info.weight_bytes > 48e6


def test_only_mapped_files_are_given_back(tmp_path: Path) -> None:
    kept = np.arange(1_000_000)
    release([kept, np.empty(3, BLANK), np.empty(0)])
    assert np.array_equal(kept, np.arange(1_000_000))
    checkpoint = read_checkpoint(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"]))
    before = {key: tensor.copy() for key, tensor in checkpoint.tensors.items()}
    release(checkpoint.tensors.values())
    assert all(equal(tensor, before[key]) for key, tensor in checkpoint.tensors.items())


def test_inspect_tells_how_it_is_kept(tmp_path: Path) -> None:
    path = packed(tmp_path, "int4")
    report, source = describe(path), describe(tmp_path / "m.pth")
    assert report.container == "safetensors, packed as int4" and "int4" in report.stored_dtypes
    assert (report.parameters, report.ranks, report.state_bytes) == (
        source.parameters,
        source.ranks,
        source.state_bytes,
    )
    assert report.file_bytes - report.weight_bytes["int4"] < 20_000, "the header"
    assert render(report).row_count == 13


# Refused


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), near_start=st.booleans(), bit=st.integers(0, 7))
def test_any_altered_bit_is_found(place: float, near_start: bool, bit: int, tmp_path: Path) -> None:
    path = tmp_path / "m-int8.safetensors"
    if not path.exists():
        packed(tmp_path)
    content = bytearray(path.read_bytes())
    content[int(place * ((9000 if near_start else len(content)) - 1))] ^= 1 << bit
    (tmp_path / "altered.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="altered"):
        read(tmp_path / "altered.safetensors")


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9999])
def test_a_file_that_is_cut_off_is_refused(share: float, tmp_path: Path) -> None:
    path = packed(tmp_path)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(CheckpointError, match="m-int8"):
        read(path)


def rewritten(path: Path, **metadata: str | None) -> Path:
    """The file with other metadata, as another program or version might have written it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    known = header["__metadata__"] | metadata
    header["__metadata__"] = {key: value for key, value in known.items() if value is not None}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.mark.parametrize(
    ("metadata", "cause", "mend"),
    [
        ({"packing": str(LATER)}, "a later version", "install that version"),
        ({"packing": "0"}, "another version", "convert"),
        ({"packing": None}, "another version", "convert"),
        ({"kept": "int3"}, "int3", "convert"),
        ({"kept": "int4"}, "should be", "convert"),
        ({"shapes": "{}"}, "emb.weight", "convert"),
        ({"shapes": "[1]"}, "metadata", "convert"),
        ({"shapes": None}, "metadata", "convert"),
        ({"shapes": '{"emb.weight": [-1, "a"]}'}, "metadata", "convert"),
        ({"source": "another"}, "damaged", "again"),
        ({"checksum": None}, "metadata", "convert"),
        ({"checksum": "0"}, "damaged", "again"),
    ],
)
def test_the_reason_is_told(metadata: dict[str, str | None], cause: str, mend: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(rewritten(packed(tmp_path), **metadata))
    assert "m-int8" in caught.value.cause and cause in caught.value.cause and mend in caught.value.mend


def test_other_readers_say_that_it_is_packed(tmp_path: Path) -> None:
    path = packed(tmp_path)
    with pytest.raises(CheckpointError, match="packed for serving") as caught:
        convert(path, tmp_path / "again.safetensors")
    assert "made from" in caught.value.mend


@needs_library
@pytest.mark.parametrize(("quantize", "device"), [("int4", "auto"), ("none", "cuda")])
def test_flags_that_contradict_it_are_refused(quantize: str, device: str, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="m-int8") as caught:
        load_model(packed(tmp_path), quantize=quantize, device=device)
    assert caught.value.exit_code == 2


def test_it_needs_the_native_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_KERNELS", "torch")
    with pytest.raises(StartupError, match="native CPU library"):
        load_model(packed(tmp_path))
