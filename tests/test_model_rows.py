"""A row's numbers do not depend on its batch mates, on how its tokens were cut, or on padding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.kernels.rows import Rows
from rookery.server.model.base import Model
from rookery.server.model.shape import Version
from rookery.server.state.pool import State

from .arrays import Held, held
from .checkpoints import UNUSUAL, random_model

VERSIONS = list(UNUSUAL)


def tokens_of(count: int, seed: int) -> torch.Tensor:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed))


def alone(model: Model, tokens: torch.Tensor, start: State) -> tuple[torch.Tensor, Held]:
    """Logits and state of one row run by itself from a state."""
    pool = model.new_pool(1)
    pool.write(0, start)
    hidden = model.forward(tokens, Rows.pack([0], [len(tokens)]), pool)
    return model.logits(hidden), held(pool, 0)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_mixed_batch_equals_each_row_alone(version: Version) -> None:
    model = random_model(version)
    pool = model.new_pool(8)
    for slot in range(8):  # histories of different lengths
        history = tokens_of(3 * slot + 1, slot)
        model.forward(history, Rows.pack([slot], [len(history)]), pool)
    before = [held(pool, slot) for slot in range(8)]
    states = [pool.save(slot) for slot in range(8)]
    slots, lengths = [5, 0, -1, 3, 6, 1, 4], [1, 1, 1, 20, 0, 2, 33]
    tokens = tokens_of(sum(lengths), 99)
    logits = model.logits(model.forward(tokens, Rows.pack(slots, lengths), pool))
    parts = zip(slots, torch.split(tokens, lengths), torch.split(logits, lengths), strict=True)
    for slot, part, got in parts:
        if slot == -1 or not len(part):
            continue
        expected, state = alone(model, part, states[slot])
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(held(pool, slot).wkv, state.wkv, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(held(pool, slot).shift, state.shift, rtol=1e-5, atol=1e-5)
    for slot in (2, 6, 7):  # not in the batch, or without tokens
        assert torch.equal(held(pool, slot).wkv, before[slot].wkv)
        assert torch.equal(held(pool, slot).shift, before[slot].shift)


@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=8, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_any_cut_of_a_prompt_gives_the_same(version: Version, cuts: list[int]) -> None:
    model = random_model(version)
    tokens = tokens_of(60, 1)
    pool = model.new_pool(2)
    pieces = [piece for piece in tokens.tensor_split(torch.tensor(cuts).cumsum(0)) if len(piece)]
    hidden = torch.cat([model.forward(piece, Rows.pack([1], [len(piece)]), pool) for piece in pieces])
    expected = model.forward(tokens, Rows.pack([0], [60]), pool)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(held(pool, 1).wkv, held(pool, 0).wkv, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_one_token_a_thousand_times_stays_finite_and_true(version: Version) -> None:
    model = random_model(version)
    pool = model.new_pool(2)
    tokens = torch.full((200,), 7)
    hidden = model.forward(tokens, Rows.pack([0], [200]), pool)
    stepwise = torch.cat([model.forward(token, Rows.pack([1], [1]), pool) for token in torch.split(tokens, 1)])
    torch.testing.assert_close(hidden[:64], stepwise[:64], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(hidden, stepwise, rtol=1e-2, atol=1e-2)  # all tokens alike: rounding piles up one way
    for _ in range(4):
        hidden = model.forward(tokens, Rows.pack([0], [200]), pool)
    assert hidden.isfinite().all() and pool.wkv.isfinite().all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_without_tokens_changes_nothing(version: Version, dtype: torch.dtype) -> None:
    model = random_model(version, dtype=dtype)
    pool = model.new_pool(2)
    before = held(pool, 0)
    hidden = model.forward(torch.empty(0, dtype=torch.int64), Rows.pack([0], [0]), pool)
    assert hidden.shape == (0, model.shape.width)
    assert torch.equal(held(pool, 0).wkv, before.wkv)


@pytest.mark.parametrize("version", VERSIONS)
def test_pools_are_of_the_models_kind(version: Version) -> None:
    model = random_model(version, dtype=torch.bfloat16)
    pool = model.new_pool(3)
    assert (pool.shift.dtype, pool.wkv.dtype) == (torch.bfloat16, torch.float32)
    assert pool.wkv.shape[2:] == model.shape.wkv_shape
    fresh = held(pool, 0)
    model.forward(tokens_of(5, 0), Rows.pack([0], [5]), pool)
    pool.copy(0, [2])
    assert torch.equal(held(pool, 2).wkv, held(pool, 0).wkv)
    pool.reset([0, 2])
    assert torch.equal(held(pool, 0).wkv, fresh.wkv) and torch.equal(held(pool, 2).shift, fresh.shift)
    assert model.initial_state(None) is None
    with pytest.raises(KeyError):
        model.initial_state("no such state")
