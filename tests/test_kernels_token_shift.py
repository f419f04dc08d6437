"""Token shift, the rows it is told of, and the matrix product beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.kernels.linear import Linear
from rookery.kernels.rows import Rows
from rookery.kernels.token_shift import token_shift, token_shift_reference


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 5), max_size=6), data=st.data())
def test_any_rows_equal_the_reference(lengths: list[int], data: st.DataObject) -> None:
    slots = data.draw(st.permutations(range(8)))[: len(lengths)]
    slots = [-1 if data.draw(st.booleans()) else slot for slot in slots]
    rows = Rows.pack(slots, lengths)
    x, shift = torch.randn(rows.tokens, 3), torch.randn(8, 3)
    fast_shift, slow_shift = shift.clone(), shift.clone()
    assert torch.equal(token_shift(x, fast_shift, rows), token_shift_reference(x, slow_shift, rows))
    assert torch.equal(fast_shift, slow_shift)


def test_the_shift_may_be_a_view_of_the_pool() -> None:
    pool = torch.zeros(3, 4, 2, 5)
    x = torch.randn(4, 5)
    token_shift(x, pool[:, 2, 1], Rows.pack([2, 0], [1, 3]))
    assert torch.equal(pool[2, 2, 1], x[0]) and torch.equal(pool[0, 2, 1], x[3])
    pool[:, 2, 1] = 0
    assert not pool.any()


def test_rows_name_decode_rows_and_spans() -> None:
    rows = Rows.pack([4, 5, 6, 7], [1, 1, 0, 3])
    assert (rows.decode, rows.tokens, rows.starts.tolist()) == (2, 5, [0, 1, 2, 2, 5])
    assert [(slot.tolist(), span) for slot, span in rows.spans()] == [
        ([4], slice(0, 1)),
        ([5], slice(1, 2)),
        ([7], slice(2, 5)),
    ]
    assert [span for _, span in rows.spans(rows.decode)] == [slice(2, 5)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tokens", [0, 1, 5, 33])
def test_linear_is_the_plain_product(dtype: torch.dtype, tokens: int) -> None:
    weight, x = torch.randn(24, 40).to(dtype), torch.randn(tokens, 40).to(dtype)
    got = Linear(weight)(x)
    assert got.dtype == dtype
    expected = (x.double() @ weight.double().T).to(dtype)
    torch.testing.assert_close(got, expected, rtol=2e-2 if dtype != torch.float32 else 1e-5, atol=1e-2)
