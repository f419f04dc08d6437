"""RWKV-7 for training: parameters named and shaped as in the official checkpoints, equations as in the paper.

Sources: RWKV-7, arXiv 2503.14456; initial values as in RWKV-LM `RWKV-v7/train_temp/src/model.py`. Axes: B rows,
T tokens, H heads, N head size, C = H * N. Rows may hold several documents one after the other: at a token
where `starts` is set, state and token shift are those of an empty session, so packed text trains what a
fresh session computes.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .wkv7_op import fastest, wkv7_chunked

DECAY_SCALE = math.exp(-0.5)


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a model; the ranks are those of the small products for decay, learning rate, value and gate."""

    vocab_size: int
    width: int = 128
    layers: int = 4
    head_size: int = 64
    decay_rank: int = 32
    rate_rank: int = 32
    value_rank: int = 32
    gate_rank: int = 64

    @property
    def heads(self) -> int:
        return self.width // self.head_size


@dataclass(slots=True)
class State:
    """What a row remembers: per layer the last inputs of both mixings [B, C] and the WKV state [B, H, N, N]."""

    time_shift: list[Tensor]
    channel_shift: list[Tensor]
    wkv: list[Tensor]

    @classmethod
    def empty(cls, shape: Shape, rows: int, device: torch.device | None = None) -> "State":
        def zeros(*sizes: int) -> list[Tensor]:
            return [torch.zeros(rows, *sizes, device=device) for _ in range(shape.layers)]

        size = shape.head_size
        return cls(zeros(shape.width), zeros(shape.width), zeros(shape.heads, size, size))

    def detach(self) -> "State":
        """A copy without its history: gradients reach back one step, the memory further."""
        return State(
            *(
                [x.detach().float().contiguous().clone() for x in kind]
                for kind in (self.time_shift, self.channel_shift, self.wkv)
            )
        )


def shifted(x: Tensor, last: Tensor, starts: Tensor) -> Tensor:
    """The token before each token; zeros before a document. x [B, T, C], last [B, C], starts [B, T]."""
    before = torch.cat([last.unsqueeze(1).to(x.dtype), x[:, :-1]], dim=1)
    return before.masked_fill(starts.unsqueeze(-1), 0.0)


def _zigzag(shape: Shape) -> Tensor:
    """-1 to 1 along each head, steep at both ends: spreads decay and learning rate inside a head."""
    middle = (shape.head_size - 1) / 2
    x = (torch.arange(shape.width) % shape.head_size - middle) / middle
    return x * x.abs()


def _orthogonal(rows: int, columns: int, gain: float) -> nn.Parameter:
    weight = torch.empty(rows, columns)
    nn.init.orthogonal_(weight, gain=gain * max(1.0, math.sqrt(rows / columns)))
    return nn.Parameter(weight)


def _uniform(rows: int, columns: int, bound: float) -> nn.Linear:
    linear = nn.Linear(columns, rows, bias=False)
    nn.init.uniform_(linear.weight, -bound, bound)
    return linear


class TimeMixing(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        C = shape.width
        depth = layer / max(shape.layers - 1, 1)  # 0 to 1
        rest = 1 - layer / shape.layers  # 1 to almost 0
        channel = torch.arange(C) / C
        ramp = torch.arange(C) / (C - 1)
        zigzag = _zigzag(shape)

        def row(values: Tensor) -> nn.Parameter:
            return nn.Parameter(values.view(1, 1, C).clone())

        self.x_r = row(1 - channel ** (0.2 * rest))
        self.x_w = row(1 - channel ** (0.9 * rest))
        self.x_k = row(1 - channel ** (0.7 * rest))
        self.x_v = row(1 - channel ** (0.7 * rest))
        self.x_a = row(1 - channel ** (0.9 * rest))
        self.x_g = row(1 - channel ** (0.2 * rest))

        self.w0 = row(-5.5 + 6 * ramp ** (1 + depth**0.3) + 2.5 * zigzag)
        self.w1 = nn.Parameter(torch.zeros(C, shape.decay_rank))
        self.w2 = _orthogonal(shape.decay_rank, C, 0.1)
        self.a0 = row(-0.19 + 0.3 * zigzag + 0.4 * (ramp - 0.5))
        self.a1 = nn.Parameter(torch.zeros(C, shape.rate_rank))
        self.a2 = _orthogonal(shape.rate_rank, C, 0.1)
        if layer > 0:  # layer 0 is where the values come from
            self.v0 = row(0.73 - 0.4 * (ramp - 0.5))
            self.v1 = nn.Parameter(torch.zeros(C, shape.value_rank))
            self.v2 = _orthogonal(shape.value_rank, C, 0.1)
        self.g1 = nn.Parameter(torch.zeros(C, shape.gate_rank))
        self.g2 = _orthogonal(shape.gate_rank, C, 0.1)
        self.k_k = row(0.71 - 0.1 * (ramp - 0.5))
        self.k_a = row(torch.full((C,), 1.02))
        self.r_k = nn.Parameter(torch.full((shape.heads, shape.head_size), -0.04))

        bound = 0.5 / math.sqrt(C)
        self.receptance = _uniform(C, C, bound)
        self.key = _uniform(C, C, bound / 10)
        self.value = _uniform(C, C, bound)
        self.output = _uniform(C, C, 0.0)
        self.ln_x = nn.GroupNorm(shape.heads, C, eps=64e-5)
        self.wkv7_on_cpu = fastest(shape.head_size)

    def forward(
        self, x: Tensor, starts: Tensor, last: Tensor, wkv: Tensor, v_first: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the output [B, T, C], the new WKV state and v_first, layer 0's values [B, T, C]."""
        B, T, C = x.shape
        H, N = self.shape.heads, self.shape.head_size
        step = shifted(x, last, starts) - x
        xr, xw, xk = x + step * self.x_r, x + step * self.x_w, x + step * self.x_k
        xv, xa, xg = x + step * self.x_v, x + step * self.x_a, x + step * self.x_g

        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        decay = self.w0 + (torch.tanh(xw @ self.w1) @ self.w2).float()
        w = torch.exp(-DECAY_SCALE * torch.sigmoid(decay))
        a = torch.sigmoid(self.a0 + (xa @ self.a1) @ self.a2)
        g = torch.sigmoid(xg @ self.g1) @ self.g2
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * torch.sigmoid(self.v0 + (xv @ self.v1) @ self.v2)

        kk = F.normalize((k * self.k_k).float().view(B, T, H, N), dim=-1)
        k = k * (1 + (a - 1) * self.k_a)

        r, k, v, w, a = (z.float().view(B, T, H, N) for z in (r, k, v, w, a))
        inside = (~starts).view(B, T, 1, 1)  # a document begins with nothing kept, nothing removed
        wkv7 = self.wkv7_on_cpu if x.device.type == "cpu" else wkv7_chunked
        with torch.autocast(x.device.type, enabled=False):  # the state is float32, always
            y, wkv = wkv7(r, w * inside, k, v, -kk * inside, kk * a, wkv)

        y = self.ln_x(y.view(B * T, C)).view(B, T, H, N)
        y = y + (r * k * self.r_k).sum(-1, keepdim=True) * v
        out: Tensor = self.output(y.view(B, T, C) * g)
        return out, wkv, v_first


class ChannelMixing(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        C = shape.width
        rest = 1 - layer / shape.layers
        self.x_k = nn.Parameter((1 - (torch.arange(C) / C) ** (rest**4)).view(1, 1, C))
        self.key = _uniform(4 * C, C, 0.5 / math.sqrt(C))
        self.value = _uniform(C, 4 * C, 0.0)

    def forward(self, x: Tensor, starts: Tensor, last: Tensor) -> Tensor:
        k = self.key(x + (shifted(x, last, starts) - x) * self.x_k)
        out: Tensor = self.value(torch.relu(k) ** 2)
        return out


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int) -> None:
        super().__init__()
        if layer == 0:
            self.ln0 = nn.LayerNorm(shape.width)
        self.ln1 = nn.LayerNorm(shape.width)
        self.ln2 = nn.LayerNorm(shape.width)
        self.att = TimeMixing(shape, layer)
        self.ffn = ChannelMixing(shape, layer)


class Gosling(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.emb = nn.Embedding(shape.vocab_size, shape.width)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        self.blocks = nn.ModuleList(Block(shape, layer) for layer in range(shape.layers))
        self.ln_out = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocab_size, bias=False)
        gain = 0.5 * max(1.0, math.sqrt(shape.vocab_size / shape.width))
        nn.init.orthogonal_(self.head.weight, gain=gain)

    def hidden(self, tokens: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
        """tokens, starts: [B, T]. Returns what the head reads, [B, T, C], and the state after the last token."""
        time_shift, channel_shift, wkv = [], [], []
        x = self.emb(tokens)
        v_first: Tensor | None = None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if layer == 0:
                x = block.ln0(x)
            z = block.ln1(x)
            time_shift.append(z[:, -1])
            out, after, v_first = block.att(z, starts, state.time_shift[layer], state.wkv[layer], v_first)
            wkv.append(after)
            x = x + out
            z = block.ln2(x)
            channel_shift.append(z[:, -1])
            x = x + block.ffn(z, starts, state.channel_shift[layer])
        return self.ln_out(x), State(time_shift, channel_shift, wkv)

    def forward(self, tokens: Tensor, starts: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, T, vocab_size] and the new state."""
        x, state = self.hidden(tokens, starts, state)
        logits: Tensor = self.head(x)
        return logits, state


def save(model: Gosling, path: Path, dtype: torch.dtype) -> None:
    """Write the weights in the official layout, by rename, so that a reader never meets half a file."""
    tensors = {k: v.detach().to(dtype).contiguous() for k, v in model.state_dict().items()}
    unfinished = path.with_suffix(".unfinished")
    save_file(tensors, unfinished, metadata={"format": "pt"})
    unfinished.chmod(0o644)
    unfinished.rename(path)


def load(path: Path) -> Gosling:
    """A float32 model from the official layout; every size is read from the tensors."""
    tensors = {k: v.float() for k, v in load_file(path).items()}
    vocab_size, width = tensors["emb.weight"].shape
    shape = Shape(
        vocab_size=vocab_size,
        width=width,
        layers=1 + max(int(k.split(".")[1]) for k in tensors if k.startswith("blocks.")),
        head_size=tensors["blocks.0.att.r_k"].shape[1],
        decay_rank=tensors["blocks.0.att.w1"].shape[1],
        rate_rank=tensors["blocks.0.att.a1"].shape[1],
        value_rank=tensors["blocks.1.att.v1"].shape[1],
        gate_rank=tensors["blocks.0.att.g1"].shape[1],
    )
    model = Gosling(shape)
    model.load_state_dict(tensors)
    return model
