"""What a model file holds and what it would need, told without reading its weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from .files import printable
from .load import state_bytes
from .weights import OpenCheckpoint, open_checkpoint

_INT4_GROUP = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """One model file. Sizes as in `ModelShape`; all memory in bytes."""

    path: str
    container: str
    """"pth", "safetensors" or "folder"."""
    naming: str
    """Whose key names it uses: "official", "transformers", "fla rwkv6", "fla rwkv7" or "web-rwkv"."""
    file_bytes: int
    version: str
    layers: int
    width: int
    ffn_width: int
    heads: int
    head_size: int
    vocab_size: int
    ranks: dict[str, int]
    """Inner sizes of the low-rank pairs; empty before RWKV-6."""
    parameters: int
    stored_dtypes: dict[str, int]
    """Parameters by the type they are stored in."""
    tuned_state: bool
    """It brings an initial state."""
    state_bytes: dict[str, int]
    """One session, by the dtype of the model; the WKV state is float32 in all of them."""
    weight_bytes: dict[str, int]
    """All weights, by the dtype of the model; int8 and int4 as `_quantised_bytes` counts them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def describe(path: Path) -> CheckpointReport:
    """Read names and shapes only; the numbers are not looked at, so a NaN stays unseen.

    Raises:
        CheckpointError: no model that could be served.
    """
    opened = open_checkpoint(path)
    shape = opened.layout.shape
    stored: dict[str, int] = {}
    for tensor in opened.tensors.values():
        name = str(tensor.dtype).removeprefix("torch.")
        stored[name] = stored.get(name, 0) + tensor.numel()
    parameters = sum(stored.values())
    floats = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return CheckpointReport(
        path=str(path),
        container=opened.container,
        naming=opened.naming,
        file_bytes=opened.size_bytes,
        version=shape.version,
        layers=shape.layers,
        width=shape.width,
        ffn_width=shape.ffn_width,
        heads=shape.heads,
        head_size=shape.head_size,
        vocab_size=shape.vocab_size,
        ranks=dict(opened.layout.ranks),
        parameters=parameters,
        stored_dtypes=stored,
        tuned_state=opened.tuned_state is not None,
        state_bytes={name: state_bytes(shape, dtype) for name, dtype in floats.items()},
        weight_bytes={
            **{name: parameters * dtype.itemsize for name, dtype in floats.items()},
            "int8": _quantised_bytes(opened, 8),
            "int4": _quantised_bytes(opened, 4),
        },
    )


def _quantised_bytes(opened: OpenCheckpoint, bits: int) -> int:
    """Weights with the layers' large matrices in so many bits, all else in 16.

    Counts one 16-bit scale for each output row (8 bits) or for each group of 64 weights (4 bits).
    """
    total = 0
    for key, tensor in opened.tensors.items():
        if not _is_large_matrix(key, tensor):
            total += 2 * tensor.numel()
            continue
        scales = tensor.shape[0] if bits == 8 else -(-tensor.numel() // _INT4_GROUP)
        total += tensor.numel() * bits // 8 + 2 * scales
    return total


def _is_large_matrix(key: str, tensor: Tensor) -> bool:
    """A layer's square or feed-forward matrix; embedding, head, norms and low-rank pairs are left as they are."""
    return key.startswith("blocks.") and key.endswith(".weight") and tensor.dim() == 2


def render(report: CheckpointReport) -> Table:
    """The report as a table for the terminal."""
    table = Table(title=printable(Path(report.path).name), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    heads = f"{report.heads} heads of {report.head_size}" if report.heads else "no heads"
    ranks = ", ".join(f"{name} {rank}" for name, rank in report.ranks.items())
    stored = ", ".join(f"{name} {count:,}" for name, count in report.stored_dtypes.items())
    table.add_row("model", f"RWKV-{report.version}, {report.parameters:,} parameters")
    table.add_row("file", f"{report.container}, {report.naming} names, {_size(report.file_bytes)}")
    table.add_row("stored as", stored)
    table.add_row("sizes", f"{report.layers} layers, width {report.width}, feed-forward {report.ffn_width}, {heads}")
    if ranks:
        table.add_row("low ranks", ranks)
    table.add_row("vocabulary", f"{report.vocab_size:,} rows")
    table.add_row("own initial state", "yes" if report.tuned_state else "no")
    table.add_row("memory a session", ", ".join(f"{name} {_size(n)}" for name, n in report.state_bytes.items()))
    for name, size in report.weight_bytes.items():
        table.add_row(f"weights in {name}", _size(size))
    return table


def _size(size_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} GiB"
