"""The native sampler, on every tier of this machine, against the torch one: the same tokens for the same seeds."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.kernels import random, sampling
from rookery.kernels.cpu.arrays import Array
from rookery.kernels.cpu.library import Team, library
from rookery.kernels.cpu.sample import Fault, sample_rows
from rookery.server.engine import torch_rows
from rookery.server.engine.choice_sampling import ChoiceSampling
from rookery.server.engine.native_row import NativeRow
from rookery.server.engine.request import SamplingParams
from rookery.server.engine.sampler import Sampler

if library() is None:
    pytest.skip("the native library is not built here", allow_module_level=True)

GUARD = 5
"""Numbers before and after a row: odd, so that rows are aligned to nothing."""
ROUNDING = 2e-6
"""Relative; how far a random number or a threshold may be from an edge for the two samplers to differ."""


def _teams() -> list[Team]:
    teams = []
    for tier in ("portable", "avx2", "avx512"):
        try:
            teams.append(Team(2, tier))
        except RuntimeError:
            continue
    return teams


TEAMS = _teams()


@pytest.fixture(params=TEAMS, ids=lambda team: team.tier)
def team(request: pytest.FixtureRequest) -> Team:
    chosen: Team = request.param
    return chosen


def params(**changes: Any) -> SamplingParams:
    return dataclasses.replace(SamplingParams(max_tokens=100), **changes)


def guarded(row: Tensor) -> Tensor:
    """The row between numbers that must not be read as its own: infinities."""
    whole = torch.full((len(row) + 2 * GUARD,), torch.inf)
    whole[GUARD:-GUARD] = row
    return whole[GUARD:-GUARD]


def logits_of(vocab_size: int, *, seed: int = 0, spread: float = 3.0, steps: int = 0) -> Tensor:
    """One row; rounded to so many `steps` in 1 where ties are wanted."""
    row = torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    return guarded((row * steps).round() / steps if steps else row)


def mask_of(allowed: Tensor) -> Array:
    """[V] bool to [W] int32 as grammars have it."""
    padded = torch.nn.functional.pad(allowed, (0, -len(allowed) % 32))
    return np.packbits(padded.numpy(), bitorder="little").view(np.int32)


def choice_of(setting: SamplingParams, generated: tuple[int, ...] = (), index: int = 0) -> ChoiceSampling:
    """A choice that has generated some tokens."""
    choice = ChoiceSampling(setting, index)
    for token_id in generated:
        choice.advance(token_id)
    return choice


def native(team: Team, logits: Tensor, choice: ChoiceSampling, mask: Array | None = None) -> NativeRow:
    """A row after its draw."""
    row = NativeRow(choice.params, choice.choice)
    row.place(logits.data_ptr(), len(logits), drawn=choice.drawn)
    row.edit(mask, choice.counted, banned=bool(choice.banned_ids))
    sample_rows(team, [row.struct], len(logits))
    return row


def edited(logits: Tensor, choice: ChoiceSampling, mask: Array | None) -> Tensor:
    """The row [limit] that the reference draws from."""
    work = torch_rows._edit(logits.unsqueeze(0), [choice], [mask]).get(0, logits)
    return work[: choice.params.token_limit]


def reference(row: Tensor, setting: SamplingParams, uniform: float) -> int:
    """The token of an edited row by the plain torch form."""
    if setting.temperature == 0:
        return int(sampling.greedy(row.unsqueeze(0)))
    column = torch_rows._truncation([setting], row.device)
    return int(sampling.draw_reference(row.unsqueeze(0), column, torch.tensor([uniform], dtype=torch.float64)))


def check(team: Team, logits: Tensor, choice: ChoiceSampling, mask: Array | None = None) -> None:
    """The draw is the reference's, or that of settings within rounding of these."""
    token_id = native(team, logits, choice, mask).struct.token
    setting, row, uniform = choice.params, edited(logits, choice, mask), choice.uniform()
    if token_id == reference(row, setting, uniform):
        return
    near = (0, -ROUNDING, ROUNDING)
    neighbours = {
        reference(
            row,
            dataclasses.replace(
                setting,
                top_p=min(setting.top_p * (1 + by_p), 1.0) if setting.top_p < 1 else 1.0,
                min_p=min(setting.min_p * (1 + by_min), 1.0),
                typical_p=min(setting.typical_p * (1 + by_typical), 1.0) if setting.typical_p < 1 else 1.0,
            ),
            min(max(uniform + by_u, 0.0), 1 - 2**-53),
        )
        for by_p, by_min, by_typical, by_u in itertools.product(near, near, near, near)
    }
    assert token_id in neighbours, setting


SETTINGS = st.fixed_dictionaries(
    {
        "temperature": st.one_of(st.just(0.0), st.floats(0.1, 2)),
        "top_k": st.sampled_from([0, 0, 1, 2, 5, 40, 300, 1000, 2**20]),
        "top_p": st.one_of(st.just(1.0), st.floats(0, 1), st.just(0.999)),
        "min_p": st.one_of(st.just(0.0), st.just(0.0), st.floats(0, 1)),
        "typical_p": st.one_of(st.just(1.0), st.just(1.0), st.floats(0, 1)),
        "sampling_order": st.sampled_from(["temperature_first", "top_p_first"]),
        "repetition_penalty": st.sampled_from([1.0, 1.0, 1.3]),
        "frequency_penalty": st.sampled_from([0.0, 0.0, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 0.4]),
        "penalty_decay": st.sampled_from([1.0, 0.996]),
        "logit_bias": st.dictionaries(st.integers(0, 1100), st.floats(-100, 100), max_size=3),
        "min_tokens": st.sampled_from([0, 9]),
        "stop_token_ids": st.lists(st.integers(0, 1100), max_size=2).map(tuple),
        "seed": st.integers(0, 2**64 - 1),
    }
)
SIZES = [1, 7, 16, 63, 64, 255, 256, 257, 700, 1024, 3001]


@given(st.sampled_from(SIZES), st.integers(0, 99), st.sampled_from([0.0, 0.3, 2.0, 9.0]), SETTINGS, st.data())
@settings(max_examples=250, deadline=None)
def test_draws_are_the_reference_s(
    vocab_size: int, seed: int, spread: float, setting: dict[str, Any], data: st.DataObject
) -> None:
    """On every tier: all settings together, with ties, grammars of all densities, and tokens generated before."""
    logits = logits_of(vocab_size, seed=seed, spread=spread, steps=data.draw(st.sampled_from([0, 0, 2, 64])))
    generated = tuple(data.draw(st.lists(st.integers(0, vocab_size - 1), max_size=6)))
    limit = data.draw(st.one_of(st.none(), st.integers(1, vocab_size + 3)))
    choice = choice_of(params(token_limit=limit, **setting), generated, index=seed % 3)
    mask, density = None, data.draw(st.sampled_from([1.0, 0.01, 0.5, 0.99]))
    if density < 1:
        mask = mask_of(torch.rand(vocab_size, generator=torch.Generator().manual_seed(seed + 1)) < density)
        mask = mask[: data.draw(st.sampled_from([len(mask), max(1, len(mask) - 1)]))]
    finite = bool(edited(logits, choice, mask).amax().isfinite())
    for team in TEAMS:
        if finite:
            check(team, logits, choice, mask)
        else:
            assert native(team, logits, choice, mask).struct.fault == Fault.NOTHING_ALLOWED


FULL_SIZE: list[dict[str, Any]] = [
    {"temperature": 0},
    {},
    {"temperature": 1.7},
    {"top_p": 0.9},
    {"top_p": 0.9999, "temperature": 1.4},
    {"top_p": 0.5, "sampling_order": "top_p_first", "temperature": 1.5},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 5000},
    {"top_k": 300, "top_p": 0.9, "sampling_order": "top_p_first"},
    {"min_p": 0.02},
    {"typical_p": 0.8},
    {"typical_p": 0.3, "top_k": 3000, "sampling_order": "top_p_first", "temperature": 0.6},
]


@pytest.mark.parametrize(("vocab_size", "spread"), [(65529, 1.0), (65536, 6.0)])
def test_draws_at_full_size(team: Team, vocab_size: int, spread: float) -> None:
    logits = logits_of(vocab_size, seed=5, spread=spread)
    for seed, setting in enumerate(FULL_SIZE):
        check(team, logits, choice_of(params(seed=seed, **setting)))


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(torch.zeros(4096), id="all equal"),
        pytest.param(torch.cat([torch.zeros(4000), torch.full((96,), 1e-6)]), id="two values, almost equal"),
        pytest.param(-torch.logspace(-3, 38, 4096), id="over all magnitudes"),
        pytest.param(torch.cat([torch.linspace(-1, 1, 4095), torch.tensor([3e38])]), id="one far above"),
        pytest.param(torch.arange(4096.0) / 4096 - 0.5 * (torch.arange(4096) % 66 == 33), id="dips where cuts look"),
        pytest.param(torch.cat([torch.full((4000,), -torch.inf), torch.rand(96)]), id="most impossible"),
    ],
)
def test_searches_come_to_an_end_whatever_the_values_are(team: Team, logits: Tensor) -> None:
    for top_k, top_p, min_p, order in itertools.product(
        (0, 1, 100, 2000), (1.0, 0.0, 0.37), (0.0, 0.3), ("temperature_first", "top_p_first")
    ):
        setting = params(top_k=top_k, top_p=top_p, min_p=min_p, sampling_order=order, seed=top_k, temperature=0.8)
        check(team, logits, choice_of(setting))


def test_the_random_number_is_the_one_of_the_seed(team: Team) -> None:
    """Of 2**16 equal tokens the draw takes the one at the number itself."""
    logits = torch.zeros(65536)
    for seed, index, drawn in itertools.product((0, 7, 2**63 + 5, 2**64 - 1), (0, 3, 2**31), (0, 1, 2**31)):
        row = NativeRow(params(seed=seed), index)
        row.place(logits.data_ptr(), 65536, drawn=drawn)
        sample_rows(team, [row.struct], 65536)
        assert row.struct.token == int(random.uniform(seed, index, drawn, 1)[0] * 65536)


def test_ties_go_to_the_lower_id(team: Team) -> None:
    logits = torch.zeros(2000)
    logits[[1500, 300, 900, 1999]] = 2.0
    logits[5] = -0.0
    seeds = range(40)
    assert native(team, logits, choice_of(params(temperature=0))).struct.token == 300
    drawn = {native(team, logits, choice_of(params(top_k=3, seed=seed))).struct.token for seed in seeds}
    assert drawn == {300, 900, 1500}
    drawn = {native(team, logits, choice_of(params(top_p=0.0, seed=seed))).struct.token for seed in seeds}
    assert drawn == {300, 900, 1500, 1999}
    drawn = {native(team, logits, choice_of(params(top_k=6, seed=seed, temperature=2))).struct.token for seed in seeds}
    assert drawn == {0, 1, 300, 900, 1500, 1999}


HOSTILE = [math.nan, -math.nan, math.inf]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("vocab_size", [1, 7, 300, 2050])
def test_a_row_that_is_not_finite_has_no_token(team: Team, value: float, vocab_size: int) -> None:
    for at in {0, vocab_size // 2, vocab_size - 1}:
        logits = logits_of(vocab_size)
        logits[at] = value
        everything = mask_of(torch.ones(vocab_size, dtype=torch.bool))
        others = mask_of(torch.arange(vocab_size) != at)  # a grammar that bans it does not make the model well
        for mask in (None, everything, others):
            for setting in ({"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 2}):
                row = native(team, logits, choice_of(params(**setting)), mask)
                assert (row.struct.fault, row.struct.token) == (Fault.NOT_FINITE, -1)
        if vocab_size > 1:
            banned = native(team, logits, choice_of(params(min_tokens=1, stop_token_ids=(at,))))
            assert banned.struct.fault == Fault.NONE and banned.struct.token != at
        beyond = native(team, logits, choice_of(params(token_limit=max(at, 1))))
        assert beyond.struct.fault == (Fault.NOT_FINITE if at < max(at, 1) else Fault.NONE)


@pytest.mark.parametrize("vocab_size", [1, 7, 300, 65536])
def test_nothing_left_and_one_left(team: Team, vocab_size: int) -> None:
    logits = logits_of(vocab_size)
    nothing = mask_of(torch.zeros(vocab_size, dtype=torch.bool))
    for setting in ({"temperature": 0}, {}, {"top_p": 0.5}, {"top_k": 2}, {"min_p": 0.3}):
        choice = choice_of(params(seed=3, **setting))
        assert native(team, logits, choice, nothing).struct.fault == Fault.NOTHING_ALLOWED
        assert native(team, guarded(torch.full((vocab_size,), -torch.inf)), choice).struct.fault == (
            Fault.NOTHING_ALLOWED
        )
        for at in {0, vocab_size // 3, vocab_size - 1}:
            one = mask_of(torch.arange(vocab_size) == at)
            assert native(team, logits, choice, one).struct.token == at
            likely = guarded(torch.full((vocab_size,), -torch.inf))
            likely[at] = -3e38
            assert native(team, likely, choice).struct.token == at


@pytest.mark.parametrize("vocab_size", [7, 1000, 65529])
def test_scores_are_log_softmax_and_the_likeliest(team: Team, vocab_size: int) -> None:
    logits = logits_of(vocab_size, seed=8, steps=100)
    expected = torch.log_softmax(logits.double(), dim=-1)
    for top, limit in itertools.product((0, 1, 20, 100), (None, vocab_size - 2)):
        setting = params(logprobs=top, token_limit=limit, top_p=0.9, logit_bias={2: 30.0}, seed=4)
        found = native(team, logits, choice_of(setting)).logprobs()
        assert found.logprob == pytest.approx(float(expected[2]), abs=1e-6)
        ordered = expected[:limit].sort(descending=True, stable=True)
        listed = min(top, len(ordered.indices))
        assert [token for token, _ in found.top] == ordered.indices[:listed].tolist()
        assert [value for _, value in found.top] == pytest.approx(ordered.values[:listed].tolist(), abs=1e-6)


@pytest.mark.parametrize("tier", [team.tier for team in TEAMS])
def test_a_row_is_the_same_with_any_neighbours_and_threads(tier: str) -> None:
    logits = torch.stack([logits_of(5000, seed=i, spread=1 + i % 3) for i in range(12)])
    setting = [params(seed=i, logprobs=i % 4, **FULL_SIZE[i % len(FULL_SIZE)]) for i in range(12)]

    def results(team: Team, order: list[int]) -> dict[int, object]:
        rows = {i: NativeRow(setting[i], 0) for i in order}
        for i, row in rows.items():
            row.place(logits[i].data_ptr(), 5000)
        sample_rows(team, [row.struct for row in rows.values()], 5000)
        return {i: (row.struct.token, row.logprobs()) for i, row in rows.items()}

    threads = [Team(count, tier) for count in (1, 3)]
    alone = {i: results(threads[0], [i])[i] for i in range(12)}
    for team in threads:
        assert results(team, list(range(12))) == alone
        assert results(team, [11, 3, 0, 7]) == {i: alone[i] for i in (11, 3, 0, 7)}
        team.close()


def test_the_sampler_gives_the_same_natively_and_by_torch() -> None:
    """Whole steps over rows of all kinds."""
    setting = [
        *FULL_SIZE,
        {"frequency_penalty": 0.4, "penalty_decay": 0.99, "uncounted_ids": (3,)},
        {"repetition_penalty": 1.2, "logprobs": 2, "temperature": 0},
    ]
    ways = [Sampler(), Sampler(native=False)]
    choices = [[ChoiceSampling(params(seed=i, **each)) for i, each in enumerate(setting)] for _ in ways]
    for step in range(6):
        logits = torch.stack([logits_of(900, seed=100 * step + i) for i in range(len(setting))])
        natively, by_torch = (way.sample(logits, each) for way, each in zip(ways, choices, strict=True))
        assert [draw.token_id for draw in natively] == [draw.token_id for draw in by_torch]
        for one, other in zip(natively, by_torch, strict=True):
            assert (one.logprobs is None) == (other.logprobs is None)
            if one.logprobs is not None and other.logprobs is not None:
                assert one.logprobs.logprob == pytest.approx(other.logprobs.logprob, abs=1e-5)
