"""A program in a pseudo-terminal of its own: type to it, and read what it shows."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

_ESCAPES = re.compile(rb"\x1b(\[[0-9;?]*[A-Za-z]|[=>]|\][^\x07]*\x07)")
_PATIENCE_S = 60.0


class Terminal:
    """The screen as a growing text, without the escape sequences."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self.raw = b""
        self._master = master
        self._read_to = 0

    @property
    def text(self) -> str:
        return _ESCAPES.sub(b"", self.raw).decode("utf-8", "replace").replace("\r\n", "\n")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` stands in what came after the last match."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (match := re.compile(pattern).search(self.text, self._read_to)):
            assert time.monotonic() < deadline and self._more(), f"{pattern!r} is not in:\n{self.text}"
        self._read_to = match.end()
        return match

    def wait(self) -> int:
        """Read until the program ends; its exit code."""
        while self._more():
            continue
        return self.process.wait(_PATIENCE_S)

    def _more(self) -> bool:
        if not select.select([self._master], [], [], _PATIENCE_S)[0]:
            return False
        try:
            data = os.read(self._master, 65536)
        except OSError:  # Linux says EIO when the other side is closed
            return False
        self.raw += data
        return bool(data)


@contextmanager
def terminal(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """`python -m rookery.server ARGUMENTS` at a terminal of 100 columns and 40 lines; killed at the end."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def own_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C becomes SIGINT
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # which a job in the background is started to ignore

    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROOKERY_", "OPENAI_"))}
    process = subprocess.Popen(
        [sys.executable, "-m", "rookery.server", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        preexec_fn=own_terminal,
        env=inherited | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"} | dict(environment or {}),
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(_PATIENCE_S)
        os.close(master)
