"""An engine in a process of its own, from outside: it is asked, and answers or is ended."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PATIENCE_S = 600.0
"""For one answer; the slowest is a prompt of a 1.5B model on a busy machine."""


class PeerFailed(Exception):
    """A peer ended or did not answer; the message says how, with the end of what it wrote."""


def environment(threads: int, extra: dict[str, str] | None = None) -> dict[str, str]:
    """Equal threads for every peer, whichever library makes them; and compiled Python is kept, as it is for users."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT), **(extra or {})}


class Child:
    """A worker. Leaving the block ends it.

    Attributes:
        ready: what it said once it was loaded.
    """

    def __init__(self, python: str, engine: str, settings: dict[str, Any], extra: dict[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile()
        command = [python, "-m", "bench.cpu.worker", engine, json.dumps(settings)]
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment(settings["threads"], extra),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        try:
            self.ready = self._hear()
        except PeerFailed:
            self.stop()
            raise

    def ask(self, do: str, **about: Any) -> dict[str, Any]:
        """Raises PeerFailed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **about}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        timer = threading.Timer(PATIENCE_S, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise self._failure()
        told: dict[str, Any] = json.loads(line)
        return told

    def _failure(self) -> PeerFailed:
        code = self._process.wait()
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 600))
        words = " ".join(self._log.read().decode("utf-8", "replace").split())
        how = f"killed by signal {-code}" if code < 0 else f"ended with {code}"
        return PeerFailed(f"{how}: {words[-400:]}")

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
