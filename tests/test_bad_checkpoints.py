"""Whatever stands under a model's name: loading ends in a line of cause and a line of mend, and runs no code of it."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import Tensor

from rookery.server.errors import CheckpointError
from rookery.server.model.inspect import describe
from rookery.server.model.synthetic import Plan
from rookery.server.model.tuned_state import read_tuned_state
from rookery.server.model.weights import open_checkpoint, read_checkpoint

from .checkpoints import official_tensors

PLAN = Plan(version="7", layers=2, width=16, ffn_width=24, vocab_size=19, head_size=8, ranks=(3, 4, 2, 5))
MARKER = "the-code-ran"
"""A file that the hostile ones would make in the working folder."""

Maker = Callable[[Path], Path]
BAD: dict[str, Maker] = {}


def bad(make: Maker) -> Maker:
    """Register a maker of one bad file; its name tells the fault."""
    BAD[make.__name__] = make
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


# Damaged and foreign files


def pth_bytes() -> bytes:
    buffer = BytesIO()
    torch.save(good(), buffer)
    return buffer.getvalue()


def safetensors_bytes() -> bytes:
    return save({key: tensor.contiguous() for key, tensor in official_tensors(PLAN).items()})


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


# Wrong numbers and tensors

KEY = "blocks.1.ffn.key.weight"


def with_number(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[-1, -1] = value
        return tensor

    return change


def unwarned(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def quietly(tensor: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these kinds of tensors are in beta, or on their way out
            return change(tensor)

    return quietly


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one_nan": with_number(float("nan")),
    "one_infinity": with_number(float("-inf")),
    "one_bfloat16_nan": lambda t: with_number(float("nan"))(t.bfloat16()),
    "one_float16_infinity": lambda t: with_number(float("inf"))(t.half()),
    "transposed": lambda t: t.T.contiguous(),
    "one_row_short": lambda t: t[1:].clone(),
    "no_rows": lambda t: t[:0].clone(),
    "int8": lambda t: t.to(torch.int8),
    "boolean": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "sparse_csr": unwarned(lambda t: t.to_sparse_csr()),
    "sparse_out_of_bounds": lambda t: torch.sparse_coo_tensor(
        torch.tensor([[10**12], [10**12]]), torch.ones(1), t.shape, check_invariants=False
    ),
    "quantised": unwarned(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "view_of_a_terabyte": lambda t: torch.zeros(1).expand(2**20, 2**20),
    "on_no_device": lambda t: t.to("meta"),
}
for name, change in CHANGES.items():
    BAD[f"tensor_{name}"] = partial(changed, key=KEY, change=change)


@bad
def all_nan(folder: Path) -> Path:
    return pth(folder, {key: torch.full_like(tensor, float("nan")) for key, tensor in good().items()})


@bad
def missing_tensor(folder: Path) -> Path:
    return pth(folder, {key: tensor for key, tensor in good().items() if key != KEY})


@bad
def missing_layer(folder: Path) -> Path:
    return pth(folder, {key: tensor for key, tensor in good().items() if not key.startswith("blocks.0.")})


@bad
def a_layer_number_out_of_all_reason(folder: Path) -> Path:
    return pth(folder, good() | {"blocks.999999.ln1.weight": torch.ones(16)})


@bad
def extra_tensor(folder: Path) -> Path:
    return pth(folder, good() | {"blocks.1.att.surprise\x1b[31m\n": torch.ones(16)})


@bad
def heads_that_do_not_divide(folder: Path) -> Path:
    return changed(folder, "blocks.0.att.r_k", lambda t: torch.ones(3, 5))


@bad
def only_an_adapter(folder: Path) -> Path:
    return pth(folder, {"blocks.0.att.key.lora_A": torch.ones(2, 16), "blocks.0.att.key.lora_B": torch.ones(16, 2)})


@bad
def only_a_tuned_state(folder: Path) -> Path:
    return pth(folder, {f"blocks.{layer}.att.time_state": torch.ones(2, 8, 8) for layer in range(2)})


@bad
def a_tuned_state_of_other_sizes(folder: Path) -> Path:
    return pth(folder, good() | {f"blocks.{layer}.att.time_state": torch.ones(2, 9, 9) for layer in range(2)})


@bad
def already_converted(folder: Path) -> Path:
    return pth(folder, good() | {"_strategy": "cpu fp32", "_version": 0.7})


@bad
def numbers_instead_of_tensors(folder: Path) -> Path:
    return pth(folder, good() | {"epoch": 7})


@bad
def a_list(folder: Path) -> Path:
    return pth(folder, list(good().values()))


@bad
def nothing_named(folder: Path) -> Path:
    return pth(folder, {})


def with_key(folder: Path, key: str) -> Path:
    return pth(folder, good() | {key: torch.ones(4, 4)})


RESEARCH = {
    "rwkv_7a": "blocks.0.ffn.s_emb.weight",
    "rwkv_7b": "blocks.0.qkv.qq.weight",
    "rwkv_6a": "blocks.0.att.gate_w1",
    "rwkv_6b": "blocks.0.att.time_maa_rkvw_w1",
    "rosa": "blocks.0.rosa.q.weight",
}
for name, key in RESEARCH.items():
    BAD[f"research_{name}"] = partial(with_key, key=key)


# Hostile files


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


# Folders and paths


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


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", BAD)
def test_a_bad_checkpoint_is_one_line_of_cause_and_one_of_mend(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    path = BAD[fault](tmp_path / "models")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150 * 1024, "memory, in KiB"
    error = caught.value
    for line in (error.cause, error.mend):
        assert line and line.isprintable() and len(line) < 1200
    assert "models" in error.cause, "the cause names the file"
    assert error.exit_code > 0
    assert not list(tmp_path.rglob(MARKER)), "code of the file ran"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing_tensor", KEY),
        ("extra_tensor", "blocks.1.att.surprise"),
        ("tensor_one_nan", KEY),
        ("tensor_one_infinity", KEY),
        ("tensor_one_row_short", KEY),
        ("tensor_int8", KEY),
        ("tensor_sparse", "sparse"),
        ("tensor_quantised", "quantised"),
        ("missing_layer", "layer 0"),
        ("index_naming_a_missing_shard", "b.safetensors"),
        ("pickle_bomb_among_good_tensors", "system"),
        ("only_an_adapter", "adapter"),
        ("only_a_tuned_state", "--state"),
        ("research_rwkv_7a", "7a"),
        ("research_rwkv_7b", "7b"),
        ("research_rosa", "rosa"),
        ("already_converted", "_strategy"),
        ("gguf", "GGUF"),
        ("html_page", "web page"),
        ("git_lfs_pointer", "git lfs pull"),
        ("circle_of_links", "circle"),
    ],
)
def test_the_message_tells_what_is_wrong(fault: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(BAD[fault](tmp_path))
    assert said in caught.value.cause + caught.value.mend


def test_an_unreadable_file_says_so(tmp_path: Path) -> None:
    path = pth(tmp_path, good())
    path.chmod(0)
    root = os.geteuid() == 0  # who may read everything, so another user has to try
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match="may not read it") as caught:
            read_checkpoint(path)
    finally:
        if root:
            os.seteuid(0)
    assert "read access" in caught.value.mend


def test_a_wrong_path_says_what_is_there(tmp_path: Path) -> None:
    pth(tmp_path, good(), "right.pth")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path / "wrong.pth")
    assert "right.pth" in caught.value.mend


@pytest.mark.parametrize(
    "fault", ["pth_cut_at_0.5", "missing_tensor", "tensor_int8", "pickle_bomb_in_zip", "no_such_file"]
)
def test_inspect_refuses_what_serve_would(fault: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        describe(BAD[fault](tmp_path))


@pytest.mark.parametrize(
    "fault", ["pickle_bomb_in_zip", "pickle_bomb_raw", "text", "circle_of_links", "tensor_one_nan"]
)
def test_a_bad_tuned_state_is_refused_alike(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shape = read_checkpoint(pth(tmp_path, good(), "good.pth")).shape
    with pytest.raises(CheckpointError):
        read_tuned_state(BAD[fault](tmp_path), shape)
    assert not list(tmp_path.rglob(MARKER))


@pytest.fixture(scope="module")
def containers() -> dict[str, bytes]:
    return {"pth": pth_bytes(), "safetensors": safetensors_bytes()}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(container=st.sampled_from(["pth", "safetensors"]), data=st.data())
def test_any_altered_bytes_load_or_are_refused(
    container: str, data: st.DataObject, containers: dict[str, bytes], tmp_path: Path
) -> None:
    """No alteration ends in an error of another kind; headers and directories, at both ends, are altered most."""
    content = bytearray(containers[container])
    near = st.integers(0, min(6000, len(content) - 1))
    place = st.one_of(near, near.map(lambda n: len(content) - 1 - n), st.integers(0, len(content) - 1))
    for position in data.draw(st.lists(place, min_size=1, max_size=4)):
        content[position] = data.draw(st.integers(0, 255))
    path = raw(tmp_path, bytes(content), f"model.{container}")
    try:
        open_checkpoint(path)
    except CheckpointError as error:
        assert str(path) in error.cause and error.cause.isprintable()


def test_the_command_line_prints_two_lines_and_fails(tmp_path: Path) -> None:
    path = BAD["pickle_bomb_among_good_tensors"](tmp_path)
    command = [sys.executable, "-m", "rookery.server", "inspect", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and str(path.name) in done.stderr.replace("\n", "")
    assert not (tmp_path / MARKER).exists()
