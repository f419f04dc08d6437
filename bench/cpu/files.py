"""The seeded checkpoint of a shape, in every form that a peer reads; made once and kept in the work folder."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from rookery.kernels.cpu.packed import PACKING
from rookery.server.model.convert import convert
from rookery.server.model.kept import FORMATS
from rookery.server.model.synthetic import PRESETS, synthetic_tensors

from .child import ROOT, PeerFailed, environment

MATRIX_DTYPE = torch.bfloat16
"""What published checkpoints are stored in; so a float32 copy has the same weights."""


def vocabulary_file() -> Path:
    """The World vocabulary of the official package."""
    spec = importlib.util.find_spec("rwkv")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "rwkv_vocab_v20230424.txt"


class Files:
    """Paths by kind: "pth" and "safetensors" (both bfloat16); "float32", "bfloat16", "int8", "int4" (packed by `rookery
    convert`); "f32", "bf16", "Q8_0", "Q4_0" (GGUF).

    Args:
        peers_python: the interpreter that has gguf and llama-cpp-python; None where the peers are not installed.
    """

    def __init__(self, folder: Path, shape: str, peers_python: str | None) -> None:
        self._shape = shape
        self._folder = folder / shape
        self._peers_python = peers_python

    def path(self, kind: str) -> Path:
        """The file of that kind, made now if it is not there.

        Raises:
            PeerFailed: a peer's own tool could not write it.
        """
        path = self._folder / f"{self._shape}{self._ending(kind)}"
        if path.exists():
            return path
        self._folder.mkdir(parents=True, exist_ok=True)
        print(f"writing {path.name}", flush=True)
        part = path.with_name(f"part-{path.name}")
        self._writer(kind)(part)
        part.rename(path)
        return path

    def drop(self, kind: str) -> None:
        """Delete a file that is no longer needed."""
        self.path(kind).unlink()

    @staticmethod
    def _ending(kind: str) -> str:
        if kind in ("pth", "safetensors"):
            return f".{kind}"
        return f"-{kind}-{PACKING}.safetensors" if kind in FORMATS else f"-{kind}.gguf"

    def _writer(self, kind: str) -> Callable[[Path], object]:
        match kind:
            case "pth":
                return lambda part: torch.save(self._tensors(), part)
            case "safetensors":
                return lambda part: save_file(self._tensors(), part)
            case _ if kind in FORMATS:
                checkpoint = self.path("safetensors")
                return lambda part: convert(checkpoint, part, packed=kind, force=True)
            case "f32" | "bf16":
                source = str(self.path("safetensors"))
                return lambda part: self._gguf("write", source, str(vocabulary_file()), str(part), kind)
            case _:
                source = str(self.path("bf16"))
                return lambda part: self._gguf("quantize", source, str(part), kind)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return synthetic_tensors(PRESETS[self._shape], dtype=MATRIX_DTYPE)

    def _gguf(self, *arguments: str) -> None:
        assert self._peers_python is not None
        command = [self._peers_python, "-m", "bench.cpu.gguf_file", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment(2), capture_output=True, text=True)
        if done.returncode:
            raise PeerFailed(f"{' '.join(arguments[:1])} failed: {done.stderr.strip()[-400:]}")
