"""The engine, driven step by step: tokens, choices, failures, and memory that does not grow."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch

from rookery.kernels.cpu.arrays import Array
from rookery.kernels.rows import Rows
from rookery.server.engine.engine import Engine
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.errors import InvalidRequest, QueueFull
from rookery.server.model.base import Model

from .tiny_model import BOMB, MICRO_PLAN, NAN, ToyModel, tiny_rwkv7


def greedy(max_tokens: int = 8) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, temperature=0)


def request(id: str, prompt: Iterable[int], sampling: SamplingParams | None = None, *, choices: int = 1) -> Request:
    return Request(id=id, prompt_ids=tuple(prompt), sampling=sampling or greedy(), choices=choices)


def engine_of(model: Model, *, max_batch: int = 8, max_queue: int = 64, prefill_budget: int = 64) -> Engine:
    return Engine(model, max_batch=max_batch, max_queue=max_queue, prefill_budget=prefill_budget)


def drain(engine: Engine, steps: int = 10_000) -> list[TokenEvent]:
    events: list[TokenEvent] = []
    for _ in range(steps):
        if not engine.busy:
            return events
        events += engine.step()
    raise AssertionError("the engine is still busy")


def run(engine: Engine, *requests: Request) -> dict[tuple[str, int], list[TokenEvent]]:
    for one in requests:
        engine.submit(one)
    return by_choice(drain(engine))


def by_choice(events: list[TokenEvent]) -> dict[tuple[str, int], list[TokenEvent]]:
    """Events of each choice; checks that each ended exactly once, with its last event."""
    choices = defaultdict(list)
    for event in events:
        choices[event.request_id, event.choice].append(event)
    for key, its in choices.items():
        assert [event.finish is not None for event in its] == [False] * (len(its) - 1) + [True], key
    return dict(choices)


def tokens(events: list[TokenEvent]) -> list[int]:
    return [event.token_id for event in events if event.token_id is not None]


def mixed(count: int, vocab_size: int) -> list[Request]:
    """Greedy and seeded requests with prompts and completions of all lengths."""
    generator = torch.Generator().manual_seed(5)
    settings = [
        greedy(),
        SamplingParams(max_tokens=0, seed=1),
        SamplingParams(max_tokens=0, temperature=0.8, top_p=0.9, seed=7),
        SamplingParams(max_tokens=0, top_k=20, presence_penalty=0.5, frequency_penalty=0.2, seed=2**40),
    ]
    requests = []
    for index in range(count):
        prompt = torch.randint(0, vocab_size, (1 + 5 * index % 71,), generator=generator).tolist()
        sampling = replace(settings[index % 4], max_tokens=3 + index % 17)
        requests.append(request(f"r{index}", prompt, sampling))
    return requests


def test_greedy_tokens_are_those_of_the_plain_recurrence() -> None:
    model = ToyModel()
    prompt = [1, 2, 3, 4, 5]
    history, expected = list(prompt), []
    for _ in range(6):
        pool = model.new_pool(1)
        hidden = model.forward(torch.tensor(history), Rows.pack([0], [len(history)]), pool)
        expected.append(int(model.logits(hidden[-1:]).argmax()))
        history.append(expected[-1])
    events = run(engine_of(model), request("r", prompt, greedy(6)))["r", 0]
    assert tokens(events) == expected
    assert events[-1].finish == "length"


@pytest.mark.parametrize("budget", [1, 3, 7, 16, 1000])
def test_the_cut_of_a_prompt_changes_nothing(budget: int) -> None:
    requests = [one for one in mixed(6, 256) if len(one.prompt_ids) > 1]
    whole = run(engine_of(tiny_rwkv7(), prefill_budget=4096), *requests)
    cut = run(engine_of(tiny_rwkv7(), prefill_budget=budget), *requests)
    assert {key: tokens(events) for key, events in cut.items()} == {key: tokens(its) for key, its in whole.items()}


def test_a_request_gets_the_same_tokens_alone_and_among_32() -> None:
    requests = mixed(32, 256)
    together = run(engine_of(tiny_rwkv7(), max_batch=32), *requests)
    crowded = run(engine_of(tiny_rwkv7(), max_batch=5, prefill_budget=23), *requests)
    for one in requests:
        alone = run(engine_of(tiny_rwkv7(), max_batch=1), one)[one.id, 0]
        assert tokens(together[one.id, 0]) == tokens(alone) == tokens(crowded[one.id, 0])
        assert len(tokens(alone)) == one.sampling.max_tokens
    assert len({tuple(tokens(events)) for events in together.values()}) > 20  # the requests do differ


def test_choices_share_one_prefill_and_draw_as_if_each_ran_alone() -> None:
    model = ToyModel()
    engine = engine_of(model)
    sampling = SamplingParams(max_tokens=6, seed=11)
    four = run(engine, request("four", range(1, 20), sampling, choices=4))
    assert sum(length for lengths in model.passes for length in lengths) == 19 + 4 * 5
    for index in range(4):
        solo_engine = engine_of(ToyModel())
        solo_engine.submit(request("solo", range(1, 20), sampling, choices=index + 1))
        for other in range(index):
            solo_engine.cancel("solo", other)
        assert tokens(by_choice(drain(solo_engine))["solo", index]) == tokens(four["four", index])
    assert len({tuple(tokens(four["four", index])) for index in range(4)}) > 1


def test_stop_tokens_end_a_choice_and_are_reported() -> None:
    free = tokens(run(engine_of(ToyModel()), request("r", [1, 2], greedy(8)))["r", 0])
    stop = free[4]
    sampling = replace(greedy(8), stop_token_ids=(stop,))
    events = run(engine_of(ToyModel()), request("r", [1, 2], sampling))["r", 0]
    assert tokens(events) == free[: free.index(stop) + 1]
    assert events[-1].finish == "stop"


def test_a_tuned_state_is_where_its_requests_start() -> None:
    model = ToyModel()
    one = request("r", [1, 2, 3])
    plain = run(engine_of(model), one)["r", 0]
    engine = engine_of(model)
    tuned = run(engine, replace(one, tuned_state="tuned"))["r", 0]
    assert tokens(plain) != tokens(tuned)
    assert tokens(run(engine, one)["r", 0]) == tokens(plain)  # in the slot the tuned one has left
    with pytest.raises(InvalidRequest, match="no state named"):
        engine.submit(replace(one, tuned_state="other"))


def test_prompt_logprobs_cover_every_position_whatever_the_cut() -> None:
    model = ToyModel()
    prompt = list(range(1, 24))
    hidden = model.forward(torch.tensor(prompt), Rows.pack([0], [len(prompt)]), model.new_pool(1))
    expected = model.logits(hidden).log_softmax(-1)
    sampling = SamplingParams(max_tokens=0, prompt_logprobs=2)
    for budget in (1, 5, 64):
        (event,) = run(engine_of(model, prefill_budget=budget), request("r", prompt, sampling))["r", 0]
        assert (event.token_id, event.finish) == (None, "length")
        assert event.prompt_logprobs is not None and len(event.prompt_logprobs) == len(prompt)
        assert event.prompt_logprobs[0] is None
        for position, scored in enumerate(event.prompt_logprobs[1:]):
            assert scored is not None
            assert scored.logprob == pytest.approx(float(expected[position, prompt[position + 1]]), abs=1e-5)
            assert [id for id, _ in scored.top] == expected[position].topk(2).indices.tolist()


def test_prompt_logprobs_come_once_with_the_first_token_of_choice_0() -> None:
    sampling = SamplingParams(max_tokens=3, prompt_logprobs=0)
    choices = run(engine_of(ToyModel()), request("r", [1, 2, 3], sampling, choices=2))
    assert [event.prompt_logprobs is not None for event in choices["r", 0]] == [True, False, False]
    assert [event.prompt_logprobs is not None for event in choices["r", 1]] == [False, False, False]


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancel_frees_the_slots_at_once_and_reports_in_the_next_step(steps: int) -> None:
    engine = engine_of(ToyModel(), max_batch=2, prefill_budget=4)
    engine.submit(request("r", range(1, 9), greedy(100), choices=2))  # 2 steps of prefill, then decoding
    engine.submit(request("next", [1, 2], greedy(1)))
    for _ in range(steps):
        engine.step()
    assert engine.stats().slots_free == 0 and engine.stats().waiting == 1
    engine.cancel("r")
    assert engine.stats().slots_free == 2
    events = engine.step()
    assert [(event.request_id, event.choice, event.finish) for event in events] == [
        ("r", 0, "cancelled"),
        ("r", 1, "cancelled"),
        ("next", 0, "length"),
    ]
    assert not engine.busy
    engine.cancel("r")
    assert not engine.busy


def test_a_request_that_gave_up_its_slot_goes_on_where_it_was() -> None:
    flood = [request(f"a{index}", range(1, 5 + index), SamplingParams(max_tokens=12, seed=index)) for index in range(6)]
    flood.append(request("long", [1 + index % 20 for index in range(90)], greedy(3)))
    alone = {one.id: tokens(run(engine_of(ToyModel()), one)[one.id, 0]) for one in flood}
    engine = engine_of(ToyModel(), max_batch=3, prefill_budget=16)
    for one in flood[::-1]:
        engine.submit(replace(one, tenant="a"))
    events = [event for _ in range(4) for event in engine.step()]
    for index in range(4):
        engine.submit(replace(request(f"b{index}", [index + 1, 2], greedy(2)), tenant="b"))
    events += engine.step()
    assert "b0" in {choice.request.id for choice in engine.scheduler.decoding.values()}
    choices = by_choice(events + drain(engine))
    assert {id: tokens(choices[id, 0]) for id in alone} == alone
    assert engine.stats().slots_free == 3


def test_one_choice_can_be_cancelled() -> None:
    engine = engine_of(ToyModel(), prefill_budget=4)
    sampling = SamplingParams(max_tokens=5, seed=3)
    whole = run(engine, request("whole", range(1, 9), sampling, choices=3))
    engine.submit(request("cut", range(1, 9), sampling, choices=3))
    engine.step()
    engine.cancel("cut", 0)
    cut = by_choice(drain(engine))
    assert [event.finish for event in cut["cut", 0]] == ["cancelled"]
    for index in (1, 2):
        assert tokens(cut["cut", index]) == tokens(whole["whole", index])


def test_a_poisoned_request_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    requests = [request(f"r{index}", range(1, 4 + index), greedy(12)) for index in range(5)]
    expected = {one.id: tokens(run(engine_of(ToyModel()), one)[one.id, 0]) for one in requests}
    engine = engine_of(ToyModel(), prefill_budget=9)
    for one in requests:
        engine.submit(one)
    events = [event for _ in range(4) for event in engine.step()]
    assert engine.scheduler.decoding and not engine.scheduler.prefills
    engine.submit(request("late", range(1, 20), greedy(3)))
    engine.submit(request("bomb", [1, 2, BOMB, 3], greedy(12), choices=2))
    choices = by_choice(events + drain(engine))
    for index in range(2):
        (end,) = choices["bomb", index]
        assert end.finish == "error" and end.error is not None and "the others go on" in end.error
    assert {id: tokens(choices[id, 0]) for id in expected} == expected
    assert choices["late", 0][-1].finish == "length"
    assert engine.stats().slots_free == 8
    assert [record.getMessage() for record in caplog.records] == [
        "a step over 6 rows failed",
        "a step over 1 rows failed; it ended request bomb",
    ]
    assert all(record.exc_info is not None for record in caplog.records)


def test_a_row_whose_output_is_not_finite_fails_alone() -> None:
    good = request("good", [1, 2, 3], greedy(12))
    expected = tokens(run(engine_of(ToyModel()), good)["good", 0])
    engine = engine_of(ToyModel(), max_batch=2)
    choices = run(engine, good, request("nan", [4, NAN, 5], greedy(12)))
    (end,) = choices["nan", 0]
    assert end.finish == "error" and end.error is not None and "finite" in end.error
    assert tokens(choices["good", 0]) == expected
    assert tokens(run(engine, good, replace(good, id="slot of nan"))["slot of nan", 0]) == expected


def test_a_failure_in_the_sampler_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(ToyModel())
    sample = engine.sampler.sample

    def failing(logits: torch.Tensor, choices: list[object]) -> object:
        if any(choice.params.seed == 666 for choice in choices):  # type: ignore[attr-defined]
            raise RuntimeError("cannot sample")
        return sample(logits, choices)  # type: ignore[arg-type]

    monkeypatch.setattr(engine.sampler, "sample", failing)
    good = request("good", [1, 2, 3], greedy(5))
    choices = run(engine, good, request("bad", [4, 5], SamplingParams(max_tokens=5, seed=666)))
    assert [event.finish for event in choices["bad", 0]] == ["error"]
    assert len(tokens(choices["good", 0])) == 5


class SlowGrammar:
    """A grammar that allows everything, and compiles until it is told to be done; also its own factory."""

    ready = False
    held = False
    complete = False

    def start(self, params: SamplingParams, tenant: str = "") -> SlowGrammar | None:
        return self if params.grammar is not None else None

    def prepare(self) -> None:
        """The next mask needs no work."""

    def allowed(self) -> Array:
        assert self.ready
        return np.full(1, -1, np.int32)

    def accept(self, token_id: int) -> None:
        """Anything goes."""


def test_a_grammar_that_still_compiles_holds_up_nobody_else() -> None:
    engine = engine_of(ToyModel(), prefill_budget=4)
    grammar = SlowGrammar()
    engine.constraints = grammar  # type: ignore[assignment]
    held = request("held", range(1, 11), replace(greedy(3), grammar="slow"))
    engine.submit(held)
    engine.submit(request("free", [1, 2, 3], greedy(9)))
    while engine.scheduler.running == 2:
        engine.step()
    assert [prefill.position for prefill in engine.scheduler.prefills] == [
        8
    ]  # whole blocks, all before the last prompt token
    steps = engine.steps
    assert engine.step() == [] and engine.busy and engine.steps == steps
    grammar.ready = True
    plain = run(engine_of(ToyModel()), replace(held, sampling=greedy(3)))
    assert tokens(drain(engine)) == tokens(plain["held", 0])


def test_a_choice_with_slow_masks_sits_out_and_its_neighbours_go_on() -> None:
    engine = engine_of(ToyModel())
    grammar = SlowGrammar()
    grammar.ready = True
    engine.constraints = grammar  # type: ignore[assignment]
    slow = request("slow", [5, 6], replace(greedy(6), grammar="slow"))
    engine.submit(slow)
    engine.submit(request("free", [1, 2, 3], greedy(9)))
    events = engine.step() + engine.step()
    grammar.held = True
    waiting = [event for _ in range(3) for event in engine.step()]
    assert [event.request_id for event in waiting] == ["free"] * 3
    grammar.held = False
    found = by_choice(events + waiting + drain(engine))
    assert tokens(found["slow", 0]) == tokens(run(engine_of(ToyModel()), replace(slow, sampling=greedy(6)))["slow", 0])
    assert len(tokens(found["free", 0])) == 9


def test_a_lost_device_is_not_survived() -> None:
    model = ToyModel()
    engine = engine_of(model)
    engine.submit(request("r", [1, 2, 3]))
    engine.step()
    model.lost = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.step()


def test_bad_requests_are_refused_before_they_run() -> None:
    engine = engine_of(ToyModel(), max_batch=1, max_queue=1)
    for prompt in ([], [32], [-1, 3], [2**40]):
        with pytest.raises(InvalidRequest):
            engine.submit(request("bad", prompt))
    with pytest.raises(InvalidRequest, match="grammar"):
        engine.submit(request("bad", [1], replace(greedy(), grammar="{}")))
    engine.submit(request("runs", [1]))
    engine.submit(request("waits", [1]))
    with pytest.raises(QueueFull):
        engine.submit(request("too many", [1]))
    assert set(by_choice(drain(engine))) == {("runs", 0), ("waits", 0)}


def grown_after(steps: int) -> tuple[float, int, int]:
    """RSS growth (share) between 10 tokens and the end of a long generation, and the pool's bytes at both points."""
    engine = engine_of(tiny_rwkv7(MICRO_PLAN), max_batch=2)
    pool_bytes = [tensor.numel() * tensor.element_size() for tensor in (engine.pool.wkv, engine.pool.shift)]
    engine.submit(request("long", [1, 2, 3], SamplingParams(max_tokens=steps, seed=1)))
    process = psutil.Process()
    for _ in range(10):
        engine.step()
    gc.collect()
    before = process.memory_info().rss
    finish = None
    while engine.busy:
        finish = engine.step()[-1].finish
    assert finish == "length"
    gc.collect()
    after = [tensor.numel() * tensor.element_size() for tensor in (engine.pool.wkv, engine.pool.shift)]
    return process.memory_info().rss / before - 1, sum(pool_bytes), sum(after)


def test_memory_after_5_000_tokens_is_that_after_10() -> None:
    growth, before, after = grown_after(5_000)
    assert growth < 0.02
    assert before == after


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_after_100_000_tokens_is_that_after_10() -> None:
    growth, before, after = grown_after(100_000)
    assert growth < 0.02
    assert before == after
