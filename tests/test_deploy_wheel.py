"""The image's way without a container engine: the wheel of the files that the Dockerfile copies, in a fresh
environment, holds everything and serves; the health check says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import site
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server_process import write_tiny
from .test_deploy_files import ROOT, copied, ignore_rules

CODE = (".py", ".c", ".h", ".toml", ".html", ".js", ".css", ".svg")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage of the Dockerfile sees."""
    folder = tmp_path_factory.mktemp("context")
    patterns = [rule.removeprefix("**/") for rule in ignore_rules() if rule.startswith("**/")]
    for source in copied():
        if (ROOT / source).is_dir():
            shutil.copytree(
                ROOT / source, folder / source, symlinks=True, ignore=shutil.ignore_patterns(*patterns, "runs")
            )
        else:
            shutil.copy(ROOT / source, folder / source)
    return folder


@pytest.fixture(scope="module")
def wheel(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), "."], cwd=context, check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, str]]]:
    """A fresh virtual environment with the wheel; what it needs comes from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROOKERY_", "PYTHON"))}
    needed = os.pathsep.join(site.getsitepackages())
    yield folder / "bin/rookery", inherited | {"PYTHONPATH": needed, "OMP_NUM_THREADS": "1"}


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path, context: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    wanted = {
        f"rookery/{path.relative_to(context)}"
        for part in ("server", "kernels", "clients", "models")
        for path in (context / part).rglob("*")
        if path.suffix in CODE
    }
    assert wanted <= names, wanted - names
    for name in ("rookery/py.typed", "rookery/clients/web/index.html", "rookery/server/models.toml"):
        assert name in names
    if shutil.which("cc"):
        assert [name for name in names if re.fullmatch(r"rookery/kernels/cpu/_native.*\.so", name)]
    model = context / "models/gosling/gosling.safetensors"
    assert not model.exists() or "rookery/models/gosling/gosling.safetensors" in names
    assert not [name for name in names if name.startswith(("tests/", "server/", "kernels/", "clients/", "models/"))]


def test_it_serves_and_is_healthy(environment: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    rookery, variables = environment
    variables = variables | {"ROOKERY_MODEL": str(write_tiny(tmp_path)), "ROOKERY_PORT": "0", "ROOKERY_DEVICE": "cpu"}
    code = "import rookery; print(rookery.__file__)"
    place = subprocess.run(
        [rookery.parent / "python", "-c", code], env=variables, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert place.stdout.startswith(str(rookery.parent.parent))
    log = tmp_path / "log"
    with log.open("wb") as stream:
        server = subprocess.Popen([rookery, "serve"], env=variables, cwd=tmp_path, stdout=stream, stderr=stream)
    try:
        port = ""
        while not port:
            assert server.poll() is None, log.read_text()
            match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())
            port = match[1] if match else ""
        health = [str(rookery), "health"]
        while subprocess.run(health, env=variables | {"ROOKERY_PORT": port}, capture_output=True).returncode:
            assert server.poll() is None, log.read_text()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=30) as page:
            assert b"<html" in page.read()
        body = json.dumps({"model": "tiny", "prompt": "hi", "max_tokens": 4}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] >= 1
        server.terminate()
        assert server.wait(60) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait(30)
