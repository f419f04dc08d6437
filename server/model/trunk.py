"""What all generations share: reading weights, embedding, norms, head, pools and tuned states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from rookery.kernels.cpu.arrays import Array
from rookery.kernels.head_norm import head_norm
from rookery.kernels.linear import Linear, Linears, LowRanks
from rookery.kernels.norms import LAYER_NORM_EPS

from ..state.pool import State
from ..state.torch_pool import TorchPool
from .checkpoint import Checkpoint
from .torch_arrays import to_torch


class Weights:
    """The arrays of a checkpoint under one prefix as tensors, cast and placed once.

    Args:
        prefix: what every key begins with, such as `blocks.3.att.`.
        dtype: the model's dtype, for what is not read as `exact`.
    """

    def __init__(
        self, tensors: Mapping[str, Array], prefix: str, *, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        self.tensors = tensors
        self.prefix = prefix
        self.dtype = dtype
        self.device = device

    def __contains__(self, key: str) -> bool:
        return self.prefix + key in self.tensors

    def under(self, prefix: str) -> Weights:
        """The tensors whose keys go on with `prefix`."""
        return Weights(self.tensors, self.prefix + prefix, dtype=self.dtype, device=self.device)

    def cast(self, key: str) -> Tensor:
        """In the model's dtype."""
        return to_torch(self.tensors[self.prefix + key]).to(device=self.device, dtype=self.dtype)

    def exact(self, key: str) -> Tensor:
        """In float32, for what must not be rounded: decay, bonus, the norm after WKV."""
        return to_torch(self.tensors[self.prefix + key]).to(device=self.device, dtype=torch.float32)

    def mixes(self, *keys: str) -> Tensor:
        """Several vectors [C] as [n, 1, C], to mix the tokens [N, C] in n ways at once."""
        return torch.stack([self.cast(key) for key in keys]).unsqueeze(1)

    def linear(self, key: str, *, divisor: int = 1) -> Linear:
        """A matrix stored [out, in]; the divisor is a power of two, so dividing rounds nothing."""
        weight = self.cast(key)
        return Linear(weight if divisor == 1 else weight / divisor)

    def low_rank(self, key: str) -> Linear:
        """A matrix of a low-rank pair, which checkpoints store [in, out]."""
        return Linear(self.cast(key).T.contiguous())

    def linears(self, *keys: str) -> Linears:
        """Matrices of one shape, stored [out, in], each for an input of its own."""
        return Linears([self.cast(key) for key in keys])

    def low_ranks(self, *names: str, bent: str) -> LowRanks:
        """The pairs `name`1 and `name`2; that of the name `bent` has a tanh in between."""
        downs, ups = ([self.cast(f"{name}{i}").T.contiguous() for name in names] for i in (1, 2))
        return LowRanks(downs, ups, bent=names.index(bent))

    def layer_norm(self, name: str) -> LayerNorm:
        return LayerNorm(self.cast(f"{name}.weight"), self.cast(f"{name}.bias"))

    def head_norm(self, name: str) -> HeadNorm:
        return HeadNorm(self.exact(f"{name}.weight"), self.exact(f"{name}.bias"))


class LayerNorm:
    """Layer norm over the last axis; statistics in float32, as torch keeps them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, LAYER_NORM_EPS)


class HeadNorm:
    """The norm after WKV and the gate, as `rookery.kernels.head_norm` has them."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, y: Tensor, gate: Tensor | None, dtype: torch.dtype) -> Tensor:
        """[N, H, D] float32 to [N, C] in `dtype`; the gate, [N, C], before its silu."""
        return head_norm(y, self.weight, self.bias, gate, dtype)


class Trunk:
    """A model without its layers: what comes before the first and after the last.

    Args:
        checkpoint: checked by its reader; nothing is checked again here.
        dtype: of matrices, residual stream and token shift; decay, bonus, WKV and group norm stay float32.
        wkv_dtype: float32 or float16, what pools keep WKV states in.
    """

    piece: int | None = None

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        wkv_dtype: torch.dtype = torch.float32,
    ) -> None:
        self.shape = checkpoint.shape
        self.dtype = dtype
        self.wkv_dtype = wkv_dtype
        self.device = torch.device(device)
        self.weights = Weights(checkpoint.tensors, "", dtype=dtype, device=device)
        # ln0 follows the embedding, so it is applied to the table once; in float32, before the cast.
        ln0 = LayerNorm(self.weights.exact("blocks.0.ln0.weight"), self.weights.exact("blocks.0.ln0.bias"))
        self.embedding = ln0(self.weights.exact("emb.weight")).to(dtype)
        self.ln_out = self.weights.layer_norm("ln_out")
        self.head = self.weights.linear("head.weight")
        self.tuned_state = checkpoint.tuned_state
        self.named_states = checkpoint.named_states

    def layer_weights(self) -> list[Weights]:
        """One `Weights` a layer; the trunk forgets the checkpoint, which the layers are about to take over."""
        layers = [self.weights.under(f"blocks.{layer}.") for layer in range(self.shape.layers)]
        del self.weights
        return layers

    def embed(self, token_ids: Tensor) -> Tensor:
        """[N] to [N, C], ln0 applied."""
        return F.embedding(token_ids, self.embedding)

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, C] to [n, vocab_size] float32."""
        return self.head(hidden).float()

    def new_pool(self, slots: int) -> TorchPool:
        """A pool of that many slots, in this model's dtype and on its device."""
        return TorchPool(self.shape, slots, dtype=self.dtype, device=self.device, wkv_dtype=self.wkv_dtype)

    def rest(self) -> None:
        """See `base.Model.rest`; here it all stays where it is."""

    def initial_state(self, name: str | None) -> State | None:
        """The tuned state of that name; for None the checkpoint's own, or None where it has none.

        Raises:
            KeyError: there is no state of that name.
        """
        return self.tuned_state if name is None else self.named_states[name]
