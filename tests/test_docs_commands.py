"""The commands of the pages, run as a reader pastes them, against the server that `make serve` starts."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server_process import ServerProcess, launched

ROOT = Path(__file__).resolve().parent.parent
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with launched(tmp_path_factory.mktemp("server"), "serve", "--port", "0", "--device", "cpu") as running:
        running.wait_ready()
        yield running


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[str]:
    """What follows each `$`, up to the next one, where it asks the server."""
    entered = [one for block in blocks(page, "console") for one in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]]
    return [one for one in entered if one.startswith("curl ")]


@pytest.mark.parametrize("page", ["README.md", "docs/api.md"])
def test_every_curl_line_is_answered(server: ServerProcess, page: str, tmp_path: Path) -> None:
    found = commands(page)
    assert len(found) >= 2
    for command in found:
        pasted = command.replace("curl ", "curl --fail-with-body --silent --show-error ", 1)
        done = subprocess.run(
            ["bash", "-c", pasted.replace(ADDRESS, server.url)], cwd=tmp_path, capture_output=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)


def test_the_readme_s_client_is_answered(server: ServerProcess) -> None:
    (program,) = blocks("README.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", program.replace(ADDRESS, server.url)], capture_output=True, timeout=60, check=True
    )
    assert "Ada" in done.stdout.decode()
