"""Matrices that a GPU multiplies by at once: as one by one, alone and in whole models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from rookery.kernels.linear import Linears, LowRanks
from rookery.server.model import trunk

from . import test_model_goldens
from .checkpoints import random_model


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_one_product_is_the_products(tokens: int) -> None:
    weights, x = [normal(6, 4) + i for i in range(3)], normal(3, tokens, 4)
    for together in (True, False):
        for got, weight, one in zip(Linears(weights, together=together)(x), weights, x, strict=True):
            torch.testing.assert_close(got, one @ weight.T)


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("bent", [0, 2])
def test_low_rank_pairs_keep_their_ranks(bent: int, together: bool) -> None:
    downs, ups = [normal(rank, 8) for rank in (2, 5, 3)], [normal(8, rank) for rank in (2, 5, 3)]
    x = normal(3, 4, 8)
    got = LowRanks(downs, ups, bent=bent, together=together)(x)
    for i, (one, down, up) in enumerate(zip(x, downs, ups, strict=True)):
        inner = one @ down.T
        torch.testing.assert_close(got[i], (torch.tanh(inner) if i == bent else inner) @ up.T)


class Together(Linears):
    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__(weights, together=True)


class LowRanksTogether(LowRanks):
    def __init__(self, downs: list[Tensor], ups: list[Tensor], *, bent: int) -> None:
        super().__init__(downs, ups, bent=bent, together=True)


@pytest.mark.parametrize("name", ["micro-rwkv4", "micro-rwkv5.1", "micro-rwkv6", "micro-rwkv7", "random-5.0"])
def test_models_of_joined_products_equal_the_goldens(
    fixtures: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they are on a GPU."""
    plain = random_model("5.0") if name == "random-5.0" else None
    monkeypatch.setattr(trunk, "Linears", Together)
    monkeypatch.setattr(trunk, "LowRanks", LowRanksTogether)
    if plain is not None:
        tokens = torch.arange(20) % 97
        outcomes = [
            test_model_goldens.run(model, tokens, model.new_pool(2), chunk=7) for model in (plain, random_model("5.0"))
        ]
        torch.testing.assert_close(*outcomes, rtol=1e-5, atol=1e-5)
        return
    golden = test_model_goldens.load.__wrapped__(fixtures, name)  # not the one that other tests keep
    got = test_model_goldens.run(golden.model, golden.arrays["tokens_medium"], golden.model.new_pool(2), chunk=16)
    test_model_goldens.assert_near(got[golden.arrays["pos_medium"].long()], golden.arrays["logits_medium"])
