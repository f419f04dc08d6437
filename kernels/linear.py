"""Matrix products with weights arranged once for the machine they run on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class Linear:
    """`x @ weight.T` for a fixed weight.

    bfloat16 on a CPU goes through oneDNN with the weight packed at construction: 1.1 to 2.6 times the speed of plain
    `F.linear`, which packs at every call. The two operators are private to torch, so where one is missing or the
    processor has no bfloat16 the plain product is used.

    Args:
        weight: [out, in]; only the packed copy is kept where there is one.
    """

    def __init__(self, weight: Tensor) -> None:
        self.out_features, self.in_features = weight.shape
        self.packed = _can_pack(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] to [N, out], in the weight's dtype."""
        if self.packed and len(x):
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")
            return product
        if self.packed:
            return x.new_empty(0, self.out_features)
        return F.linear(x, self.weight)


class Linears:
    """Several matrices of one shape, each for an input of its own.

    On a GPU they are one product: where few rows decode, a launch costs as much as a small product takes.

    Args:
        weights: [out, in] each.
        together: whether as one product; None leaves it to where the weights are.
    """

    def __init__(self, weights: Sequence[Tensor], *, together: bool | None = None) -> None:
        together = weights[0].device.type != "cpu" if together is None else together
        self.weight = torch.stack(list(weights)).mT if together else None
        self.each = [] if together else [Linear(weight) for weight in weights]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """[n, N, in] to n of [N, out]; they may be parts of one tensor."""
        if self.weight is not None:
            return torch.bmm(x, self.weight).unbind()
        return [linear(one) for linear, one in zip(self.each, x, strict=True)]


class LowRanks:
    """Low-rank pairs, each for an input of its own: `up(down(x))`, with tanh in between in one of them.

    As one product each way where `Linears` has it so: their ranks are then filled up with zeros to the largest.

    Args:
        downs: [rank, in] each.
        ups: [out, rank] each.
        bent: which of them has the tanh.
    """

    def __init__(
        self, downs: Sequence[Tensor], ups: Sequence[Tensor], *, bent: int, together: bool | None = None
    ) -> None:
        self.bent = bent
        if downs[0].device.type != "cpu" if together is None else together:
            most = max(len(down) for down in downs)
            downs = [F.pad(down, (0, 0, 0, most - len(down))) for down in downs]
            ups = [F.pad(up, (0, most - up.shape[1])) for up in ups]
        self.downs, self.ups = Linears(downs, together=together), Linears(ups, together=together)

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """[n, N, in] to n of [N, out]."""
        if self.ups.weight is None:
            inner = [torch.tanh(one) if i == self.bent else one for i, one in enumerate(self.downs(x))]
            return [up(one) for up, one in zip(self.ups.each, inner, strict=True)]
        assert self.downs.weight is not None
        middle = torch.bmm(x, self.downs.weight)
        middle[self.bent].tanh_()
        return torch.bmm(middle, self.ups.weight).unbind()


def _can_pack(weight: Tensor) -> bool:
    """Whether oneDNN packs this weight here."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    operators = torch.ops.mkldnn  # empty where torch was built without oneDNN
    needed = ("_is_mkldnn_bf16_supported", "_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(operators, name) for name in needed) and bool(operators._is_mkldnn_bf16_supported())
