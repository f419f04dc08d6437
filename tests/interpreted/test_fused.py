"""The fused operators in Triton's interpreter: equal to their references, and to the parts they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.kernels.head_norm import head_norm, head_norm_reference
from rookery.kernels.relu_squared import relu_squared, relu_squared_reference
from rookery.kernels.rows import Rows
from rookery.kernels.shift_mix import shift_mix, shift_mix_reference
from rookery.kernels.wkv7_heads import wkv7_heads, wkv7_heads_reference

from .heads import random_heads

TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3}
MIXED = ([5, -1, 1, 0, -1, 2], [1, 1, 17, 0, 3, 2])
EDGES = ([4, 1, -1, 2, 5, 0], [0, 15, 1, 16, 33, 1])
NONE = ([1, 2], [0, 0])


@pytest.mark.parametrize(("adds", "of_present", "dtype"), [(False, True, torch.float32), (True, False, torch.float16)])
@pytest.mark.parametrize(
    ("slots", "lengths"),
    [([3], [1]), ([3, -1, 0], [1] * 3), ([*range(16, 0, -1), -1], [1] * 17), MIXED, EDGES, NONE, ([], [])],
)
def test_shift_mix_equals_its_reference(
    slots: list[int], lengths: list[int], adds: bool, of_present: bool, dtype: torch.dtype
) -> None:
    rows = Rows.pack(slots, lengths)
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).to(dtype)

    x, weight, bias, mu = normal(rows.tokens, 40), normal(40), normal(40), normal(3, 1, 40)
    added = normal(rows.tokens, 40) if adds else None
    pool = normal(17, 2, 40)
    expected_pool = pool.clone()
    total, mixed = shift_mix(x, added, weight, bias, mu, pool[:, 1], rows, of_present=of_present)
    expected_total, expected = shift_mix_reference(
        x, added, weight, bias, mu, expected_pool[:, 1], rows, of_present=of_present
    )
    assert torch.equal(total, expected_total)
    torch.testing.assert_close(mixed, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(pool, expected_pool, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("slots", "lengths", "first", "dtype"),
    [
        ([2, -1, 0], [1] * 3, False, torch.float16),
        (*MIXED, False, torch.float16),
        (*MIXED, True, torch.float32),
        (*EDGES, False, torch.float32),
    ],
)
def test_wkv7_heads_equals_its_reference(slots: list[int], lengths: list[int], first: bool, dtype: torch.dtype) -> None:
    rows = Rows.pack(slots, lengths, positions=range(3, 3 + len(slots)))
    inputs, weights, state = random_heads(rows.tokens, dtype, first=first)
    expected_state = state.clone()
    got = wkv7_heads(*inputs, weights, state, rows)
    expected = wkv7_heads_reference(*inputs, weights, expected_state, rows)
    assert got.dtype == dtype
    error = (got.float() - expected.float()).abs().max()
    assert float(error) <= TOLERANCE[dtype] * max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(state, expected_state, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(
    ("gated", "tokens", "dtype"),
    [
        (False, 0, torch.float32),
        (True, 1, torch.float32),
        (False, 3, torch.float16),
        (True, 17, torch.float16),
        (False, 17, torch.float32),
    ],
)
def test_head_norm_equals_its_reference(gated: bool, tokens: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(3)
    y, gate = (5 * torch.randn(tokens, 2, 20, generator=random) for _ in range(2))
    weight, bias = (torch.randn(40, generator=random) for _ in range(2))
    given = gate.view(tokens, 40).to(dtype) if gated else None
    got = head_norm(y, weight, bias, given, dtype)
    assert got.dtype == dtype
    expected = head_norm_reference(y, weight, bias, given, dtype)
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", [(3, 1000), (1, 1), (0, 8)])
def test_relu_squared_equals_its_reference(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    assert torch.equal(relu_squared(x), relu_squared_reference(x))
