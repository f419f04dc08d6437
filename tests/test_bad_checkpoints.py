"""Whatever stands under a model's name: loading ends in a line of cause and a line of mend, and runs no code of it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rookery.server.errors import CheckpointError
from rookery.server.model.inspect import describe
from rookery.server.model.tuned_state import read_tuned_state
from rookery.server.model.weights import open_checkpoint, read_checkpoint

from .bad_checkpoints import containers as container_files
from .bad_checkpoints import folders, pickles, tensors
from .bad_checkpoints.makers import KEY, good, pth, pth_bytes, raw, safetensors_bytes
from .bad_checkpoints.pickles import MARKER

BAD = container_files.BAD | tensors.BAD | pickles.BAD | folders.BAD


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
