"""The layers of each version of RWKV as native ops; equations and letters are those of rwkv4.py to rwkv7.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from rookery.kernels.cpu.arrays import FloatArray
from rookery.kernels.cpu.library import Act, Format, Kind
from rookery.kernels.cpu.packed import MEETS, Activations, Packed
from rookery.kernels.norms import HEAD_NORM_EPS

from .kept import Kept
from .native_program import Program


class Layers:
    """Writes a version's layers into a program; `x` is the residual stream."""

    def __init__(self, step: Program, kept: Kept, x: Activations) -> None:
        self.step, self.kept, self.x = step, kept, x
        self.shape = kept.shape
        self.full, self.narrow = MEETS[kept.format], MEETS[kept.narrow]
        self.r, self.k, self.v, self.g, self.y = (step.buffer(self.shape.mix_width) for _ in range(5))
        self.h_packed = self._mixed(self.shape.ffn_width)
        self.h = step.buffer(self.shape.ffn_width) if self.full == Format.INT8 else self.h_packed
        self.y_packed = self._mixed(self.shape.mix_width)
        self.x_r, self.x_k, self.x_v, self.x_g = (self._mixed(self.shape.width) for _ in range(4))

    def _mixed(self, width: int) -> Activations:
        """A buffer that meets the big matrices."""
        return self.step.buffer(width, self.full)

    def shift_offset(self, layer: int, which: int) -> int:
        """Where the token shift of time mixing (0) or channel mixing (1) lies in a slot."""
        return (2 * layer + which) * self.shape.width

    def project(self, prefix: str, *parts: tuple[str, Activations, Activations, Act]) -> None:
        """Big matrices side by side: name, input, output, what becomes of the product."""
        step, kept = self.step, self.kept
        step.phase(*(step.matmul(kept.matrix(f"{prefix}{n}.weight"), source, to, act) for n, source, to, act in parts))

    def low_rank(self, *pairs: tuple[Packed, Activations, Act, Packed, Activations]) -> None:
        """Low-rank pairs side by side: down, input, act between, up, output."""
        step = self.step
        lows = [step.buffer(down.outputs, self.narrow) for down, *_ in pairs]
        step.phase(*(step.matmul(down, x, low, act) for low, (down, x, act, *_) in zip(lows, pairs, strict=True)))
        step.phase(*(step.matmul(up, low, to) for low, (*_, up, to) in zip(lows, pairs, strict=True)))

    def add(self, key: str, source: Activations, packed: Activations, gate: Activations | None = None) -> None:
        """x += (gate *) matrix @ source; `packed` is where the source goes in the format the matrix meets."""
        if self.full != Format.F32 and source is not packed:
            self.step.phase(self.step.op(Kind.PACK, inputs=[source], out=[packed]))
            source = packed
        act = Act.ADD if gate is None else Act.ADD_GATED
        self.step.phase(self.step.matmul(self.kept.matrix(key), source, self.x, act, gate))

    def mix(self, layer: int, which: int, outputs: Sequence[tuple[FloatArray | None, Activations]]) -> None:
        """Norm and token shift before time mixing (0) or channel mixing (1)."""
        norm = self.kept.norm(f"blocks.{layer}.ln{which + 1}")
        self.step.phase(self.step.mix(self.x, norm, outputs, offset=self.shift_offset(layer, which)))

    def matrix_state(
        self, kind: Kind, layer: int, inputs: Sequence[Activations | None], vectors: list[FloatArray]
    ) -> None:
        """WKV of RWKV-5 to 7 with its norm and gate, into y."""
        heads, size = self.shape.heads, self.shape.head_size
        op = self.step.op(
            kind,
            inputs=inputs,
            out=[self.y],
            vectors=vectors,
            heads=heads,
            head_size=size,
            offset=layer * heads * size * size,
            eps=HEAD_NORM_EPS,
        )
        self.step.phase(op)

    def gated_channel_mixing(self, layer: int, mu_r: FloatArray, mu_k: FloatArray) -> None:
        """Of RWKV-4 to 6."""
        ffn = f"blocks.{layer}.ffn."
        self.mix(layer, 1, [(mu_r, self.x_r), (mu_k, self.x_k)])
        self.project(ffn, ("receptance", self.x_r, self.r, Act.SIGMOID), ("key", self.x_k, self.h, Act.RELU2))
        self.add(f"{ffn}value.weight", self.h, self.h_packed, self.r)


class Rwkv4Layers(Layers):
    def write(self, layer: int) -> None:
        kept, att = self.kept, f"blocks.{layer}.att."
        shares = {name: 1 - kept.vector(f"{att}time_mix_{name}") for name in "rkv"}
        self.mix(layer, 0, [(shares["r"], self.x_r), (shares["k"], self.x_k), (shares["v"], self.x_v)])
        self.project(
            att,
            ("receptance", self.x_r, self.r, Act.SIGMOID),
            ("key", self.x_k, self.k, Act.NONE),
            ("value", self.x_v, self.v, Act.NONE),
        )
        self.write_wkv(layer, att)
        self.add(f"{att}output.weight", self.y, self.y_packed)
        ffn = f"blocks.{layer}.ffn.time_mix_"
        self.gated_channel_mixing(layer, 1 - kept.vector(f"{ffn}r"), 1 - kept.vector(f"{ffn}k"))

    def write_wkv(self, layer: int, att: str) -> None:
        vectors = [-np.exp(self.kept.vector(f"{att}time_decay")), self.kept.vector(f"{att}time_first")]
        offset = layer * 3 * self.shape.mix_width
        inputs = [self.r, self.k, self.v]
        self.step.phase(self.step.op(Kind.WKV4, inputs=inputs, out=[self.y], vectors=vectors, offset=offset))


class Rwkv5Layers(Layers):
    def write(self, layer: int) -> None:
        kept, att = self.kept, f"blocks.{layer}.att."
        parts = [
            ("receptance", "r", self.x_r, self.r),
            ("key", "k", self.x_k, self.k),
            ("value", "v", self.x_v, self.v),
        ]
        gated = self.shape.version != "5.0"
        if gated:
            parts.append(("gate", "g", self.x_g, self.g))
        self.mix(layer, 0, [(1 - kept.vector(f"{att}time_mix_{letter}"), to) for _, letter, to, _ in parts])
        self.project(att, *((name, source, to, Act.NONE) for name, _, source, to in parts))
        older = f"{att}time_first" in kept
        bonus = np.exp(kept.vector(f"{att}time_first")) if older else kept.vector(f"{att}time_faaaa")
        vectors = [self._per_channel(kept.vector(f"{att}time_decay")), self._per_channel(bonus)]
        inputs = [self.r, self.k, self.v, self.g if gated else None]
        self.matrix_state(Kind.WKV6, layer, inputs, vectors + kept.norm(f"{att}ln_x"))
        self.add(f"{att}output.weight", self.y, self.y_packed)
        ffn = f"blocks.{layer}.ffn.time_mix_"
        self.gated_channel_mixing(layer, 1 - kept.vector(f"{ffn}r"), 1 - kept.vector(f"{ffn}k"))

    def _per_channel(self, x: FloatArray) -> FloatArray:
        """[H] (5.0 and 5.1) or [H * D] to [H * D]."""
        return np.broadcast_to(x.reshape(self.shape.heads, -1), (self.shape.heads, self.shape.head_size)).flatten()


class Rwkv6Layers(Layers):
    def __init__(self, step: Program, kept: Kept, x: Activations) -> None:
        super().__init__(step, kept, x)
        width = self.shape.width
        self.normed, self.before = step.buffer(width), step.buffer(width)
        self.x_x, self.x_w = (step.buffer(width, self.narrow) for _ in range(2))
        self.shares = [step.buffer(width) for _ in "wkvrg"]
        self.speed = step.buffer(self.shape.mix_width)

    def write(self, layer: int) -> None:
        kept, step, att = self.kept, self.step, f"blocks.{layer}.att."
        everything = np.ones(self.shape.width, np.float32)  # a share of one is the token before
        mu_x = kept.vector(f"{att}time_maa_x")
        self.mix(layer, 0, [(None, self.normed), (everything, self.before), (mu_x, self.x_x)])
        pair = [f"{att}time_maa_w1", f"{att}time_maa_w2"]
        self.low_rank(
            *(
                (kept.matrix(f"{pair[0]}.{i}"), self.x_x, Act.TANH, kept.matrix(f"{pair[1]}.{i}"), share)
                for i, share in enumerate(self.shares)
            )
        )
        mixed = [self.x_w, self.x_k, self.x_v, self.x_r, self.x_g]
        mu = [kept.vector(f"{att}time_maa_{name}") for name in "wkvrg"]
        step.phase(step.op(Kind.LERP, inputs=[self.normed, self.before, *self.shares], out=mixed, vectors=mu))
        self.project(
            att,
            ("receptance", self.x_r, self.r, Act.NONE),
            ("key", self.x_k, self.k, Act.NONE),
            ("value", self.x_v, self.v, Act.NONE),
            ("gate", self.x_g, self.g, Act.NONE),
        )
        decay = kept.matrix(f"{att}time_decay_w1"), kept.matrix(f"{att}time_decay_w2")
        self.low_rank((decay[0], self.x_w, Act.TANH, decay[1], self.speed))
        vectors = [kept.vector(f"{att}time_decay"), kept.vector(f"{att}time_faaaa"), *kept.norm(f"{att}ln_x")]
        self.matrix_state(Kind.WKV6, layer, [self.r, self.k, self.v, self.g, self.speed], vectors)
        self.add(f"{att}output.weight", self.y, self.y_packed)
        ffn = f"blocks.{layer}.ffn.time_maa_"
        self.gated_channel_mixing(layer, kept.vector(f"{ffn}r"), kept.vector(f"{ffn}k"))


class Rwkv7Layers(Layers):
    def __init__(self, step: Program, kept: Kept, x: Activations) -> None:
        super().__init__(step, kept, x)
        width = self.shape.width
        self.x_w, self.x_a, self.x_g, self.x_v_low = (step.buffer(width, self.narrow) for _ in range(4))
        self.log_decay, self.a, self.v_share, self.v_first = (step.buffer(self.shape.mix_width) for _ in range(4))

    def write(self, layer: int) -> None:
        kept, att, ffn, first = self.kept, f"blocks.{layer}.att.", f"blocks.{layer}.ffn.", layer == 0
        mixes = [("r", self.x_r), ("k", self.x_k), ("v", self.x_v), ("w", self.x_w), ("a", self.x_a), ("g", self.x_g)]
        pairs = [
            ("w", self.x_w, Act.TANH, self.log_decay),
            ("a", self.x_a, Act.NONE, self.a),
            ("g", self.x_g, Act.SIGMOID, self.g),
        ]
        if not first:  # layer 0 gives the values the others mix with
            mixes.append(("v", self.x_v_low))
            pairs.append(("v", self.x_v_low, Act.NONE, self.v_share))
        self.mix(layer, 0, [(kept.vector(f"{att}x_{name}"), to) for name, to in mixes])
        self.project(
            att,
            ("receptance", self.x_r, self.r, Act.NONE),
            ("key", self.x_k, self.k, Act.NONE),
            ("value", self.x_v, self.v_first if first else self.v, Act.NONE),
        )
        self.low_rank(
            *(
                (kept.matrix(f"{att}{name}1"), source, act, kept.matrix(f"{att}{name}2"), to)
                for name, source, act, to in pairs
            )
        )
        vectors = [kept.vector(att + name) for name in ("w0", "a0", "k_k", "k_a", "r_k")] + kept.norm(f"{att}ln_x")
        inputs = [self.r, self.log_decay, self.k, self.v_first if first else self.v, self.a, self.g]
        if not first:
            vectors.append(kept.vector(f"{att}v0"))
            inputs += [self.v_share, self.v_first]
        self.matrix_state(Kind.WKV7, layer, inputs, vectors)
        self.add(f"{att}output.weight", self.y, self.y_packed)
        self.mix(layer, 1, [(kept.vector(f"{ffn}x_k"), self.x_k)])
        self.project(ffn, ("key", self.x_k, self.h, Act.RELU2))
        self.add(f"{ffn}value.weight", self.h, self.h_packed)


def write_layers(step: Program, kept: Kept, x: Activations) -> None:
    """All layers of the checkpoint's version."""
    writers: dict[str, Callable[[Program, Kept, Activations], Rwkv4Layers | Rwkv5Layers | Rwkv6Layers | Rwkv7Layers]]
    writers = {"4": Rwkv4Layers, "5": Rwkv5Layers, "6": Rwkv6Layers, "7": Rwkv7Layers}
    layers = writers[kept.shape.version[0]](step, kept, x)
    for layer in range(kept.shape.layers):
        layers.write(layer)
