"""The sampling kernel in Triton's interpreter: the same tokens as `sampling` and `random` give, row by row."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rookery.kernels.sample import Penalties, Streams, sample, sample_reference
from rookery.kernels.sampling import Truncation
from rookery.kernels.triton import sample as triton_sample

SETTINGS = [  # temperature, top_k, top_p, min_p, top_p_first
    (0.0, 0, 1.0, 0.0, False),
    (1.0, 0, 1.0, 0.0, False),
    (0.7, 5, 1.0, 0.0, False),
    (1.3, 0, 0.6, 0.0, False),
    (1.3, 7, 0.6, 0.0, False),
    (1.3, 7, 0.6, 0.0, True),
    (0.5, 0, 0.9, 0.0, True),
    (1.0, 0, 1.0, 0.2, True),
    (1.5, 60, 0.95, 0.02, False),
    (1.0, 1, 1.0, 0.0, False),
    (1.0, 0, 0.0, 0.0, False),
    (2.0, 500, 0.5, 0.5, True),
]


def truncation(settings: list[tuple[float, int, float, float, bool]]) -> Truncation:
    temperature, top_k, top_p, min_p, top_p_first = zip(*settings, strict=True)
    return Truncation(
        temperature=torch.tensor(temperature, dtype=torch.float32),
        top_k=torch.tensor(top_k),
        top_p=torch.tensor(top_p, dtype=torch.float64),
        min_p=torch.tensor(min_p, dtype=torch.float64),
        typical_p=torch.ones(len(settings), dtype=torch.float64),
        top_p_first=torch.tensor(top_p_first),
    )


def streams(n: int, drawn: int = 0) -> Streams:
    return Streams(
        seed=torch.arange(n) * 7919 - 3, choice=torch.arange(n) % 3, drawn=torch.full((n,), drawn, dtype=torch.int64)
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("drawn", [0, 5])
def test_rows_of_different_settings_draw_as_the_reference(drawn: int) -> None:
    logits = 3 * normal(len(SETTINGS), 97)
    of_draw = streams(len(SETTINGS), drawn)
    got = sample(logits.clone(), truncation(SETTINGS), of_draw)
    assert got.tolist() == sample_reference(logits.clone(), truncation(SETTINGS), of_draw).tolist()


def test_vocabularies_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_sample, "BLOCK", 1024)
    logits = 3 * normal(3, 2500, seed=1)
    settings = truncation([(1.0, 0, 1.0, 0.0, False), (1.0, 40, 0.9, 0.0, False), (0.0, 0, 1.0, 0.0, False)])
    assert (
        sample(logits.clone(), settings, streams(3)).tolist()
        == sample_reference(logits.clone(), settings, streams(3)).tolist()
    )


def test_each_row_draws_below_its_own_limit() -> None:
    """As from the logits without what is above, whatever that is."""
    logits = 3 * normal(len(SETTINGS), 97, seed=2)
    settings, of_draw = truncation(SETTINGS), streams(len(SETTINGS))
    limits = torch.tensor([97, 50, 1, 64, 33, 90, 10, 70, 96, 3, 20, 65])
    logits[:, 90:] = torch.nan
    limits[0] = 90
    limits[8] = 89
    got = sample(logits.clone(), settings, of_draw, limits=limits)
    assert got.tolist() == sample_reference(logits.clone(), settings, of_draw, limits=limits).tolist()
    assert bool((got < limits).all()) and int(got[2]) == 0


def test_ties_follow_the_rules() -> None:
    """Top-k keeps the lower ids of equals, top-p all equals, greedy the lowest; -0 equals 0."""
    logits = torch.zeros(9, 40)
    logits[:, ::2] = -0.0
    logits[:, 30:] = -1.0
    settings = [(1.0, 7, 1.0, 0.0, False), (1.0, 0, 0.3, 0.0, False), (0.0, 0, 1.0, 0.0, False)] * 3
    got = sample(logits.clone(), truncation(settings), streams(9))
    assert got.tolist() == sample_reference(logits.clone(), truncation(settings), streams(9)).tolist()
    assert int(got[0::3].max()) < 7 <= int(got[1::3].max())
    assert set(got[2::3].tolist()) == {0}


def test_rows_that_cannot_be_drawn_do_not_harm_others() -> None:
    logits = normal(4, 40)
    logits[0] = -torch.inf
    logits[1, 3] = torch.nan
    logits[2, :39] = -torch.inf
    settings = truncation([(1.0, 0, 0.5, 0.0, False)] * 4)
    got = sample(logits.clone(), settings, streams(4))
    assert got.tolist() == [-1, -1, 39, int(sample_reference(logits[3:], settings, Streams(
        *(getattr(streams(4), name)[3:] for name in Streams.__slots__)))[0])]  # fmt: skip


def test_penalties_count_and_decay_over_steps() -> None:
    rows, vocab = 4, 30
    settings = truncation([(0.0, 0, 1.0, 0.0, False), (1.0, 0, 0.8, 0.0, False)] * 2)
    slots = torch.tensor([2, 0, -1, 1])

    def penalties() -> Penalties:
        return Penalties(
            counts=torch.zeros(3, vocab, dtype=torch.float64),
            free=(torch.arange(3 * vocab).view(3, vocab) % 4 == 0).byte(),
            slots=slots,
            repetition=torch.tensor([1.3, 1.0, 1.0, 1.1]),
            presence=torch.tensor([0.0, 0.4, 0.0, 0.2]),
            frequency=torch.tensor([0.5, 0.4, 0.0, 0.0]),
            decay=torch.tensor([0.9, 1.0, 1.0, 0.0], dtype=torch.float64),
        )

    got, expected = penalties(), penalties()
    logits = normal(rows, vocab, seed=3)
    for drawn in range(3):
        tokens = sample(logits.clone(), settings, streams(rows, drawn), got)
        assert tokens.tolist() == sample_reference(logits.clone(), settings, streams(rows, drawn), expected).tolist()
        assert torch.equal(got.counts, expected.counts)
    assert int((got.counts > 0).sum()) >= 3
