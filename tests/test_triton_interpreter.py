"""Every Triton kernel in Triton's interpreter. Each file has a process of its own, for which the choice then holds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "interpreted"
SLOW = {"test_loop.py"}
FILES = [
    pytest.param(path.name, marks=[pytest.mark.slow] if path.name in SLOW else [])
    for path in sorted(FOLDER.glob("test_*.py"))
]
ENVIRONMENT = {**os.environ, "TRITON_INTERPRET": "1", "ROOKERY_KERNELS": "triton", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.skipif("TRITON_INTERPRET" in os.environ, reason="this process interprets; the files run in it")
interprets = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton has no build for this system"
)


def interpret(name: str, which: str) -> None:
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", which, str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, cwd=FOLDER.parent.parent)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


@interprets
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", FILES)
def test_interpreted(name: str) -> None:
    interpret(name, "not slow")


@interprets
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["test_models.py"])
def test_interpreted_at_length(name: str) -> None:
    interpret(name, "slow")


def test_the_torch_path_imports_no_triton() -> None:
    code = (
        "import sys, torch\n"
        "from rookery.kernels.rows import Rows\n"
        "from rookery.kernels.wkv7 import wkv7\n"
        "x = torch.rand(1, 1, 4)\n"
        "wkv7(x, -x, x, x, x, x, torch.zeros(1, 1, 4, 4), Rows.pack([0], [1]))\n"
        "sys.exit('triton' in sys.modules)"
    )
    environment = {name: value for name, value in os.environ.items() if name != "ROOKERY_KERNELS"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, cwd=FOLDER.parent.parent).returncode == 0


@pytest.mark.parametrize(
    ("kernels", "device", "expected"),
    [("", "cpu", "False"), ("torch", "cuda", "False"), ("", "cuda", "True"), ("triton", "cpu", "True")],
)
def test_the_backend_follows_device_and_override(kernels: str, device: str, expected: str) -> None:
    code = f"from rookery.kernels.backend import uses_triton; print(uses_triton({device!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ROOKERY_KERNELS": kernels}, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected


def test_an_unknown_override_is_refused() -> None:
    code = "from rookery.kernels.backend import uses_triton; uses_triton('cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ROOKERY_KERNELS": "cuda"}, capture_output=True, text=True
    )
    assert "choose torch or triton" in done.stderr
