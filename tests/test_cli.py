"""The command line: exit codes, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rookery.server.config import parse_bytes


def rookery(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rookery.server", *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["serve", "no-such-model"], "there is no model at no-such-model"),
        (["serve", "hf:nonsense"], "hf:nonsense names no repository"),
        (["serve", "--prot", "1"], "--prot"),
        (["serve", "--port", "99999"], "99999"),
        (["serve", "--max-body", "many"], "many"),
        (["serve", "--config", "no-such.toml"], "no-such.toml"),
        (["serve", "--config"], "--config needs a file"),
        (["inspect", "no-such.pth"], "there is no model at no-such.pth"),
        (["fly"], "fly"),
    ],
)
def test_wrong_usage_is_one_cause_one_mend_and_exit_2(arguments: list[str], cause: str) -> None:
    done = rookery(*arguments)
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert cause in lines[0]
    assert lines[-1].strip().startswith("mend:")
    assert "Traceback" not in done.stderr


def test_health_of_a_server_that_is_not_there() -> None:
    done = rookery("health", "--base-url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "no server at http://127.0.0.1:9" in done.stderr


def test_help_names_every_flag_with_its_default() -> None:
    done = rookery("serve", "--help")
    assert done.returncode == 0
    for flag in ("--host", "--port", "--dtype", "--max-batch", "--api-key", "ROOKERY_PORT"):
        assert flag in done.stdout


def test_settings_file_flags_win(tmp_path: Path) -> None:
    settings = tmp_path / "rookery.toml"
    settings.write_text('port = 1234\nmax_batch = 7\nhost = "nowhere"\n')
    done = rookery("serve", "no-such-model", "--config", str(settings), "--port", "70000")
    assert done.returncode == 2 and "70000" in done.stderr
    settings.write_text("prot = 1234\n")
    done = rookery("serve", "no-such-model", "--config", str(settings))
    assert done.returncode == 2 and "prot" in done.stderr


@pytest.mark.parametrize(("text", "size"), [("2GiB", 2 * 2**30), ("500MB", 500 * 10**6), ("12", 12), ("1.5 KiB", 1536)])
def test_sizes_with_units(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "1e9x", "many"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_bytes(text)
