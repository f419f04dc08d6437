"""The training forms of WKV-7 against the recurrence in float64, where they are known to break: repeated keys."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.models.gosling.wkv7_op import Wkv7, native_library, wkv7_chunked, wkv7_native, wkv7_reference

FORMS = [
    pytest.param(wkv7_chunked, id="chunked"),
    pytest.param(
        wkv7_native,
        id="native",
        marks=pytest.mark.skipif(native_library() is None, reason="needs a C++ compiler"),
    ),
]


def inputs(tokens: int, *, repeated_keys: bool, starts: tuple[int, ...] = ()) -> list[Tensor]:
    """r, w, k, v, a, b, state of 2 rows and 2 heads; repeated keys come with removal near 1 and slow decay."""
    rng = torch.Generator().manual_seed(tokens)
    size = (2, tokens, 2, 64)
    r, k, v, key, rate, decay = (torch.randn(size, generator=rng) for _ in range(6))
    if repeated_keys:
        key = key[:, :1].expand(size)
    kk = torch.nn.functional.normalize(key, dim=-1)
    rate = torch.full(size, 0.98) if repeated_keys else torch.sigmoid(rate)
    w = torch.exp(-0.606531 * torch.sigmoid(3 * decay - (8 if repeated_keys else 1)))
    inside = torch.ones(2, tokens, 1, 1)
    for start in starts:
        inside[:, start] = 0
    state = torch.randn(2, 2, 64, 64, generator=rng)
    return [r, w * inside, k, v, -kk * inside, kk * rate, state]


def error(got: Tensor, expected: Tensor) -> float:
    return float(((got.double() - expected).abs().max() / expected.abs().max()).detach())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("repeated_keys", [False, True])
@pytest.mark.parametrize("tokens", [1, 16, 77, 256])
def test_equals_the_recurrence(form: Wkv7, repeated_keys: bool, tokens: int) -> None:
    single = [x.requires_grad_() for x in inputs(tokens, repeated_keys=repeated_keys)]
    double = [x.detach().double().requires_grad_() for x in single]
    y, state = form(*single)
    expected_y, expected_state = wkv7_reference(*double)
    assert error(y, expected_y) < 2e-6
    assert error(state, expected_state) < 2e-6

    pull_y, pull_state = torch.randn_like(y), torch.randn_like(state)
    got = torch.autograd.grad((y * pull_y).sum() + (state * pull_state).sum(), single)
    expected = torch.autograd.grad((expected_y * pull_y).sum() + (expected_state * pull_state).sum(), double)
    for g, e in zip(got, expected, strict=True):
        assert error(g, e) < 5e-6


@pytest.mark.parametrize("form", FORMS)
def test_a_document_that_begins_inside_a_row_knows_nothing_of_the_row(form: Wkv7) -> None:
    *sequence, state = inputs(90, repeated_keys=False, starts=(5, 33, 50))
    y, last = form(*[*sequence, state])
    alone_y, alone_last = form(*[*(x[:, 50:] for x in sequence), torch.zeros_like(state)])
    torch.testing.assert_close(y[:, 50:], alone_y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(last, alone_last, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_state_carries_over_a_cut(form: Wkv7) -> None:
    *sequence, state = inputs(100, repeated_keys=False)
    y, last = form(*[*sequence, state])
    left_y, middle = form(*[*(x[:, :37] for x in sequence), state])
    right_y, end = form(*[*(x[:, 37:] for x in sequence), middle])
    torch.testing.assert_close(torch.cat([left_y, right_y], dim=1), y, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(end, last, rtol=1e-4, atol=1e-5)
