"""Steps launched ahead of what is read, on devices that answer at once or late: the tokens, ends and states are those
of the engine that computes each step to its end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher

from rookery.server.engine.batch import Batch, Choice, Prefill
from rookery.server.engine.constraint import Constraints
from rookery.server.engine.engine import Engine
from rookery.server.engine.fits import MAX_BIASES, MAX_STOPS, fits
from rookery.server.engine.pace import Pace
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.engine.reuse import PrefixReuse
from rookery.server.model.base import Model
from rookery.server.state.cache import PrefixCache
from rookery.server.text.tokenizer import ByteTokenizer

from .arrays import equal
from .devices import Eager, Late, Prompt
from .session_host import Host, state_after
from .test_state_sessions_random import SessionsMachine
from .tiny_model import BOMB, NAN, ToyModel, tiny_rwkv7

SIZES = [1, 2, 4]
MIXED = [(0, 32), (2, 16), (2, 32), (5, 48)]
"""Steps with prompts that are recorded, for the toy, which reads on the device where rows begin."""


def engine_of(model: Model, device: Prompt | None, *, max_batch: int = 5, cache_bytes: int = 0) -> Engine:
    engine = Engine(model, max_batch=max_batch, max_queue=64, prefill_budget=32, cache_bytes=cache_bytes)
    if device is not None:
        mixed = MIXED if isinstance(model, ToyModel) else []
        engine.overlap(device).record(Eager(), [size for size in SIZES if size <= max_batch], mixed=mixed)
        assert engine.loop is not None and engine.loop.mixed.sizes == mixed
    return engine


def drain(engine: Engine) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    for _ in range(10_000):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError("the engine is still busy")


Choices = dict[tuple[str, int], list[TokenEvent]]


def by_choice(events: list[TokenEvent]) -> Choices:
    choices = defaultdict(list)
    for event in events:
        choices[event.request_id, event.choice].append(event)
    for key, its in choices.items():
        assert [event.finish is not None for event in its] == [False] * (len(its) - 1) + [True], key
    return dict(choices)


def run(engine: Engine, *requests: Request) -> Choices:
    for request in requests:
        engine.submit(request)
    return by_choice(drain(engine))


def request(id: str, prompt: list[int], sampling: SamplingParams, **fields: object) -> Request:
    return Request(id=id, prompt_ids=tuple(prompt), sampling=sampling, **fields)  # type: ignore[arg-type]


KINDS = (
    SamplingParams(max_tokens=9, temperature=0),
    SamplingParams(max_tokens=12, seed=1, stop_token_ids=(3, 5, 7)),
    SamplingParams(max_tokens=7, seed=2**64 - 3, top_k=5, top_p=0.9, temperature=1.4),
    SamplingParams(max_tokens=10, seed=4, top_p=0.7, sampling_order="top_p_first", min_p=0.01),
    SamplingParams(
        max_tokens=14, seed=5, presence_penalty=0.7, frequency_penalty=0.4, penalty_decay=0.9, uncounted_ids=(2, 9)
    ),
    SamplingParams(max_tokens=8, seed=6, repetition_penalty=1.4, logit_bias={4: 3.0, 40: 1.0, 9: -100.0}),
    SamplingParams(max_tokens=11, seed=7, stop_token_ids=tuple(range(0, 8)), min_tokens=4, token_limit=25),
    SamplingParams(max_tokens=0, prompt_logprobs=1),
    SamplingParams(max_tokens=1, seed=8),
    SamplingParams(max_tokens=4, seed=9, logprobs=2),
    SamplingParams(max_tokens=5, seed=10, typical_p=0.8),
)


def mixed(count: int, vocab_size: int) -> list[Request]:
    generator = torch.Generator().manual_seed(3)
    return [
        request(
            f"r{i}",
            torch.randint(0, vocab_size, (1 + 7 * i % 40,), generator=generator).tolist(),
            KINDS[i % len(KINDS)],
            choices=1 + i % 3,
        )
        for i in range(count)
    ]


class Watch(PrefixReuse):
    """Keeps no state, but looks at every one that would be kept, bit for bit."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(PrefixCache(0), engine.pool, "", engine.model.initial_state)
        self.ends = 0
        engine.reuse = self

    def plan(self, prefills: Iterable[Prefill]) -> None:
        """Every prompt is computed."""

    def consumed(self, batch: Batch, hidden: torch.Tensor) -> None:
        for chunk in batch.chunks:
            self.holds(chunk.slot, list(chunk.prefill.token_ids[: chunk.stop]))

    def left(self, choice: Choice, slot: int, *, whole: bool) -> None:
        if whole:
            self.holds(slot, [*choice.request.prompt_ids, *choice.tokens[:-1]])
            self.ends += 1

    def holds(self, slot: int, tokens: list[int]) -> None:
        assert equal(self._pool.save(slot).wkv, state_after(tokens).wkv)


@pytest.mark.parametrize("device", [Prompt, Late])
def test_every_kind_of_request_gets_the_tokens_of_the_plain_engine(device: type[Prompt]) -> None:
    requests = mixed(len(KINDS), 30)
    expected = run(engine_of(ToyModel(), None), *requests)
    engine = engine_of(ToyModel(), device())
    watch = Watch(engine)
    assert run(engine, *requests) == expected
    assert {its[-1].finish for its in expected.values()} == {"stop", "length"}
    assert watch.ends == sum(one.choices for one in requests)
    assert engine.stats().slots_free == 5 and not engine._sampling and not engine._by_host


def test_short_prompts_are_recorded_and_others_are_not() -> None:
    """With what the recording has left over as padding."""
    engine = engine_of(ToyModel(), Late())
    assert isinstance(engine.model, ToyModel)
    taken: list[bool] = []
    loop = engine.loop
    assert loop is not None
    run_recorded = loop.mixed.run

    def watched(batch: Batch) -> tuple[torch.Tensor, torch.Tensor] | None:
        outcome = run_recorded(batch)
        taken.append(outcome is not None)
        return outcome

    loop.mixed.run = watched  # type: ignore[method-assign]
    run(engine, *(request(str(i), [1 + i, 2, 3], SamplingParams(max_tokens=4, seed=i), choices=2) for i in range(2)))
    assert taken == [True]
    drain(engine)
    engine.pace = Pace(1000)
    run(engine, request("long", [1 + i % 20 for i in range(60)], SamplingParams(max_tokens=2, seed=1)))
    assert taken == [True, False]


def test_a_real_model_draws_the_same() -> None:
    requests = [one for one in mixed(8, 256) if fits(one.sampling)]
    expected = run(engine_of(tiny_rwkv7(), None, max_batch=4), *requests)
    assert run(engine_of(tiny_rwkv7(), Late(), max_batch=4), *requests) == expected


def test_a_step_is_launched_before_the_last_one_is_read() -> None:
    device = Late()
    engine = engine_of(ToyModel(), device)
    engine.submit(request("r", [1, 2, 3], SamplingParams(max_tokens=4, seed=1)))
    told = [[event.token_id for event in engine.step()] for _ in range(5)]
    assert [len(tokens) for tokens in told] == [0, 1, 1, 1, 1]  # each a step late
    assert device.most == 2
    assert not engine.busy


def test_a_choice_that_the_host_draws_for_holds_up_nobody() -> None:
    """Its neighbours have a token every step, launched ahead; it has one every other step."""
    device = Late()
    engine = engine_of(ToyModel(), device)
    requests = [request(name, [1, 2 + i], SamplingParams(max_tokens=12, seed=i)) for i, name in enumerate("ab")]
    requests.append(request("scored", [3, 4], SamplingParams(max_tokens=4, seed=2, logprobs=1)))
    expected = run(engine_of(ToyModel(), None), *requests)
    for one in requests:
        engine.submit(one)
    told = [[event.request_id for event in engine.step()] for _ in range(9)]
    assert told == [[], *[["a", "b", "scored"], ["a", "b"]] * 4]
    assert device.most == 2
    again = engine_of(ToyModel(), Late())
    assert run(again, *requests) == expected


def test_where_most_wait_for_the_host_all_do() -> None:
    device = Late()
    engine = engine_of(ToyModel(), device)
    engine.submit(request("free", [1, 2], SamplingParams(max_tokens=30, seed=1)))
    for name in "ab":
        engine.submit(request(name, [3, 4], SamplingParams(max_tokens=3, seed=2, logprobs=1)))
    events = engine.step() + engine.step() + engine.step()
    assert device.most == 0 and [event.request_id for event in events].count("a") == 3
    events += drain(engine)
    assert device.most == 2
    solo = run(engine_of(ToyModel(), None), request("free", [1, 2], SamplingParams(max_tokens=30, seed=1)))
    assert [event for event in events if event.request_id == "free"] == solo["free", 0]


@pytest.mark.parametrize("cancelled", range(1, 7))
def test_what_the_host_draws_may_be_cancelled_at_any_time(cancelled: int) -> None:
    requests = [request(name, [1, 2 + i], SamplingParams(max_tokens=12, seed=i)) for i, name in enumerate("ab")]
    scored = request("scored", [3, 4], SamplingParams(max_tokens=9, seed=2, logprobs=1))
    expected = run(engine_of(ToyModel(), None), *requests, scored)
    engine = engine_of(ToyModel(), Late())
    watch = Watch(engine)
    for one in (*requests, scored):
        engine.submit(one)
    events = [event for _ in range(cancelled) for event in engine.step()]
    engine.cancel("scored")
    choices = by_choice(events + drain(engine))
    assert choices["scored", 0][-1].finish == "cancelled"
    assert choices["scored", 0][:-1] == expected["scored", 0][: (cancelled + 1) // 2]
    assert {name: choices[name, 0] for name in "ab"} == {name: expected[name, 0] for name in "ab"}
    assert watch.ends == 3


def test_a_grammar_is_followed_in_the_loop() -> None:
    """Masks are made while its neighbours go on."""
    constraints = Constraints(lambda: ByteTokenizer().llguidance)
    try:
        grammar = LLMatcher.grammar_from_regex("[a-c]{3}")
        outcomes = []
        for device in (None, Late()):
            engine = Engine(tiny_rwkv7(), max_batch=4, max_queue=9, prefill_budget=32, constraints=constraints)
            if device is not None:
                engine.overlap(device)
            free = [request(str(i), [1, 2 + i], SamplingParams(max_tokens=40, seed=i)) for i in range(2)]
            bound = request("bound", [3], SamplingParams(max_tokens=9, seed=5, grammar=grammar))
            outcomes.append(run(engine, *free, bound))
        assert outcomes[0] == outcomes[1]
        assert all(97 <= (event.token_id or 0) <= 99 for event in outcomes[1]["bound", 0][:3])
    finally:
        constraints.close()


@pytest.mark.parametrize("steps", range(1, 6))
def test_what_is_cancelled_has_told_all_it_drew(steps: int) -> None:
    """And leaves the state after all of that but the last."""
    one = request("r", [1, 2, 3], SamplingParams(max_tokens=20, seed=1), choices=2)
    whole = run(engine_of(ToyModel(), None), one)
    engine = engine_of(ToyModel(), Late())
    watch = Watch(engine)
    engine.submit(one)
    events = [event for _ in range(steps) for event in engine.step()]
    engine.cancel("r", 1)
    assert watch.ends == 1 and engine.stats().slots_free == 4
    cancelled = by_choice(events + drain(engine))
    assert cancelled["r", 1][-1].finish == "cancelled"
    assert cancelled["r", 1][:-1] == whole["r", 1][:steps]
    assert cancelled["r", 0] == whole["r", 0]


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 9, 10])
def test_whoever_makes_room_goes_on_where_he_was(steps: int) -> None:
    mine = [request(f"a{i}", [1 + i, 2], SamplingParams(max_tokens=9, seed=i), tenant="a") for i in range(3)]
    others = [request(f"b{i}", [5 + i], SamplingParams(max_tokens=3, seed=i), tenant="b") for i in range(2)]
    expected = {one.id: run(engine_of(ToyModel(), None), one)[one.id, 0] for one in [*mine, *others]}
    engine = engine_of(ToyModel(), Late(), max_batch=3)
    Watch(engine)
    for one in mine:
        engine.submit(one)
    events = [event for _ in range(steps) for event in engine.step()]
    for one in others:
        engine.submit(one)
    choices = by_choice(events + drain(engine))
    assert {id: choices[id, 0] for id in expected} == expected


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("submit"),
            st.integers(0, len(KINDS) - 1),
            st.integers(1, 40),
            st.integers(1, 3),
            st.sampled_from("ab"),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 9), st.sampled_from([None, 0, 1])),
        st.tuples(st.just("step"), st.integers(1, 6)),
    ),
    min_size=5,
    max_size=25,
)


@settings(max_examples=12, deadline=None)
@given(actions=ACTIONS, late=st.booleans())
def test_random_traffic_ends_as_on_the_plain_engine(actions: list[tuple[Any, ...]], late: bool) -> None:
    """Whoever is cancelled has the beginning of what he would have had."""
    engine = engine_of(ToyModel(), Late() if late else Prompt(), max_batch=3)
    Watch(engine)
    requests: list[Request] = []
    events: list[TokenEvent] = []
    for number, action in enumerate(actions):
        match action:
            case "submit", kind, length, choices, tenant:
                prompt = [(5 * number + 3 * i) % 29 for i in range(length)]
                requests.append(request(str(len(requests)), prompt, KINDS[kind], choices=choices, tenant=tenant))
                engine.submit(requests[-1])
            case "cancel", which, choice:
                engine.cancel(str(which), choice)
            case "step", count:
                events += [event for _ in range(count) for event in engine.step()]
    got = by_choice(events + drain(engine))
    assert sum(one.choices for one in requests) == len(got)
    whole = run(engine_of(ToyModel(), None), *requests)
    for one in requests:
        for index in range(one.choices):
            mine, his = got[one.id, index], whole[one.id, index]
            if mine[-1].finish == "cancelled":
                assert mine[:-1] == his[: len(mine) - 1]
            else:
                assert mine == his
    assert engine.stats().slots_free == 3 and not engine._sampling and not engine._by_host


class LoopedSessions(SessionsMachine):
    """The machine of the sessions, on an engine that launches ahead."""

    def new_host(self) -> Host:
        host = super().new_host()
        host.engine.overlap(Late()).record(Eager(), [1, 4], mixed=[(0, 64), (4, 32)])
        return host


TestLoopedSessions = LoopedSessions.TestCase
TestLoopedSessions.settings = settings(max_examples=3, stateful_step_count=25, deadline=None)


def test_prefixes_are_found_again_while_steps_overlap() -> None:
    plain, looped = (engine_of(ToyModel(), device, cache_bytes=2**20) for device in (None, Late()))
    first = request("first", list(range(1, 30)), SamplingParams(max_tokens=20, seed=1))
    for engine in (plain, looped):
        drawn = [event.token_id or 0 for event in run(engine, first)["first", 0]]
        again = request("again", [*first.prompt_ids, *drawn, 5], SamplingParams(max_tokens=3, seed=2))
        known = request("known", list(first.prompt_ids), SamplingParams(max_tokens=3, seed=3), choices=2)
        found = run(engine, again, known)
        assert found["again", 0][0].cached_tokens == 29 + 19
        assert [found["known", index][0].cached_tokens for index in (0, 1)] == [29, 29]
        assert engine.reuse is not None
    assert plain.reuse is not None and looped.reuse is not None
    kept, expected = looped.reuse.cache.memory._held, plain.reuse.cache.memory._held
    assert kept.keys() == expected.keys() and len(kept) >= 4
    for key, snapshot in kept.items():
        assert equal(snapshot.state.wkv, expected[key].state.wkv)


class Counting(Late):
    """Counts what is brought to the host, and what is waited for of that."""

    def __init__(self) -> None:
        super().__init__()
        self.brought = self.waited = 0

    def bring(self, values: torch.Tensor) -> Callable[[], torch.Tensor]:
        arrive = super().bring(values)
        self.brought += 1

        def wait() -> torch.Tensor:
            self.waited += 1
            return arrive()

        return wait


def test_no_step_waits_for_a_state_that_is_saved() -> None:
    """Whoever reads it does."""
    device = Counting()
    engine = engine_of(ToyModel(), device, cache_bytes=2**20)
    first = request("first", list(range(1, 30)), SamplingParams(max_tokens=20, seed=1))
    run(engine, first)
    assert device.brought >= 5 and device.waited == 0
    assert engine.reuse is not None and engine.reuse.cache.memory.used_bytes > 0
    run(engine, request("again", [*first.prompt_ids, 5], SamplingParams(max_tokens=3, seed=2)))
    assert device.waited > 0


def test_a_poisoned_request_fails_alone() -> None:
    """When its step is launched, the step before it is under way, and may end some of those it runs with."""
    requests = [request(f"r{i}", [1 + i, 2], SamplingParams(max_tokens=3 + i, seed=i)) for i in range(3)]
    expected = {one.id: run(engine_of(ToyModel(), None), one)[one.id, 0] for one in requests}
    for before in range(6):
        engine = engine_of(ToyModel(), Late())
        for one in requests:
            engine.submit(one)
        events = [event for _ in range(before) for event in engine.step()]
        engine.submit(request("bomb", [1, BOMB], SamplingParams(max_tokens=3), choices=2))
        choices = by_choice(events + drain(engine))
        assert [choices["bomb", index][-1].finish for index in (0, 1)] == ["error", "error"]
        assert {id: choices[id, 0] for id in expected} == expected
        assert engine.stats().slots_free == 5


def test_a_row_whose_output_is_not_finite_fails_alone() -> None:
    good = request("good", [1, 2, 3], SamplingParams(max_tokens=9, seed=1))
    expected = run(engine_of(ToyModel(), None), good)["good", 0]
    engine = engine_of(ToyModel(), Late(), max_batch=2)
    choices = run(engine, good, request("nan", [4, NAN, 5], SamplingParams(max_tokens=9, seed=2)))
    (end,) = choices["nan", 0]
    assert end.finish == "error" and end.error is not None and "finite" in end.error
    assert choices["good", 0] == expected
    again = replace(good, id="slot of nan")
    assert [event.token_id for event in run(engine, again)["slot of nan", 0]] == [one.token_id for one in expected]


def test_a_state_that_cannot_be_kept_costs_no_neighbour() -> None:
    requests = [request(f"r{i}", [1 + i, 2], SamplingParams(max_tokens=6, seed=i)) for i in range(3)]
    expected = {one.id: run(engine_of(ToyModel(), None), one)[one.id, 0] for one in requests}
    engine = engine_of(ToyModel(), Late())

    class Full(Watch):
        def consumed(self, batch: Batch, hidden: torch.Tensor) -> None:
            if any(chunk.prefill.request.id == "large" for chunk in batch.chunks):
                raise MemoryError

    Full(engine)
    for one in requests:
        engine.submit(one)
    events = engine.step() + engine.step()
    engine.submit(request("large", [1, 2, 3], SamplingParams(max_tokens=3)))
    choices = by_choice(events + drain(engine))
    assert choices["large", 0][-1].finish == "error"
    assert {id: choices[id, 0] for id in expected} == expected


def test_a_lost_device_is_not_survived() -> None:
    model = ToyModel()
    engine = engine_of(model, Late())
    engine.submit(request("r", [1, 2, 3], SamplingParams(max_tokens=9)))
    engine.step()
    model.lost = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.step()


def test_what_a_step_takes_is_counted_for_the_step_that_took_it() -> None:
    """The prompt's step is read, and timed, when the next one has been launched."""
    now = [0.0]
    model = ToyModel()
    engine = Engine(
        model, max_batch=2, max_queue=4, prefill_budget=512, step_target_s=1.0, clock=lambda: now[0]
    )  # fmt: skip

    class Slow(Late):
        def fetch(self, values: torch.Tensor) -> Callable[[], list[int]]:
            wait = super().fetch(values)
            took = 8.0 if max(model.passes[-1]) > 1 else 0.5

            def later() -> list[int]:
                now[0] += took
                return wait()

            return later

    engine.overlap(Slow())
    engine.submit(request("r", [1 + i % 29 for i in range(64)], SamplingParams(max_tokens=3, seed=1)))
    assert engine.pace.tokens == 64
    engine.step()
    assert engine.pace.tokens == 64
    engine.step()
    assert engine.pace.tokens == 32 and engine.stats().step_seconds == 8.0
    drain(engine)
    assert engine.stats().step_seconds == 0.5


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(max_tokens=1, stop_token_ids=tuple(range(MAX_STOPS))), True),
        (SamplingParams(max_tokens=1, stop_token_ids=tuple(range(MAX_STOPS + 1))), False),
        (SamplingParams(max_tokens=1, logit_bias=dict.fromkeys(range(MAX_BIASES), 1.0)), True),
        (SamplingParams(max_tokens=1, logit_bias=dict.fromkeys(range(MAX_BIASES + 1), 1.0)), False),
        (SamplingParams(max_tokens=1, grammar="{}"), False),
        (SamplingParams(max_tokens=1, logprobs=0), False),
        (SamplingParams(max_tokens=1, typical_p=0.9), False),
    ],
)
def test_what_a_device_can_draw(params: SamplingParams, expected: bool) -> None:
    assert fits(params) == expected
