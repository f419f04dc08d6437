"""`rookery doctor`: what this machine has, what is wrong with it, and how to mend it. Changes nothing.

Every check is a function that returns findings; an error is what keeps the server from running, a warning what makes
it slow or breaks later.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from http.client import HTTPConnection, HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from rich.table import Table
from rich.text import Text

from rookery import __version__

from .resolve import BUILT_IN

_GIB = 2**30
_LITTLE_MEMORY, _LITTLE_DISK, _LITTLE_ROOM = 2 * _GIB, 5 * _GIB, _GIB
_LONGEST_FOLDER = 80
"""A socket's path has at most 107 bytes, and the engine's lies in a folder of its own below this one."""
_FEW_FILES = 4096
_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `mend` says what to do unless all is well."""

    name: str
    level: Literal["ok", "warning", "error"]
    found: str
    mend: str = ""


def examine(host: str, port: int, data_dir: Path | None = None) -> list[Finding]:
    """Every check, in order."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python, _packages, _torch, _compiler, _processor, _memory, lambda: _folders(data_dir), _files,
        lambda: _port(host, port),
    ]  # fmt: skip
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")
    yield Finding("Rookery", "ok", f"{__version__} in {Path(__file__).parent.parent.resolve()}")


def _packages() -> Iterator[Finding]:
    """Every requirement of this distribution, by what is installed."""
    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in metadata.requires("rookery") or ()]
    except metadata.PackageNotFoundError:
        yield Finding("packages", "warning", "Rookery is not installed", "run `pip install .` in its folder")
        return
    wrong = 0
    needed = [need for need in requirements if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in needed:
        try:
            version = metadata.version(need.name)
        except metadata.PackageNotFoundError:
            version = ""
        if not need.specifier.contains(version or "0", prereleases=True) or not version:
            wrong += 1
            wanted = f"{need.name}{need.specifier}"
            yield Finding("packages", "error", f"{need.name} {version or 'is missing'}", f'pip install "{wanted}"')
    if not wrong:
        yield Finding("packages", "ok", f"all {len(needed)} that are needed")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library it is linked to is missing
        yield Finding(
            "torch", "error", f"cannot be imported: {error}", 'pip install --force-reinstall "torch>=2.9,<2.14"'
        )
        return
    cuda = torch.version.cuda
    yield Finding("torch", "ok", f"{torch.__version__}, {'built for CUDA ' + cuda if cuda else 'built for the CPU'}")
    driver = _has_driver()
    if not torch.cuda.is_available():
        if driver and cuda:
            mend = "update the driver, or install a torch built for an older CUDA; in a container, pass the GPU in"
            yield Finding("GPU", "warning", "there is a driver, but torch cannot use it", mend)
        elif driver:
            yield Finding("GPU", "warning", "there is one, but torch is built for the CPU", "install torch for CUDA")
        else:
            yield Finding("GPU", "ok", "none: models run on the CPU")
        return
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        found = (
            f"{device.name}, compute {device.major}.{device.minor}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
        )
        if free < total / 2:
            yield Finding("GPU", "warning", found, "something else uses it; nvidia-smi shows what")
        else:
            yield Finding("GPU", "ok", found)
    if importlib.util.find_spec("triton") is None:
        yield Finding("Triton", "error", "is missing", "pip install triton; without it there are no GPU kernels")
    else:
        yield Finding("Triton", "ok", metadata.version("triton"))


def _compiler() -> Iterator[Finding]:
    """The C compiler, and what it made when Rookery was installed."""
    found = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    native = sorted((Path(__file__).parent.parent / "kernels" / "cpu").glob("_native*.so"))
    if native:
        yield Finding("native library", "ok", str(native[0].resolve()))
    else:
        mend = f"{'' if found else 'install gcc, then '}install Rookery again: without it models run at half the speed"
        yield Finding("native library", "warning", "is not built", mend)
    if found is not None:
        yield Finding("compiler", "ok", found)
    elif _has_driver():
        mend = "install gcc: Triton needs a C compiler when it first runs on a GPU"
        yield Finding("compiler", "warning", "no C compiler", mend)
    else:
        yield Finding("compiler", "ok", "none, and none is needed without a GPU")


def _has_driver() -> bool:
    """Whether this machine has NVIDIA's driver."""
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    flags: set[str] = set()
    info = Path("/proc/cpuinfo")
    if info.exists() and (match := re.search(r"^flags\s*:(.*)$", info.read_text(), re.MULTILINE)):
        flags = set(match[1].split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    found = f"{cores} cores, {platform.machine()}{', ' + ' '.join(known) if known else ''}"
    if flags and "avx2" not in flags:
        yield Finding("CPU", "warning", found, "without AVX2 models run slowly; a newer machine is the only cure")
    else:
        yield Finding("CPU", "ok", found)


def _memory() -> Iterator[Finding]:
    free = _free_memory()
    if free is None:
        return
    found = f"{free / _GIB:.1f} GiB free"
    if free < _LITTLE_MEMORY:
        mend = "the built-in model needs 1 GiB; `rookery inspect MODEL` says what another one needs"
        yield Finding("memory", "warning", found, mend)
    else:
        yield Finding("memory", "ok", found)


def _free_memory() -> int | None:
    """Bytes that can still be used: of the machine, or of the container where that is less."""
    sizes = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists() and (match := re.search(r"^MemAvailable:\s*(\d+) kB", meminfo.read_text(), re.MULTILINE)):
        sizes.append(int(match[1]) * 1024)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (text := limit.read_text().strip()) != "max":
        sizes.append(int(text) - int(used.read_text()))
    return min(sizes, default=None)


def _folders(data_dir: Path | None = None) -> Iterator[Finding]:
    """The folders that are written to."""
    if BUILT_IN.is_file():
        yield Finding("built-in model", "ok", str(BUILT_IN.resolve()))
    else:
        yield Finding("built-in model", "warning", "is not in this installation", "name a model: rookery serve PATH")
    temporary = Path(tempfile.gettempdir())
    if len(str(temporary)) > _LONGEST_FOLDER:
        yield Finding("temporary folder", "error", f"{temporary} has too long a name", "set TMPDIR=/tmp")
    else:
        yield _writable("temporary folder", temporary, 2**20, "set TMPDIR to a folder with room")
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface").expanduser()
    yield _writable("model cache", home, _LITTLE_DISK, "make room, or set HF_HOME to another disk")
    if data_dir is not None:
        yield _writable("data folder", data_dir.expanduser(), _LITTLE_ROOM, "make room, or take another --data-dir")


def _writable(name: str, folder: Path, needed: int, mend: str) -> Finding:
    """Whether files can be made in a folder, or in the first one above it that exists."""
    place = folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{folder}, {free / _GIB:.1f} GiB free"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding(name, "error" if needed < _LITTLE_DISK else "warning", f"{place} cannot be written to", mend)
    return Finding(name, "ok", found) if free >= needed else Finding(name, "warning", found, mend)


def _files() -> Iterator[Finding]:
    """Connections are files."""
    if os.name != "posix":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FEW_FILES:
        mend = f"ulimit -n {min(hard, 65536) if hard > 0 else 65536} before the server, or lower --max-connections"
        yield Finding("open files", "warning", f"at most {soft}", mend)
    else:
        yield Finding("open files", "ok", f"at most {soft}" if soft >= 0 else "no limit")


def _port(host: str, port: int) -> Iterator[Finding]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host.strip("[]"), port), family=family):
            yield Finding("port", "ok", f"{host}:{port} is free")
    except OSError as error:
        if (phase := _served(host, port)) is not None:
            found = f"{host}:{port}: a Rookery server is there ({phase})"
            yield Finding("port", "warning", found, "use that one, or give another its own --port")
            return
        mend = "choose another --port, or stop what listens there"
        yield Finding("port", "error", f"{host}:{port}: {os.strerror(error.errno) if error.errno else error}", mend)


def _served(host: str, port: int) -> str | None:
    """The phase of a Rookery server that answers there; None for anything else."""
    connection = HTTPConnection(host.strip("[]"), port, timeout=1)
    try:
        connection.request("GET", "/ready")
        said = json.loads(connection.getresponse().read(10_000))
    except (OSError, ValueError, HTTPException):
        return None
    finally:
        connection.close()
    return str(said["phase"]) if isinstance(said, dict) and {"status", "phase", "progress"} <= said.keys() else None


def report(findings: list[Finding]) -> dict[str, Any]:
    """JSON-ready."""
    return {"healthy": healthy(findings), "findings": [asdict(finding) for finding in findings]}


def healthy(findings: list[Finding]) -> bool:
    """Whether the server can run."""
    return all(finding.level != "error" for finding in findings)


def render(findings: list[Finding]) -> Table:
    """A line for each finding, and below it what to do."""
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        table.add_row(finding.name, Text(finding.level, style=_COLOURS[finding.level]), Text(finding.found))
        if finding.mend:
            table.add_row("", "", Text(f"mend: {finding.mend}", style="bold"))
    return table
