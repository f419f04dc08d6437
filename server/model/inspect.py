"""What a model file holds and what it would need, told without reading its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from rookery.kernels.cpu.arrays import Array, type_name

from .checkpoint import BLANK
from .files import printable
from .load import DTYPE_BYTES, state_bytes
from .official import Ranks, read_layout
from .packed_file import open_packed, packed_bytes
from .shape import ModelShape
from .weights import open_checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointReport:
    """One model file. Sizes as in `ModelShape`; all memory in bytes."""

    path: str
    container: str
    """"pth", "safetensors", "folder" or "safetensors, packed as int8"."""
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
    """All weights, by the dtype of the model; int8 and int4 as the native library keeps them."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


def describe(path: Path) -> CheckpointReport:
    """Read names and shapes only; the numbers are not looked at, so a NaN stays unseen.

    Raises:
        CheckpointError: no model that could be served.
    """
    packed = open_packed(path)
    if packed is not None:
        kept = str(packed.kept)
        ranks = read_layout(packed.tensors).ranks
        tuned = packed.tuned_state is not None
        about = (f"safetensors, packed as {kept}", "official", path.stat().st_size, ranks, tuned)
        return _report(path, packed.shape, packed.tensors, kept, *about)
    opened = open_checkpoint(path)
    tuned = opened.tuned_state is not None
    about = (opened.container, opened.naming, opened.size_bytes, opened.layout.ranks, tuned)
    return _report(path, opened.layout.shape, opened.tensors, "", *about)


def _report(
    path: Path,
    shape: ModelShape,
    tensors: Mapping[str, Array],
    kept: str,
    container: str,
    naming: str,
    file_bytes: int,
    ranks: Ranks,
    tuned_state: bool,
) -> CheckpointReport:
    """`kept` is how the `BLANK` ones are."""
    stored: dict[str, int] = {}
    for tensor in tensors.values():
        name = kept if tensor.dtype == BLANK else type_name(tensor.dtype)
        stored[name] = stored.get(name, 0) + tensor.size
    parameters = sum(stored.values())
    return CheckpointReport(
        path=str(path),
        container=container,
        naming=naming,
        file_bytes=file_bytes,
        version=shape.version,
        layers=shape.layers,
        width=shape.width,
        ffn_width=shape.ffn_width,
        heads=shape.heads,
        head_size=shape.head_size,
        vocab_size=shape.vocab_size,
        ranks=dict(ranks),
        parameters=parameters,
        stored_dtypes=stored,
        tuned_state=tuned_state,
        state_bytes={name: state_bytes(shape, name) for name in DTYPE_BYTES},
        weight_bytes={
            **{name: parameters * size for name, size in DTYPE_BYTES.items()},
            **{name: packed_bytes(tensors, name) for name in ("int8", "int4")},
        },
    )


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
