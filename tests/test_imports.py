"""Who may import whom, read from the source: the arrows of the design, and what must stay free of torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# part of the tree -> parts of the project it may import (itself is always allowed)
ALLOWED = {
    "kernels": set(),
    "clients": set(),
    "models": set(),
    "models/gosling/grammar.py": {"server/text"},  # measures the server's own constraint
    "server/errors.py": set(),
    "server/config.py": set(),
    "server/text": {"server/errors.py"},
    "server/state": {"kernels", "server/errors.py", "server/model", "server/engine/request.py"},
    "server/model": {"kernels", "server/errors.py", "server/state", "server/engine/request.py"},
    "server/engine/request.py": set(),
    "server/engine/process.py": {  # starts the engine process: puts the parts together
        "kernels", "server/engine", "server/model", "server/state", "server/text", "server/errors.py",
        "server/config.py", "server/logs.py",
    },
    "server/engine": {
        "kernels", "server/model", "server/state", "server/errors.py", "server/config.py", "server/metrics.py",
    },
}  # fmt: skip
NO_TORCH = ["server/text", "server/api", "server/edge", "server/engine/scheduler.py", "server/engine/client.py"]


def sources(part: str) -> list[Path]:
    path = ROOT / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Dotted names that the file imports anywhere, relative ones resolved."""
    package = ("rookery", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module]))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def project_file(name: str) -> str | None:
    """The project's file or folder behind a dotted name, relative to the root; None for other packages."""
    parts = name.split(".")
    if parts[0] != "rookery":
        return None
    for end in range(len(parts), 1, -1):
        stem = "/".join(parts[1:end])
        if (ROOT / f"{stem}.py").is_file():
            return f"{stem}.py"
        if (ROOT / stem).is_dir():
            return stem
    return ""


def within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}/")


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_follow_the_arrows(part: str) -> None:
    wrong = []
    for path in sources(part):
        own = str(path.relative_to(ROOT))
        if any(within(own, other) and len(other) > len(part) for other in ALLOWED):
            continue  # a more exact rule speaks of this file
        for name in imported(path):
            target = project_file(name)
            if target and not any(within(target, ok) for ok in (part, *ALLOWED[part])):
                wrong.append(f"{own} imports {name}")
    assert not wrong


@pytest.mark.parametrize("part", NO_TORCH)
def test_the_http_side_is_free_of_torch(part: str) -> None:
    wrong = [f"{p.relative_to(ROOT)} imports {n}" for p in sources(part) for n in imported(p) if n.startswith("torch")]
    assert not wrong


def test_kernels_need_only_numpy_torch_and_triton() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "torch", "triton", "rookery"}
    assert {n.split(".")[0] for p in sources("kernels") for n in imported(p)} <= allowed


def test_requests_need_only_the_standard_library() -> None:
    names = {n.split(".")[0] for n in imported(ROOT / "server/engine/request.py")}
    assert names <= set(sys.stdlib_module_names)


def test_starting_the_http_side_does_not_load_torch() -> None:
    code = "import sys, rookery.server.cli, rookery.server.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
