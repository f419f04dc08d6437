"""From a model file to a `Checkpoint`: read, named officially, checked against its own sizes, fingerprinted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rookery.kernels.cpu.arrays import Array

from ..state.pool import State
from .checkpoint import Checkpoint
from .files import AGAIN, read_contents, unusable
from .layouts import to_official
from .official import Layout, LayoutError, fit, read_layout
from .scan import NotFinite, fingerprint
from .tuned_state import take_tuned_state

FINGERPRINT_KEY = "rookery_fingerprint"
"""Where `convert` puts the fingerprint into a safetensors file's metadata; reading checks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCheckpoint:
    """A model file whose names and shapes are right, and whose numbers nobody has read yet."""

    path: Path
    tensors: Mapping[str, Array]
    layout: Layout
    tuned_state: State | None
    naming: str
    """"official", "transformers", "fla rwkv6", "fla rwkv7" or "web-rwkv"."""
    container: str
    size_bytes: int
    metadata: Mapping[str, str]


def open_checkpoint(path: Path) -> OpenCheckpoint:
    """Names and shapes of a `.pth`, a `.safetensors` or a Hugging Face folder; the weights stay on the disk.

    Raises:
        CheckpointError: unusable as a file (see `files.read_contents`), no supported model, or a tensor missing, left
            over or misshapen.
    """
    contents = read_contents(path)
    try:
        tensors, naming = to_official(contents.tensors, contents.config)
        layout = read_layout(tensors)
        tuned_state, weights = take_tuned_state(tensors, layout.shape)
        fitted = fit(weights, layout)
    except LayoutError as error:
        raise unusable(path, str(error), error.mend) from None
    return OpenCheckpoint(
        path=path,
        tensors=fitted,
        layout=layout,
        tuned_state=tuned_state,
        naming=naming,
        container=contents.container,
        size_bytes=contents.size_bytes,
        metadata=contents.metadata,
    )


def read_checkpoint(path: Path, progress: Callable[[float], None] | None = None) -> Checkpoint:
    """A model file, checked to the last number. Its tensors stay mapped to the file until a model copies them.

    Args:
        progress: called with the share that is read, growing to 1.

    Raises:
        CheckpointError: as `open_checkpoint`; also for numbers that are not finite, and for a file that `convert` wrote
            and that has changed since.
    """
    opened = open_checkpoint(path)
    try:
        digest = fingerprint(contents_to_digest(opened.tensors, opened.tuned_state), progress)
    except NotFinite as error:
        message = f"the tensor {error.key} has a number that is not finite (NaN or infinity)"
        raise unusable(
            path, message, "training broke, or the file is damaged: use an earlier checkpoint, or " + AGAIN
        ) from None
    if opened.metadata.get(FINGERPRINT_KEY, digest) != digest:
        raise unusable(path, "its weights are not those it was written with: the file is damaged", AGAIN)
    return Checkpoint(
        path=path,
        tensors=opened.tensors,
        shape=opened.layout.shape,
        tuned_state=opened.tuned_state,
        fingerprint=digest,
    )


def contents_to_digest(tensors: Mapping[str, Array], tuned_state: State | None) -> Mapping[str, Array]:
    """What a fingerprint stands for: the weights, and the state that every session of them starts from."""
    return tensors if tuned_state is None else {**tensors, "time_state": tuned_state.wkv}
