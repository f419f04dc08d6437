"""The official (BlinkDL) checkpoint layout: version and sizes from keys, and every key there must be with its shape.

Nothing is assumed: no formula for widths or ranks, no order of keys, no file name. Sizes come from a few tensors, and
then each tensor must fit them. Source: `rwkv` package 0.8.32 and the training code of RWKV-LM, read key by key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rookery.kernels.cpu.arrays import Array

from .shape import ModelShape, Version

_BLOCK_KEY = re.compile(r"blocks\.(\d{1,6})\.")

_REFUSED = (
    ("blocks.0.qkv.qq.weight", "it is RWKV-7b, whose memory grows with the text"),
    ("blocks.0.ffn.s_emb.weight", "it is RWKV-7a (DeepEmbed)"),
    ("blocks.0.att.time_maa_rkvw_w1", "it is a research variant of RWKV-6 (x060b or x060c)"),
    ("blocks.0.att.gate_w1", "it is a research variant of RWKV-6 (x060a)"),
)

Ranks = Mapping[str, int]
"""Inner sizes of the low-rank pairs: `mix` and `decay` for RWKV-6; `w`, `a`, `g` and (from two layers on) `v` for 7."""


class LayoutError(Exception):
    """The tensors are not one supported model. The message goes on after "<file>: "; `mend` is one line of advice."""

    def __init__(self, message: str, mend: str) -> None:
        super().__init__(message)
        self.mend = mend


WRONG_MODEL = "use an RWKV-4, 5.0, 5.1, 5.2, 6 or 7 model"
INCOMPLETE = "download the file again, or save the whole model again; every tensor of it is needed"


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a model and its low-rank pairs: all that is needed to name each tensor and its shape."""

    shape: ModelShape
    ranks: Ranks

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every key of this model with its shape, unit axes dropped where the file may have them."""
        width, vocab_size = self.shape.width, self.shape.vocab_size
        yield "emb.weight", (vocab_size, width)
        yield from _norm("blocks.0.ln0", width)
        for layer in range(self.shape.layers):
            block = f"blocks.{layer}"
            yield from _norm(f"{block}.ln1", width)
            yield from _norm(f"{block}.ln2", width)
            if self.shape.version == "7":
                yield from self._time_mixing_7(f"{block}.att", layer)
            else:
                yield from self._time_mixing(f"{block}.att")
            yield from self._channel_mixing(f"{block}.ffn")
        yield from _norm("ln_out", width)
        yield "head.weight", (vocab_size, width)

    def _channel_mixing(self, ffn: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        width, ffn_width, version = self.shape.width, self.shape.ffn_width, self.shape.version
        yield f"{ffn}.key.weight", (ffn_width, width)
        yield f"{ffn}.value.weight", (width, ffn_width)
        if version == "7":
            yield f"{ffn}.x_k", (width,)
            return
        yield f"{ffn}.receptance.weight", (width, width)
        for name in "kr":
            yield f"{ffn}.{'time_maa' if version == '6' else 'time_mix'}_{name}", (width,)

    def _time_mixing(self, att: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        """RWKV-4, 5.0, 5.1, 5.2 and 6. The bonus of 5.0 and 5.1 has two names; `_bonus_key` tells which is meant."""
        shape, version = self.shape, self.shape.version
        width, mix_width = shape.width, shape.mix_width
        matrices = ["receptance", "key", "value"] + (["gate"] if version in ("5.1", "5.2", "6") else [])
        for name in matrices:
            yield f"{att}.{name}.weight", (mix_width, width)
        yield f"{att}.output.weight", (width, mix_width)
        mixes = {"4": "kvr", "5.0": "kvr", "5.1": "kvrg", "5.2": "kvrg", "6": "xwkvrg"}[version]
        for name in mixes:
            yield f"{att}.{'time_maa' if version == '6' else 'time_mix'}_{name}", (width,)
        if version != "4":
            yield from _norm(f"{att}.ln_x", mix_width)
        per_channel = (shape.heads, shape.head_size)
        if version == "4":
            yield f"{att}.time_decay", (mix_width,)
            yield f"{att}.time_first", (mix_width,)
        elif version in ("5.0", "5.1"):
            yield f"{att}.time_decay", (shape.heads,)
            yield f"{att}.time_faaaa", (shape.heads,)
        elif version == "5.2":
            yield f"{att}.time_decay", per_channel
            yield f"{att}.time_faaaa", per_channel
        else:
            mix, decay = self.ranks["mix"], self.ranks["decay"]
            yield f"{att}.time_decay", (mix_width,)
            yield f"{att}.time_faaaa", per_channel
            yield f"{att}.time_maa_w1", (width, 5 * mix)
            yield f"{att}.time_maa_w2", (5, mix, width)
            yield f"{att}.time_decay_w1", (width, decay)
            yield f"{att}.time_decay_w2", (decay, mix_width)

    def _time_mixing_7(self, att: str, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Layer 0 has no value residual; files may hold unused `v0`, `v1`, `v2` there, which are dropped on reading."""
        shape, width = self.shape, self.shape.width
        for name in ("receptance", "key", "value", "output"):
            yield f"{att}.{name}.weight", (width, width)
        for name in "rwkvag":
            yield f"{att}.x_{name}", (width,)
        for name in ("w0", "a0", "k_k", "k_a"):
            yield f"{att}.{name}", (width,)
        for name in ("w", "a", "g") + (("v",) if layer > 0 else ()):
            yield f"{att}.{name}1", (width, self.ranks[name])
            yield f"{att}.{name}2", (self.ranks[name], width)
        if layer > 0:
            yield f"{att}.v0", (width,)
        yield f"{att}.r_k", (shape.heads, shape.head_size)
        yield from _norm(f"{att}.ln_x", width)


def read_layout(tensors: Mapping[str, Array]) -> Layout:
    """Version and sizes of official tensors, from the names and shapes of a few of them.

    Raises:
        LayoutError: no supported version, a size that contradicts another, or a tensor missing that tells a size.
    """
    for key, reason in _REFUSED:
        if key in tensors:
            raise LayoutError(f"{reason}, which is not served", WRONG_MODEL)
    vocab_size, width = _axes(tensors, "emb.weight", 2)
    layers = _count_layers(tensors)
    mix_width, _ = _axes(tensors, "blocks.0.att.key.weight", 2)
    ffn_width, _ = _axes(tensors, "blocks.0.ffn.key.weight", 2)
    version = _version(tensors, mix_width)
    heads, ranks = 0, dict[str, int]()
    if version.startswith("5"):
        heads = _axes(tensors, "blocks.0.att.time_decay")[0]
    elif version == "6":
        heads = _axes(tensors, "blocks.0.att.time_faaaa")[0]
        ranks["mix"] = _axes(tensors, "blocks.0.att.time_maa_w2", 3)[1]
        ranks["decay"] = _axes(tensors, "blocks.0.att.time_decay_w1", 2)[1]
    elif version == "7":
        heads = _axes(tensors, "blocks.0.att.r_k")[0]
        for name in ("w", "a", "g"):
            ranks[name] = _axes(tensors, f"blocks.0.att.{name}1", 2)[1]
        if layers > 1:
            ranks["v"] = _axes(tensors, "blocks.1.att.v1", 2)[1]
    if version != "4" and mix_width % heads:
        raise LayoutError(f"its {mix_width} channels do not divide into {heads} heads", INCOMPLETE)
    shape = ModelShape(
        version=version,
        vocab_size=vocab_size,
        layers=layers,
        width=width,
        mix_width=mix_width,
        ffn_width=ffn_width,
        heads=heads,
        head_size=mix_width // heads if heads else 0,
    )
    return Layout(shape, ranks)


def _version(tensors: Mapping[str, Array], mix_width: int) -> Version:
    """The generation, by the keys of layer 0."""
    att = "blocks.0.att."
    if att + "r_k" in tensors:
        return "7"
    if att + "time_maa_x" in tensors:
        return "6"
    if att + "ln_x.weight" not in tensors:
        return "4"
    if att + "gate.weight" not in tensors:
        return "5.0"
    decay = tensors.get(att + "time_decay")
    if decay is None:
        raise LayoutError(f"it has no tensor {att}time_decay", INCOMPLETE)
    # One decay a channel is 5.2, one a head is 5.1. Counting also tells them apart in a model of one head, [1, D].
    return "5.2" if decay.ndim > 1 and decay.size == mix_width else "5.1"


def _count_layers(tensors: Mapping[str, Array]) -> int:
    """Number of layers; the indices must be 0, 1, 2 … so that one lying key cannot ask for a million layers."""
    found = {int(match[1]) for key in tensors if (match := _BLOCK_KEY.match(key))}
    for layer in range(len(found)):
        if layer not in found:
            raise LayoutError(f"it has no tensors of layer {layer}, but of layer {max(found)}", INCOMPLETE)
    if not found:
        raise LayoutError("it has no RWKV layers (no key starts with blocks.0)", WRONG_MODEL)
    return len(found)


def _axes(tensors: Mapping[str, Array], key: str, axes: int | None = None) -> tuple[int, ...]:
    tensor = tensors.get(key)
    if tensor is None:
        raise LayoutError(f"it has no tensor {key}", INCOMPLETE)
    sizes = tuple(tensor.shape)
    if not sizes or (axes is not None and len(sizes) != axes) or 0 in sizes:
        raise LayoutError(f"the tensor {key} has the impossible shape {list(sizes)}", INCOMPLETE)
    return sizes


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def fit(tensors: Mapping[str, Array], layout: Layout) -> dict[str, Array]:
    """The tensors of `layout`, in its order and its shapes: unit axes that a file adds or drops are taken away.

    Raises:
        LayoutError: a tensor is missing, left over, or of another shape. It names the tensor.
    """
    rest = dict(tensors)
    fitted: dict[str, Array] = {}
    for key, shape in layout.tensors():
        name = _bonus_key(key, rest) if layout.shape.version in ("5.0", "5.1") else key
        tensor = rest.pop(name, None)
        if tensor is None:
            raise LayoutError(f"it has no tensor {key}", INCOMPLETE)
        if _without_unit_axes(tensor.shape) != _without_unit_axes(shape):
            found, needed = list(tensor.shape), list(shape)
            raise LayoutError(
                f"the tensor {name} has the shape {found}; the other tensors ask for {needed}", INCOMPLETE
            )
        fitted[name] = tensor.reshape(shape)
    if layout.shape.version == "7":
        for name in ("v0", "v1", "v2"):
            rest.pop(f"blocks.0.att.{name}", None)
    if rest:
        more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
        raise LayoutError(f"it has the tensor {min(rest)}{more}, unknown in RWKV-{layout.shape.version}", WRONG_MODEL)
    return fitted


def _bonus_key(key: str, tensors: Mapping[str, Array]) -> str:
    """5.0 and 5.1 call the bonus `time_faaaa`, or `time_first` where it is stored as a logarithm."""
    older = key.replace("time_faaaa", "time_first")
    return older if key not in tensors and older in tensors else key


def _without_unit_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)
