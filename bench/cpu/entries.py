"""What is measured: each engine with each kind of weights."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the tables."""

    peer: str
    kept: str
    """How the weights are kept, in the peer's own word."""
    engine: str
    """Of which module `…_engine`."""
    file: str
    """Kind of file it reads (`files.Files`)."""
    batched: bool = True
    """Whether it decodes several streams together."""

    @property
    def name(self) -> str:
        return f"{self.peer} {self.kept}"


ENTRIES = (
    Entry("rookery", "float32", "rookery", "float32"),
    Entry("official", "float32", "official", "pth", batched=False),
    Entry("rookery", "bfloat16", "rookery", "bfloat16"),
    Entry("official", "bfloat16", "official", "pth", batched=False),
    Entry("llama.cpp", "bf16", "llama", "bf16"),
    Entry("rookery", "int8", "rookery", "int8"),
    Entry("llama.cpp", "Q8_0", "llama", "Q8_0"),
    Entry("rookery", "int4", "rookery", "int4"),
    Entry("llama.cpp", "Q4_0", "llama", "Q4_0"),
)


@dataclass(frozen=True, slots=True)
class Peers:
    """The folder `install-peers` made, or one where it has not run."""

    folder: Path

    @property
    def python(self) -> str | None:
        """The interpreter with llama-cpp-python; None where it is not installed."""
        return str(self.folder / "bin/python") if self.about else None

    @property
    def about(self) -> dict[str, Any]:
        """Versions, compiler and flags; empty where nothing is installed."""
        path = self.folder / "build.json"
        about: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return about

    @property
    def llama_server(self) -> Path | None:
        path = self.folder / "llama/bin/llama-server"
        return path if path.exists() else None

    def interpreter(self, entry: Entry) -> str | None:
        """That runs an entry's engine."""
        return self.python if entry.engine == "llama" else sys.executable
