"""A real server: `python -m rookery.server serve` with a tiny seeded checkpoint, on a free port."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from rookery.server.model.synthetic import Plan

from .checkpoints import save_checkpoint

MODEL = "tiny"
_STARTED = re.compile(r"listening on http://([^\s,]+):(\d+)")
_PATIENCE_S = 120.0


def write_tiny(folder: Path) -> Path:
    """A seeded RWKV-7 with a byte vocabulary, as a file."""
    plan = Plan(version="7", layers=2, width=64, vocab_size=256, ffn_width=128, head_size=32, ranks=(16, 16, 16, 16))
    return save_checkpoint(folder / f"{MODEL}.pth", plan)


def write_world(folder: Path) -> Path:
    """The same with the World vocabulary: 65,536 ids."""
    plan = Plan(version="7", layers=2, width=64, vocab_size=65536, ffn_width=128, head_size=32, ranks=(16, 16, 16, 16))
    return save_checkpoint(folder / f"{MODEL}.pth", plan)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the processes of a server take together."""

    rss_bytes: int
    descriptors: int
    threads: int


class ServerProcess:
    """One running server."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """What it wrote to stderr."""
        return self._log.read_text(errors="replace")

    def wait_listening(self) -> None:
        """Until the port is known; the model may still be loading."""
        self._until(lambda: bool(_STARTED.search(self.log)), "it does not listen")
        match = _STARTED.search(self.log)
        assert match is not None
        self.port = int(match[2])

    def wait_ready(self) -> None:
        """Until requests are answered."""
        self.wait_listening()
        self._until(self.is_ready, "it is not ready")

    def is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/ready", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def metric(self, name: str, **labels: str) -> float:
        """A sample of /metrics; 0 when it is not there yet."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_metric(self, name: str, value: float) -> None:
        """Until a metric has a value: the engine tells its numbers with its steps, and now and then."""
        self._until(lambda: self.metric(name) == value, f"{name} is not {value}")

    def wait_idle(self, within_s: float) -> None:
        """Until nothing runs and nothing waits."""
        deadline = time.monotonic() + within_s
        while busy := self._busy():
            assert time.monotonic() < deadline, f"after {within_s} s: {busy}"
            time.sleep(0.05)

    def _busy(self) -> dict[str, float]:
        """The gauges that are not at rest."""
        gauges = {
            "running": self.metric("rookery_requests_running"),
            "waiting": self.metric("rookery_requests_waiting"),
            "slots": self.metric("rookery_slots", state="used"),
        }
        return {name: value for name, value in gauges.items() if value}

    def descriptors(self) -> int:
        """Open files and sockets of the HTTP process."""
        return int(psutil.Process(self.process.pid).num_fds())

    def memory_bytes(self) -> int:
        """Resident memory of the HTTP process."""
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def processes(self) -> list[psutil.Process]:
        """The HTTP process, and its engine."""
        http = psutil.Process(self.process.pid)
        return [http, *http.children()]

    def usage(self) -> Usage:
        """As of now."""
        both = self.processes()
        return Usage(
            rss_bytes=sum(one.memory_info().rss for one in both),
            descriptors=sum(one.num_fds() for one in both),
            threads=sum(one.num_threads() for one in both),
        )

    def stop(self, sig: int = signal.SIGTERM, within_s: float = 60.0) -> int:
        """Send a signal and wait; the exit code."""
        self.process.send_signal(sig)
        return self.process.wait(within_s)

    def _until(self, true: Callable[[], bool], failure: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while not true():
            code = self.process.poll()
            assert code is None, f"the server ended with {code}:\n{self.log}"
            assert time.monotonic() < deadline, f"{failure} after {_PATIENCE_S} s:\n{self.log}"
            time.sleep(0.05)


@contextmanager
def launched(folder: Path, *arguments: str) -> Iterator[ServerProcess]:
    """`python -m rookery.server ARGUMENTS`, not waited for; killed at the end if it still runs."""
    log = folder / f"server-{time.monotonic_ns()}.log"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ROOKERY_")}
    stream: IO[bytes]
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "rookery.server", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment | {"OMP_NUM_THREADS": "1"},
        )
        try:
            yield ServerProcess(process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(30)


@contextmanager
def server_process(folder: Path, *flags: str, write: Callable[[Path], Path] = write_tiny) -> Iterator[ServerProcess]:
    """A server that is ready, with a tiny model that `write` puts into the folder."""
    with launched(folder, "serve", str(write(folder)), "--port", "0", "--device", "cpu", *flags) as server:
        server.wait_ready()
        yield server
