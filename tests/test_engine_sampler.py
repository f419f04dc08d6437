"""The sampler: what each setting does to one row, and that rows do not touch each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.kernels.cpu.arrays import Array
from rookery.server.engine.constraint import ConstraintError
from rookery.server.engine.request import SamplingParams
from rookery.server.engine.sampler import ChoiceSampling, Draw, Sampler


def params(**changes: Any) -> SamplingParams:
    return dataclasses.replace(SamplingParams(max_tokens=100), **changes)


def logits_of(n: int, vocab_size: int, seed: int = 0, spread: float = 3.0) -> Tensor:
    return torch.randn(n, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


def draw_ids(logits: Tensor, choices: Sequence[ChoiceSampling]) -> list[int]:
    return [draw.token_id for draw in Sampler().sample(logits, choices)]


class ScriptedConstraint:
    """Allows a fixed set of tokens; fails on demand."""

    held = False

    def __init__(self, allowed: set[int], *, words: int, last: int | None = None, fails: bool = False) -> None:
        bits = [sum(1 << b for b in range(32) if w * 32 + b in allowed) for w in range(words)]
        self.bits = np.array(bits, np.uint32).view(np.int32)
        self.last, self.fails = last, fails
        self.complete = False
        self.ready = True
        self.prepared = 0
        self.accepted: list[int] = []

    def prepare(self) -> None:
        self.prepared += 1

    def allowed(self) -> Array:
        if self.fails:
            raise ConstraintError("the grammar cannot go on: too complex")
        return self.bits

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)
        self.complete = token_id == self.last


SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.4, "penalty_decay": 0.996},
    {},
    {"temperature": 1.3, "token_limit": 900},
    {"top_k": 40},
    {"top_p": 0.8, "logprobs": 3},
    {"top_p": 0.3, "sampling_order": "top_p_first", "temperature": 2.0},
    {"min_p": 0.1, "repetition_penalty": 1.2},
    {"typical_p": 0.9, "top_k": 100, "logit_bias": {5: 4.0, 7: -100.0}},
    {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "frequency_penalty": 1.0},
    {"min_tokens": 4, "stop_token_ids": (0, 3), "logprobs": 0},
]


@pytest.mark.parametrize("vocab_size", [1000, 1024, 2077])
def test_a_row_is_the_same_alone_and_in_a_batch_of_32(vocab_size: int) -> None:
    """Tokens and log-probabilities, bit for bit, over several steps and in a shuffled order."""
    steps = [logits_of(32, vocab_size, seed) for seed in range(5)]

    def choices() -> list[ChoiceSampling]:
        return [ChoiceSampling(params(seed=i, **SETTINGS[i % len(SETTINGS)]), i % 3) for i in range(32)]

    together, sampler = choices(), Sampler()
    batched = [sampler.sample(logits, together) for logits in steps]
    order = list(reversed(range(32)))
    shuffled_choices = choices()
    shuffled = [sampler.sample(logits[order], [shuffled_choices[i] for i in order]) for logits in steps]
    for i, alone in enumerate(choices()):
        solo = [sampler.sample(logits[i : i + 1], [alone])[0] for logits in steps]
        assert solo == [draws[i] for draws in batched]
        assert solo == [draws[order.index(i)] for draws in shuffled]


def test_logits_are_left_as_they_were() -> None:
    logits = logits_of(len(SETTINGS), 1000)
    before = logits.clone()
    choices = [ChoiceSampling(params(**setting)) for setting in SETTINGS]
    for _ in range(3):
        Sampler().sample(logits, choices)
    assert logits.equal(before)


def test_one_row_of_logits_may_serve_many_choices() -> None:
    row = logits_of(1, 500)
    drawn = draw_ids(row.expand(20, -1), [ChoiceSampling(params(seed=4), i) for i in range(20)])
    assert drawn == [draw_ids(row, [ChoiceSampling(params(seed=4), i)])[0] for i in range(20)]
    assert len(set(drawn)) > 3


def test_a_seed_repeats_and_a_resumed_choice_goes_on_in_its_stream() -> None:
    logits = logits_of(1, 200, spread=0.5)
    choice, sampler = ChoiceSampling(params(seed=2**63 + 5)), Sampler()
    whole = [sampler.sample(logits, [choice])[0].token_id for _ in range(150)]
    again = ChoiceSampling(params(seed=2**63 + 5))
    assert [sampler.sample(logits, [again])[0].token_id for _ in range(150)] == whole
    resumed = ChoiceSampling(params(seed=2**63 + 5), drawn=70)
    assert [sampler.sample(logits, [resumed])[0].token_id for _ in range(80)] == whole[70:]


@given(
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    decay=st.floats(0.5, 1),
    repetition=st.floats(0.5, 2),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_penalties_follow_the_formulas(
    presence: float, frequency: float, decay: float, repetition: float, seed: int
) -> None:
    """A transcription of the reference loop: subtract, draw, decay every count, add one to the token drawn, or nothing
    where it is one of those not counted."""
    setting = params(
        temperature=0,
        presence_penalty=presence,
        frequency_penalty=frequency,
        penalty_decay=decay,
        repetition_penalty=repetition,
        uncounted_ids=(1, 4),
    )
    choice, occurrence = ChoiceSampling(setting), dict[int, float]()
    for step in range(12):
        logits = logits_of(1, 6, seed + step, spread=1.0)
        expected = logits[0].double().clone()
        for token, count in occurrence.items():
            if repetition != 1:
                expected[token] = expected[token] / repetition if expected[token] > 0 else expected[token] * repetition
            expected[token] -= presence + count * frequency
        token = draw_ids(logits, [choice])[0]
        assert float(expected[token]) >= float(expected.max()) - 1e-5
        for seen in occurrence:
            occurrence[seen] *= decay
        occurrence[token] = occurrence.get(token, 0.0) + (0 if token in (1, 4) else 1)


def test_penalty_counts_are_bounded_by_the_vocabulary() -> None:
    choice = ChoiceSampling(params(frequency_penalty=0.1, penalty_decay=0.99))
    for i in range(2000):
        choice.advance(i % 30)
    ids, counts = choice.counted
    assert sorted(ids.tolist()) == list(range(30))
    assert len(choice._ids) == 32
    assert float(counts.sum()) == pytest.approx((1 - 0.99**2000) / 0.01)


def test_bias_bans_and_the_token_limit() -> None:
    logits = torch.zeros(1, 10)
    logits[0, 9] = 5.0  # has no text
    logits[0, 3] = 3.0
    logits[0, 2] = 2.0

    def first(**changes: Any) -> int:
        return draw_ids(logits, [ChoiceSampling(params(temperature=0, token_limit=9, **changes))])[0]

    assert first() == 3
    assert first(logit_bias={2: 1.5}) == 2
    assert first(logit_bias={9: 100.0}) == 3
    assert first(logit_bias={3: -100.0}) == 2
    assert first(min_tokens=1, stop_token_ids=(3,)) == 2
    assert first(min_tokens=0, stop_token_ids=(3,)) == 3


def test_stop_tokens_end_a_choice_once_min_tokens_are_there() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]])
    choice, sampler = ChoiceSampling(params(temperature=0, min_tokens=2, stop_token_ids=(2,))), Sampler()
    draws = [sampler.sample(logits, [choice])[0] for _ in range(3)]
    assert draws == [Draw(1), Draw(1), Draw(2, ended=True)]


def test_grammar_masks_apply_to_their_rows_only() -> None:
    constraint = ScriptedConstraint({1, 40}, words=2, last=40)
    choices = [
        ChoiceSampling(params(temperature=0)),
        ChoiceSampling(params(temperature=0, grammar="g"), 0, constraint),
        ChoiceSampling(params(temperature=0, logit_bias={9: 50.0})),
    ]
    logits = torch.zeros(3, 100)
    logits[:, 50] = 9.0
    logits[:, 99] = 8.0
    logits[:, 40] = 1.0
    assert Sampler().sample(logits, choices) == [Draw(50), Draw(40, ended=True), Draw(9)]
    assert constraint.accepted == [40]
    assert constraint.prepared == 0  # nothing follows
    logits[1, 1] = 2.0
    assert Sampler().sample(logits, choices)[1] == Draw(1)
    assert constraint.prepared == 1


def test_a_row_that_cannot_be_drawn_fails_alone() -> None:
    logits = logits_of(6, 100)
    neighbour = draw_ids(logits[:1], [ChoiceSampling(params(top_p=0.5))])[0]
    logits[2, 5] = torch.nan
    logits[3, 5] = torch.inf
    logits[5, 5] = torch.nan
    choices = [
        ChoiceSampling(params(top_p=0.5)),
        ChoiceSampling(params(grammar="g"), 0, ScriptedConstraint(set(), words=4, fails=True)),
        ChoiceSampling(params(top_p=0.5)),
        ChoiceSampling(params(temperature=0)),
        ChoiceSampling(params(grammar="g"), 0, ScriptedConstraint(set(), words=4)),
        ChoiceSampling(params(temperature=0)),
    ]
    draws = Sampler().sample(logits, choices)
    assert draws[0] == Draw(neighbour)
    assert [draw.error for draw in draws[1:]] == [
        "the grammar cannot go on: too complex",
        "the model's output is not finite",
        "the model's output is not finite",
        "no token is allowed here by the grammar and the settings together",
        "the model's output is not finite",
    ]
    assert [c.drawn for c in choices] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("vocab_size", [10, 300, 5000])
def test_logprobs_equal_log_softmax_of_the_raw_logits(vocab_size: int) -> None:
    logits = logits_of(5, vocab_size)
    expected = torch.log_softmax(logits.double(), dim=-1)
    settings_: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 2.0, "top_p": 0.5},
        {"logit_bias": {3: 50.0}},
        {"token_limit": vocab_size - 2},
        {},
    ]
    choices = [ChoiceSampling(params(logprobs=5, **setting)) for setting in settings_]
    for row, draw in enumerate(Sampler().sample(logits, choices)):
        assert draw.logprobs is not None
        assert draw.logprobs.logprob == pytest.approx(float(expected[row, draw.token_id]), abs=1e-5)
        likeliest = expected[row, : choices[row].params.token_limit].topk(5)
        assert [token for token, _ in draw.logprobs.top] == likeliest.indices.tolist()
        assert [value for _, value in draw.logprobs.top] == pytest.approx(likeliest.values.tolist(), abs=1e-5)


def test_a_greedy_token_is_the_top_logprob_also_on_ties() -> None:
    logits = torch.zeros(1, 700)
    logits[0, [44, 600, 601, 602]] = 1.0
    draw = Sampler().sample(logits, [ChoiceSampling(params(temperature=0, logprobs=2))])[0]
    assert draw.logprobs is not None
    assert [token for token, _ in draw.logprobs.top] == [44, 600]
    assert draw.token_id == 44


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 40])
def test_score_prompt(length: int) -> None:
    logits = logits_of(length, 300)
    next_ids = [(7 * i) % 300 for i in range(length)]
    scored = Sampler().score_prompt(logits, next_ids, 2)
    expected = torch.log_softmax(logits.double(), dim=-1)
    assert len(scored) == length
    for row, entry in enumerate(scored):
        assert entry.logprob == pytest.approx(float(expected[row, next_ids[row]]), abs=1e-5)
        assert entry.top[0] == pytest.approx((int(expected[row].argmax()), float(expected[row].max())), abs=1e-5)
        assert Sampler().score_prompt(logits[row : row + 1], next_ids[row : row + 1], 2) == [entry]
