"""Prompts that start from stored states: the same tokens as a cold run, and no token computed twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.server.engine.engine import Engine
from rookery.server.engine.prefix_plan import GRID, MARK_STRIDE
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.model.base import Model

from .tiny_model import BOMB, TINY_PLAN, ToyModel, tiny_rwkv7

MIB = 2**20


def engine_of(model: Model, *, cache_bytes: int = MIB, max_batch: int = 8, prefill_budget: int = 64) -> Engine:
    return Engine(model, max_batch=max_batch, max_queue=64, prefill_budget=prefill_budget, cache_bytes=cache_bytes)


class Run:
    """An engine over the toy, and how many tokens it has computed."""

    def __init__(self, *, cache_bytes: int = MIB, max_batch: int = 8, prefill_budget: int = 64) -> None:
        self.model = ToyModel()
        self.engine = engine_of(self.model, cache_bytes=cache_bytes, max_batch=max_batch, prefill_budget=prefill_budget)
        self.number = 0

    def submit(self, prompt: Iterable[int], max_tokens: int = 4, **fields: object) -> str:
        self.number += 1
        sampling = SamplingParams(max_tokens=max_tokens, temperature=0)
        one = Request(id=f"r{self.number}", prompt_ids=tuple(prompt), sampling=sampling)
        self.engine.submit(replace(one, **fields))  # type: ignore[arg-type]
        return one.id

    def drain(self) -> dict[str, list[TokenEvent]]:
        events: dict[str, list[TokenEvent]] = {}
        for _ in range(10_000):
            if not self.engine.busy:
                return events
            for event in self.engine.step():
                events.setdefault(event.request_id, []).append(event)
        raise AssertionError("the engine is still busy")

    def __call__(self, prompt: Iterable[int], max_tokens: int = 4, **fields: object) -> tuple[list[int], int, int]:
        """Tokens drawn, cached tokens told, prompt tokens computed."""
        before = self.computed
        id = self.submit(prompt, max_tokens, **fields)
        events = self.drain()[id]
        drawn = drawn_by(events)
        return drawn, events[0].cached_tokens, self.computed - before - max(0, len(drawn) - 1)

    @property
    def computed(self) -> int:
        return sum(length for lengths in self.model.passes for length in lengths)


def drawn_by(events: Iterable[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


def cold(prompt: Sequence[int], max_tokens: int = 4) -> list[int]:
    return Run(cache_bytes=0)(prompt, max_tokens)[0]


def text(length: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 30, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def test_the_next_turn_of_a_chat_computes_only_what_is_new() -> None:
    run = Run()
    history = text(100)
    drawn, cached, computed = run(history)
    assert (cached, computed) == (0, 100)
    for _ in range(5):
        history += [*drawn, *text(10, len(history))]
        drawn, cached, computed = run(history)
        assert (cached, computed) == (len(history) - 11, 11)  # the last token drawn had not been consumed
        assert drawn == cold(history)


def test_an_exact_repeat_computes_nothing() -> None:
    run = Run()
    first = run(text(50))
    again = run(text(50))
    assert again == (first[0], 50, 0)
    assert run(text(50), max_tokens=0) == ([], 50, 0)


def test_choices_of_a_repeated_prompt_all_start_from_its_state() -> None:
    run = Run()
    run(text(50))
    id = run.submit(text(50), choices=3)
    for events in by_choice(run.drain()[id]):
        assert drawn_by(events) == cold(text(50)) and events[0].cached_tokens == 50


def by_choice(events: list[TokenEvent]) -> list[list[TokenEvent]]:
    return [[event for event in events if event.choice == index] for index in sorted({e.choice for e in events})]


def test_two_choices_of_a_prompt_of_two_tokens_draw_alike() -> None:
    run = Run(cache_bytes=0)
    id = run.submit([3, 4], choices=2)
    assert [drawn_by(events) for events in by_choice(run.drain()[id])] == [cold([3, 4])] * 2


def test_a_history_that_was_changed_at_its_end_starts_at_the_last_boundary() -> None:
    run = Run()
    history = text(60)
    run([*history, 7, 8, 9], boundaries=(20, 60))  # as a reply that opens with reasoning, which history drops
    drawn, cached, computed = run([*history, 7, 5, 5], boundaries=(20, 60))
    assert (cached, computed) == (60, 3)
    assert drawn == cold([*history, 7, 5, 5])


def test_the_third_prompt_with_a_common_beginning_finds_its_state() -> None:
    run = Run()
    common = text(100)
    assert [run([*common, *text(20, seed)])[1] for seed in (1, 2, 3)] == [0, 0, 96]
    assert run([*common, *text(20, 4)])[2] == 24


def test_identical_prompts_that_come_together_are_computed_once() -> None:
    run = Run(prefill_budget=16)
    prompt = text(80)
    ids = [run.submit(prompt) for _ in range(4)]
    events = run.drain()
    assert all(drawn_by(events[id]) == cold(prompt) for id in ids)
    assert sorted(events[id][0].cached_tokens for id in ids) == [0, 80, 80, 80]
    assert run.computed == 80 + 4 * 3


def test_prompts_that_come_together_compute_their_common_beginning_once() -> None:
    run = Run(prefill_budget=16)
    prompts = [text(64) + text(20, seed) for seed in range(1, 5)]
    ids = [run.submit(prompt) for prompt in prompts]
    events = run.drain()
    assert all(drawn_by(events[id]) == cold(prompt) for id, prompt in zip(ids, prompts, strict=True))
    assert run.computed == 64 + 4 * (20 + 3)


def test_whoever_waits_goes_on_when_the_one_ahead_is_cancelled() -> None:
    run = Run(prefill_budget=16)
    first, second, third = (run.submit(text(80)) for _ in range(3))
    run.engine.step()
    run.engine.cancel(first)
    run.engine.step()
    run.engine.cancel(third)
    events = run.drain()
    assert drawn_by(events[second]) == cold(text(80))
    assert run.engine.scheduler.slots_free == 8


def test_whoever_waits_goes_on_when_the_one_ahead_fails() -> None:
    run = Run(prefill_budget=16)
    good = text(64)
    bad = run.submit([*good, BOMB, 1, 2, 3])
    ids = [run.submit([*good, *text(20, seed)]) for seed in (1, 2)]
    events = run.drain()
    assert events[bad][-1].finish == "error"
    assert [drawn_by(events[id]) for id in ids] == [cold([*good, *text(20, seed)]) for seed in (1, 2)]
    assert run([*good, 9])[0] == cold([*good, 9])


def test_tenants_never_share() -> None:
    run = Run()
    for tenant in ("a", "b", ""):
        assert run(text(50), tenant=tenant)[1:] == (0, 50)
    ids = [run.submit(text(70, 5), tenant=tenant) for tenant in ("a", "b")]
    events = run.drain()
    assert [events[id][0].cached_tokens for id in ids] == [0, 0]


def test_tuned_states_never_share() -> None:
    run = Run()
    run(text(50))
    tuned = run(text(50), tuned_state="tuned")
    assert tuned[1:] == (0, 50)
    assert run(text(50), tuned_state="tuned") == (tuned[0], 50, 0)


def test_a_request_may_keep_out_of_it() -> None:
    run = Run()
    run(text(50), cache=False)
    assert run(text(50))[1] == 0
    assert run(text(50), cache=False)[1:] == (0, 50)


def test_prompt_log_probabilities_are_computed_in_full() -> None:
    run = Run()
    run(text(50))
    sampling = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    id = run.submit(text(50), sampling=sampling)
    event = run.drain()[id][0]
    assert event.cached_tokens == 0 and event.prompt_logprobs is not None and len(event.prompt_logprobs) == 50


def test_what_a_stop_string_cut_is_kept_by_the_tokens_consumed() -> None:
    run = Run()
    id = run.submit(text(40), max_tokens=50)
    drawn: list[int] = []
    while len(drawn) < 6:
        drawn += drawn_by(run.engine.step())
    run.engine.cancel(id)
    run.drain()
    assert run([*text(40), *drawn, 3])[1:] == (45, 2)


def test_long_prompts_keep_few_states_behind_them() -> None:
    run = Run(cache_bytes=64 * MIB, prefill_budget=4096)
    prompt = text(9 * GRID + 100)
    run(prompt, 1)
    assert len(run.engine.reuse.cache.memory) < 8  # type: ignore[union-attr]
    changed = [*prompt[: 8 * GRID + 50], 1, 2, 3]
    assert run(changed, 1)[1] >= 8 * GRID
    changed = [*prompt[: 5 * GRID], 1, 2, 3]
    assert run(changed, 1)[1] >= 4 * GRID


def test_the_memory_is_bounded() -> None:
    run = Run(cache_bytes=20_000)
    for seed in range(50):
        run(text(40, seed))
    assert run.engine.reuse is not None
    memory = run.engine.reuse.cache.memory
    assert 0 < memory.used_bytes <= 20_000 and memory.evictions > 50
    assert not run.engine.reuse._plans


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.integers(0, 90),
            st.integers(1, 60),
            st.integers(0, 6),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=14,
    ),
    st.sampled_from([3000, 10_000, MIB]),
    st.sampled_from([7, 64, 1000]),
)
def test_whatever_is_stored_tokens_are_those_of_a_cold_run(
    work: list[tuple[int, int, int, int, int, bool]], cache_bytes: int, budget: int
) -> None:
    run = Run(cache_bytes=cache_bytes, max_batch=4, prefill_budget=budget)
    prompts: dict[str, list[int]] = {}
    gone = set()
    events: dict[str, list[TokenEvent]] = {}

    def step() -> None:
        for event in run.engine.step():
            events.setdefault(event.request_id, []).append(event)

    for trunk, common, own, steps, limit, cancel in work:
        prompt = text(90, trunk)[:common] + text(own, own)
        id = run.submit(prompt, limit, boundaries=(common,) if 0 < common < len(prompt) else ())
        prompts[id] = prompt
        for _ in range(steps):
            step()
        if cancel:
            run.engine.cancel(id)
            gone.add(id)
    while run.engine.busy:
        step()
    for id, prompt in prompts.items():
        expected = cold(prompt, 3)[: len(drawn_by(events[id]))]
        assert drawn_by(events[id]) == expected
        assert events[id][-1].finish == ("length" if id not in gone else events[id][-1].finish)
    assert run.engine.scheduler.slots_free == 4


@pytest.mark.parametrize("length", [MARK_STRIDE + 5, 150])
def test_logits_after_a_hit_are_those_of_a_cold_run(length: int) -> None:
    model = tiny_rwkv7()
    prompt = torch.randint(0, TINY_PLAN.vocab_size, (length,), generator=torch.Generator().manual_seed(1)).tolist()
    sampling = SamplingParams(max_tokens=8, temperature=0, logprobs=5)

    def logprobs(engine: Engine, id: str, ids: list[int]) -> tuple[list[int], torch.Tensor]:
        engine.submit(Request(id=id, prompt_ids=tuple(ids), sampling=sampling))
        events = []
        while engine.busy:
            events += engine.step()
        tops = [event.logprobs.top for event in events if event.logprobs is not None]
        return drawn_by(events), torch.tensor([[value for _, value in top] for top in tops])

    warm = engine_of(model)
    tokens, _ = logprobs(warm, "first", prompt)
    for ids in (prompt, [*prompt, *tokens, 1, 2, 3], [*prompt, *tokens[:2], 4, 5]):
        again, got = logprobs(warm, f"again {len(ids)}", ids)
        plain, expected = logprobs(engine_of(model, cache_bytes=0), "cold", ids)
        assert again == plain
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.max() - expected.min()))
