"""Random numbers, penalties, masks, truncations and draws, against slow independent implementations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from rookery.kernels import random, sampling

Floats = NDArray[np.float64]


def truncation(
    n: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_p: float = 1.0,
    top_p_first: bool = False,
) -> sampling.Truncation:
    """n rows of the same settings."""
    return sampling.Truncation(
        temperature=torch.full((n,), temperature, dtype=torch.float32),
        top_k=torch.full((n,), top_k, dtype=torch.int64),
        top_p=torch.full((n,), top_p, dtype=torch.float64),
        min_p=torch.full((n,), min_p, dtype=torch.float64),
        typical_p=torch.full((n,), typical_p, dtype=torch.float64),
        top_p_first=torch.full((n,), top_p_first),
    )


# --- an independent implementation: probabilities, sorting, loops -----------------------------------------------


def softmax(logits: Floats) -> Floats:
    p = np.exp(logits - logits.max())
    return np.asarray(p / p.sum())


def by_top_k(p: Floats, k: int) -> Floats:
    if k == 0 or k >= len(p):
        return p
    kept = sorted(range(len(p)), key=lambda i: (-p[i], i))[:k]
    return np.array([p[i] if i in kept else 0.0 for i in range(len(p))])


def by_top_p(p: Floats, top_p: float, whole: float) -> Floats:
    if top_p >= 1:
        return p
    running, cutoff = 0.0, 0.0
    for x in sorted(p, reverse=True):
        running, cutoff = running + x, x
        if running >= top_p * whole:
            break
    return np.where(p >= cutoff, p, 0.0)


def by_typical_p(p: Floats, typical_p: float) -> Floats:
    if typical_p >= 1:
        return p
    q = p / p.sum()
    entropy = -sum(x * math.log(x) for x in q if x > 0)
    surprise = [abs(-math.log(x) - entropy) if x > 0 else math.inf for x in q]
    running, cutoff = 0.0, 0.0
    for i in sorted(range(len(q)), key=lambda i: surprise[i]):
        running, cutoff = running + q[i], surprise[i]
        if running >= typical_p:
            break
    return np.array([p[i] if surprise[i] <= cutoff else 0.0 for i in range(len(p))])


def distribution(
    logits: Floats, temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float, top_p_first: bool
) -> Floats:
    """The probabilities a token is drawn with, step by step as the two orders are described."""
    if top_p_first:
        p = by_top_p(softmax(logits), top_p, 1.0)
        p = by_top_k(p, top_k)
    else:
        p = by_top_k(softmax(logits / temperature), top_k)
        p = by_top_p(p / p.sum(), top_p, 1.0)
    p = np.where(p >= min_p * p.max(), p, 0.0)
    p = by_typical_p(p, typical_p)
    if top_p_first:
        p = np.where(p > 0, (p / p.max()) ** (1.0 / temperature), 0.0)
    return np.asarray(p / p.sum())


# --- random numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # known answers of the Random123 library for philox4x32, 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3, k0, k1 = (np.array([word]) for word in (*counter, *key))
    assert tuple(word.item() for word in random.philox4x32((c0, c1, c2, c3), (k0, k1))) == expected


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**31), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_uniform_is_the_same_however_it_is_asked(seed: int, choice: int, start: int, count: int) -> None:
    together = random.uniform(seed, choice, start, count)
    one_by_one = np.concatenate([random.uniform(seed, choice, start + i, 1) for i in range(count)])
    assert np.array_equal(together, one_by_one)
    assert bool(((together >= 0) & (together < 1)).all())


def test_uniform_streams_differ_and_are_uniform() -> None:
    streams = [random.uniform(seed, choice, 0, 4096) for seed in (0, 1, -1, 1 << 32) for choice in (0, 1)]
    for stream in streams:
        observed = np.histogram(stream, 64, (0, 1))[0]
        assert float(((observed - 64) ** 2 / 64).sum()) < 110  # 63 degrees of freedom: p about 0.0002
    assert len({tuple(s[:4].tolist()) for s in streams}) == len(streams)


# --- penalties and masks ----------------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.floats(-2, 2), st.floats(-2, 2), st.floats(0.5, 2))
@settings(max_examples=50, deadline=None)
def test_sparse_penalties_equal_the_dense_reference(
    seed: int, presence: float, frequency: float, repetition: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 40, generator=generator)
    seen = torch.rand(3, 40, generator=generator) < 0.3
    counts = torch.rand(3, 40, generator=generator) * 3 * seen
    strengths = [torch.full((3,), x) for x in (repetition, presence, frequency)]
    expected = sampling.penalize_reference(logits, counts, seen, *strengths)
    rows, ids = seen.nonzero(as_tuple=True)
    got = logits.clone()
    sampling.penalize_(got, rows, ids, counts[rows, ids], *(x[rows] for x in strengths))
    assert got.equal(expected)


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 64, 100])
@pytest.mark.parametrize("words", [1, 2, 4])
def test_mask_bans_what_is_not_set(vocab_size: int, words: int) -> None:
    allowed = torch.rand(3, words * 32, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = [[sum(1 << b for b in range(32) if row[w * 32 + b]) for w in range(words)] for row in allowed.tolist()]
    bitmask = torch.tensor(packed, dtype=torch.int64).to(torch.int32)
    logits = torch.randn(3, vocab_size)
    expected = logits.clone()
    for row in range(3):
        for token in range(vocab_size):
            if token >= words * 32 or not allowed[row, token]:
                expected[row, token] = -torch.inf
    sampling.mask_(logits, bitmask)
    assert logits.equal(expected)


# --- truncation and draw ----------------------------------------------------------------------------------------

KEPT = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.2, 3),
        "top_k": st.sampled_from([0, 0, 1, 2, 5, 40, 1000]),
        "top_p": st.one_of(st.just(1.0), st.floats(0, 1)),
        "min_p": st.one_of(st.just(0.0), st.floats(0, 1)),
        "typical_p": st.one_of(st.just(1.0), st.floats(0.05, 1)),
        "top_p_first": st.booleans(),
    }
)


@given(st.integers(0, 2**32), st.integers(1, 700), st.floats(0.1, 6), KEPT)
@settings(max_examples=100, deadline=None)
def test_draw_follows_the_distribution_described(
    seed: int, vocab_size: int, spread: float, kept: dict[str, float | int | bool]
) -> None:
    """Every draw, for 16 random numbers, is the inverse of an independently computed cumulative distribution."""
    logits = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    expected = distribution(logits.double().numpy(), **kept)  # type: ignore[arg-type]
    uniforms = torch.from_numpy(random.uniform(seed, 0, 0, 16))
    rows, setting = logits.expand(16, -1), truncation(16, **kept)  # type: ignore[arg-type]
    edges = np.concatenate([[0.0], np.cumsum(expected)])
    reference = sampling.draw_reference(rows, setting, uniforms).tolist()
    for u, token, by_reference in zip(
        uniforms.tolist(), sampling.draw(rows, setting, uniforms).tolist(), reference, strict=True
    ):
        assert token == by_reference
        assert edges[token] - 1e-4 <= u <= edges[token + 1] + 1e-4
        assert expected[token] > 0


@pytest.mark.parametrize("vocab_size", [1, 63, 255, 256, 257, 1000, 5000])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_untruncated_draw_equals_the_reference(vocab_size: int, temperature: float) -> None:
    logits = torch.randn(40, vocab_size, generator=torch.Generator().manual_seed(1)) * 3
    uniforms = torch.from_numpy(random.uniform(5, 0, 0, 40))
    settings_ = truncation(40, temperature=temperature)
    got = sampling.draw_untruncated(logits, settings_.temperature, uniforms)
    assert got.equal(sampling.draw_reference(logits, settings_, uniforms))


@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize(
    "kept",
    [
        {"top_k": 50},
        {"top_k": 3000},
        {"top_p": 0.9},
        {"top_p": 0.3, "top_p_first": True, "temperature": 2.0},
        {"top_p": 0.999999},
        {"top_p": 0.95, "temperature": 2.0},
        {"min_p": 0.05},
        {"top_k": 20, "top_p": 0.6, "temperature": 0.7},
        {"top_k": 20, "top_p": 0.6, "temperature": 1.5, "top_p_first": True},
        {"typical_p": 0.8, "top_p": 0.99},
    ],
)
def test_candidates_do_not_change_the_draw_at_full_size(spread: float, kept: dict[str, float]) -> None:
    logits = torch.randn(4, 50277, generator=torch.Generator().manual_seed(2)) * spread
    uniforms = torch.from_numpy(random.uniform(6, 0, 0, 4))
    setting = truncation(4, **kept)  # type: ignore[arg-type]
    assert sampling.draw(logits, setting, uniforms).equal(sampling.draw_reference(logits, setting, uniforms))


@pytest.mark.parametrize("top_p_first", [False, True])
def test_banned_tokens_are_never_drawn(top_p_first: bool) -> None:
    logits = torch.randn(64, 300, generator=torch.Generator().manual_seed(3))
    banned = torch.rand(64, 300, generator=torch.Generator().manual_seed(4)) < 0.99
    banned[:, 7] = False
    logits.masked_fill_(banned, -torch.inf)
    uniforms = torch.linspace(0, 1 - 2**-53, 64, dtype=torch.float64)
    for setting in (truncation(64, top_p_first=top_p_first), truncation(64, top_k=299, top_p_first=top_p_first)):
        for ids in (
            sampling.draw(logits, setting, uniforms),
            sampling.draw_untruncated(logits, setting.temperature, uniforms),
        ):
            assert not bool(banned.gather(-1, ids.unsqueeze(-1)).any())


def test_ties() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 2.0, -1.0]] * 8)
    uniforms = torch.linspace(0, 0.999, 8, dtype=torch.float64)
    assert sampling.greedy(logits).tolist() == [1] * 8
    assert set(sampling.draw(logits, truncation(8, top_k=1), uniforms).tolist()) == {1}
    assert set(sampling.draw(logits, truncation(8, top_k=2), uniforms).tolist()) == {1, 3}
    assert set(sampling.draw(logits, truncation(8, top_p=0.0), uniforms).tolist()) == {1, 3, 4}


@pytest.mark.parametrize("vocab_size", [1, 200, 256, 65530])
def test_greedy_is_the_first_maximum(vocab_size: int) -> None:
    logits = torch.randint(0, 50, (9, vocab_size), generator=torch.Generator().manual_seed(0)).float()
    expected = [row.index(max(row)) for row in logits.tolist()]
    assert sampling.greedy(logits).tolist() == expected


@pytest.mark.parametrize("top_p_first", [False, True])
def test_frequencies_match_the_distribution(top_p_first: bool) -> None:
    """Chi-square over 20,000 draws of one seed's stream."""
    kept: dict[str, float | int | bool] = {
        "temperature": 1.7, "top_k": 12, "top_p": 0.9, "min_p": 0.02, "typical_p": 1.0, "top_p_first": top_p_first
    }  # fmt: skip
    logits = torch.randn(50, generator=torch.Generator().manual_seed(9)) * 1.5
    expected = distribution(logits.double().numpy(), **kept) * 20000  # type: ignore[arg-type]
    uniforms = torch.from_numpy(random.uniform(11, 3, 0, 20000))
    drawn = sampling.draw_reference(logits.expand(20000, -1), truncation(20000, **kept), uniforms)  # type: ignore[arg-type]
    observed = torch.bincount(drawn, minlength=50).numpy()
    assert (observed[expected == 0] == 0).all()
    likely = expected > 0
    statistic = float(((observed - expected)[likely] ** 2 / expected[likely]).sum())
    assert statistic < 35  # at most 11 degrees of freedom: p about 0.0002


def rows_of(n: int, vocab_size: int) -> Tensor:
    return torch.randn(n, vocab_size, generator=torch.Generator().manual_seed(n)) * 3


@pytest.mark.parametrize("vocab_size", [300, 4099])
def test_block_sums_do_not_depend_on_the_batch(vocab_size: int) -> None:
    rows = rows_of(32, vocab_size).exp()
    together = sampling.block_sums(rows)
    for i in range(32):
        assert together[i : i + 1].equal(sampling.block_sums(rows[i : i + 1]))
    torch.testing.assert_close(together.sum(-1), rows.double().sum(-1), rtol=1e-5, atol=0)
