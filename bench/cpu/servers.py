"""The same engines over HTTP: how each server is started, and what its processes use."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from .child import ROOT, PeerFailed, environment
from .entries import Entry, Peers

START_S = 300.0
STREAMS = 32
"""Slots of every server."""


@dataclass(frozen=True, slots=True)
class Serving:
    """One line of the tables over HTTP."""

    entry: Entry
    server: str
    """"rookery", "llama-server" or "llama-cpp-python"."""
    together: bool = True
    """Whether it computes several requests at a time."""

    @property
    def name(self) -> str:
        return f"{self.server} {self.entry.kept}"


def servings(entries: tuple[Entry, ...]) -> list[Serving]:
    """What there is of servers for these engines; the official package has none."""
    found = []
    for entry in entries:
        if entry.engine == "rookery":
            found.append(Serving(entry, "rookery"))
        elif entry.engine == "llama":
            found.append(Serving(entry, "llama-server"))
            if entry.kept == "Q8_0":
                found.append(Serving(entry, "llama-cpp-python", together=False))
    return found


def command(serving: Serving, peers: Peers, path: Path, port: int, threads: int) -> list[str] | None:
    """How to start it; None where it is not installed.

    llama-server goes without its prompt caches, which nothing here could use and which cost it copies of states.
    """
    match serving.server:
        case "rookery":
            rookery = [sys.executable, "-m", "rookery.server", "serve", str(path)]
            return [*rookery, "--port", str(port), "--log-format", "json", "--max-batch", str(STREAMS)]
        case "llama-server" if peers.llama_server is not None:
            return [
                str(peers.llama_server), "--model", str(path), "--host", "127.0.0.1", "--port", str(port),
                "--threads", str(threads), "--threads-batch", str(threads), "--parallel", str(STREAMS),
                "--ctx-size", str(1024 * STREAMS), "--no-cache-prompt", "--cache-ram", "0", "--ctx-checkpoints", "0",
                "--no-ui", "--log-disable",
            ]  # fmt: skip
        case "llama-cpp-python" if peers.python is not None:
            return [
                peers.python, "-m", "llama_cpp.server", "--model", str(path), "--port", str(port),
                "--n_threads", str(threads), "--n_threads_batch", str(threads), "--n_ctx", "4096",
                "--interrupt_requests", "False", "--verbose", "False",
            ]  # fmt: skip
    return None


READY = {"rookery": "/ready", "llama-server": "/health", "llama-cpp-python": "/v1/models"}


class Server:
    """A running server. Leaving the block ends it.

    Attributes:
        load_s: from its start until it answered that it is ready.
    """

    def __init__(self, command: list[str], url: str, ready: str, threads: int) -> None:
        self.url = url
        self._log = tempfile.TemporaryFile()
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command, cwd=ROOT, env=environment(threads), stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL
        )
        try:
            while not self._answers(ready):
                if self._process.poll() is not None or time.perf_counter() - start > START_S:
                    raise PeerFailed(f"did not start: {self._words()}")
                time.sleep(0.02)
        except BaseException:  # an interrupt too: the server must not outlive this process
            self.stop()
            raise
        self.load_s = time.perf_counter() - start

    def _answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _words(self) -> str:
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 600))
        return " ".join(self._log.read().decode("utf-8", "replace").split())[-400:]

    def memory_mb(self) -> dict[str, float]:
        """Memory of its processes together, in MB of 10^6 bytes: the largest resident sizes; and now, the proportional
        size (what is mapped by several counts by parts) and what is no copy of a file."""
        sums = dict.fromkeys(("peak_rss_mb", "pss_mb", "anonymous_mb"), 0.0)
        for pid in self.processes():
            lines = [*_lines(f"/proc/{pid}/status"), *_lines(f"/proc/{pid}/smaps_rollup")]
            for name, key in zip(sums, ("VmHWM:", "Pss:", "Anonymous:"), strict=True):
                sums[name] += next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024 / 1e6
        return sums

    def cpu_s(self) -> tuple[float, float]:
        """Processor time used so far: by the process that was started, and by its children."""
        ticks = os.sysconf("SC_CLK_TCK")
        used = []
        for pid in self.processes():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            used.append((int(fields[11]) + int(fields[12])) / ticks)
        return used[0], sum(used[1:])

    def processes(self) -> list[int]:
        """Ids of the process started, then of its children."""
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def start(serving: Serving, peers: Peers, path: Path, threads: int) -> Server:
    """Raises PeerFailed where it does not come up; it must be installed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    starting = command(serving, peers, path, port, threads)
    if starting is None:
        raise PeerFailed(f"{serving.server} is not installed")
    return Server(starting, f"http://127.0.0.1:{port}", READY[serving.server], threads)
