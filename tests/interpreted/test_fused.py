"""The fused operators in Triton's interpreter: equal to their references, and to the parts they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.kernels.relu_squared import relu_squared, relu_squared_reference
from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix, shift_mix_reference
from rookery.kernels.wkv7_heads import HeadWeights, wkv7_heads, wkv7_heads_reference

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3}
MIXED = ([5, -1, 1, 0, -1, 2], [1, 1, 17, 0, 3, 2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize(("slots", "lengths"), [([3], [1]), ([*range(16, 0, -1), -1], [1] * 17), MIXED])
def test_shift_mix_equals_its_reference(slots: list[int], lengths: list[int], adds: bool, dtype: torch.dtype) -> None:
    rows = Rows.pack(slots, lengths)
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    x, weight, bias, mu = normal(rows.tokens, 40), normal(40), normal(40), normal(3, 1, 40)
    added = normal(rows.tokens, 40) if adds else None
    pool = normal(17, 2, 40)
    expected_pool = pool.clone()
    total, mixed = shift_mix(x, added, weight, bias, mu, pool[:, 1], rows)
    expected_total, expected = shift_mix_reference(x, added, weight, bias, mu, expected_pool[:, 1], rows)
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(mixed, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(pool, expected_pool, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("slots", "lengths"), [([2, -1, 0], [1] * 3), MIXED])
def test_wkv7_heads_equals_its_reference(slots: list[int], lengths: list[int], first: bool, dtype: torch.dtype) -> None:
    heads, head_size = 2, 20
    width = heads * head_size
    rows = Rows.pack(slots, lengths)
    random = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    r, w, k, v, a, g, v_first, v_share = (normal(rows.tokens, width).to(dtype) for _ in range(8))
    vectors = [normal(width) for _ in range(7)]
    w0, a0, v0, k_k, k_a, norm_weight, norm_bias = vectors
    weights = HeadWeights(
        w0=w0, a0=a0, v0=None if first else v0, k_k=k_k, k_a=k_a, r_k=normal(heads, head_size),
        norm_weight=norm_weight, norm_bias=norm_bias,
    )  # fmt: skip
    pool = normal(6, 3, heads, head_size, head_size)
    expected_pool = pool.clone()
    values = None if first else v_first
    shares = None if first else v_share
    got = wkv7_heads(r, w, k, v, a, g, values, shares, weights, pool[:, 1], rows)
    expected = wkv7_heads_reference(r, w, k, v, a, g, values, shares, weights, expected_pool[:, 1], rows)
    assert got.dtype == dtype
    error = (got.float() - expected.float()).abs().max()
    assert float(error) <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(pool, expected_pool, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 1000), (1, 1), (0, 8)])
def test_relu_squared_equals_its_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(relu_squared(x), relu_squared_reference(x))
