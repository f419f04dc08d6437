"""Token shift in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift, token_shift_reference


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("slots", "lengths"),
    [
        ([3], [1]),
        ([3, -1, 0], [1, 1, 1]),
        ([*range(16, 0, -1), -1], [1] * 17),
        ([5, -1, 1, 0, -1, 2, 4], [1, 1, 17, 0, 3, 33, 2]),
        ([1, 2], [0, 0]),
        ([], []),
    ],
)
def test_rows_equal_the_reference(slots: list[int], lengths: list[int], dtype: torch.dtype) -> None:
    rows = Rows.pack(slots, lengths)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(rows.tokens, 40, generator=random).to(dtype)
    pool = torch.randn(17, 2, 40, generator=random).to(dtype)
    expected = pool.clone()
    assert torch.equal(token_shift(x, pool[:, 1], rows), token_shift_reference(x, expected[:, 1], rows))
    assert torch.equal(pool, expected)
