"""The scheduler, without a model: who runs, in which slot, and that nobody is lost."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rookery.server.engine.batch import Batch
from rookery.server.engine.fair import fair_shares
from rookery.server.engine.pace import Pace
from rookery.server.engine.request import Request, SamplingParams
from rookery.server.engine.scheduler import Scheduler
from rookery.server.errors import InvalidRequest, QueueFull


def request(id: str, prompt: int = 3, *, max_tokens: int = 2, choices: int = 1, tenant: str = "") -> Request:
    return Request(
        id=id,
        prompt_ids=tuple(range(1, prompt + 1)),
        sampling=SamplingParams(max_tokens=max_tokens),
        choices=choices,
        tenant=tenant,
    )


def advance(scheduler: Scheduler) -> Batch | None:
    """One step that draws token 7 for every choice that can draw."""
    batch = scheduler.next_batch()
    if batch is None:
        return None
    ready = batch.ready
    scheduler.consumed(batch)
    for choice, _ in ready:
        scheduler.drew(choice, 7, ended=False)
    return batch


@given(st.integers(0, 60), st.lists(st.integers(1, 40), max_size=12))
def test_fair_shares_spend_the_budget_and_starve_nobody_who_fits(budget: int, wants: list[int]) -> None:
    shares = fair_shares(budget, wants)
    assert sum(shares) == (min(budget, sum(wants)) if budget >= len(wants) else min(budget, len(wants)))
    assert all(0 <= share <= want for share, want in zip(shares, wants, strict=True))
    assert all(shares[: min(budget, len(wants))])
    full = [share for share, want in zip(shares, wants, strict=True) if share == want]
    cut = [share for share, want in zip(shares, wants, strict=True) if 0 < share < want]
    if budget >= len(wants) and cut:
        assert max(cut) - min(cut) <= 1
        assert max(full, default=0) <= max(cut) + 1


def test_a_long_prompt_does_not_block_a_short_one() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=64)
    scheduler.submit(request("long", 100_000))
    advance(scheduler)
    scheduler.submit(request("short", 20))
    batch = advance(scheduler)
    assert batch is not None
    assert [chunk.stop - chunk.start for chunk in batch.chunks] == [32, 20]  # whole blocks
    assert [choice.request.id for choice in scheduler.decoding.values()] == ["short"]


def test_of_prompts_that_come_together_the_first_are_done_first() -> None:
    scheduler = Scheduler(max_batch=9, max_queue=9, prefill_budget=8192, piece=128)
    scheduler.submit(request("long", 5000))
    for index in range(8):
        scheduler.submit(request(str(index), 64))
    answered = []
    while scheduler.prefills:
        batch = advance(scheduler)
        assert batch is not None
        answered.append(sorted(prefill.request.id for prefill in batch.prompts))
    steps = [step for step, ids in enumerate(answered) for _ in ids]
    assert [id for ids in answered for id in ids] == [*"01234567", "long"] and steps[0] < steps[3] < steps[7] <= 5


@pytest.mark.parametrize("piece", [None, 16])
def test_a_long_prompt_goes_on_under_a_stream_of_short_ones(piece: int | None) -> None:
    scheduler = Scheduler(max_batch=4, max_queue=8, prefill_budget=16, piece=piece)
    scheduler.submit(request("long", 400, max_tokens=1))
    for step in range(60):
        scheduler.submit(request(f"short {step}", 30, max_tokens=1))
        advance(scheduler)
        if not any(one.request.id == "long" for one in scheduler.prefills):
            return
        while scheduler.waiting:
            advance(scheduler)
    pytest.fail("the long prompt was never finished")


def test_tenants_take_turns_and_share_the_budget() -> None:
    scheduler = Scheduler(max_batch=2, max_queue=8, prefill_budget=8)
    for index in range(6):
        scheduler.submit(request(f"a{index}", 4, max_tokens=1, tenant="a"))
    scheduler.submit(request("b0", 4, max_tokens=1, tenant="b"))
    started = []
    while (batch := advance(scheduler)) is not None:
        started += [chunk.prefill.request.id for chunk in batch.chunks if chunk.start == 0]
    assert started == ["a0", "a1", "a2", "b0", "a3", "a4", "a5"]

    scheduler = Scheduler(max_batch=8, max_queue=8, prefill_budget=64)
    for index in range(5):
        scheduler.submit(request(f"a{index}", 50, tenant="a"))
    scheduler.submit(request("b0", 50, tenant="b"))
    batch = scheduler.next_batch()
    assert batch is not None
    spent: Counter[str] = Counter()
    for chunk in batch.chunks:
        spent[chunk.prefill.request.tenant] += chunk.stop - chunk.start
    assert spent == {"a": 32, "b": 32}


def test_prompts_are_cut_at_blocks_counted_from_the_first_token_of_their_sequence() -> None:
    scheduler = Scheduler(max_batch=8, max_queue=8, prefill_budget=40)
    origins = {"new": 0, "goes on": 21, "late": 3}
    for id, origin in origins.items():
        scheduler.submit(request(id, 100), origin=origin)
    ends = {id: [0] for id in origins}
    while scheduler.prefills:
        batch = advance(scheduler)
        assert batch is not None and sum(batch.lengths) - len(batch.decoding) <= 40
        for chunk in batch.chunks:
            assert chunk.start == ends[chunk.prefill.request.id][-1]
            ends[chunk.prefill.request.id].append(chunk.stop)
    for id, origin in origins.items():
        assert ends[id][-1] == 100 and all((origin + end) % 16 == 0 for end in ends[id][1:-1])


def test_a_budget_of_one_block_serves_everybody_in_turn() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=16)
    for tenant in "abc":
        scheduler.submit(request(tenant, 1000, tenant=tenant))
    served = [batch.chunks[0].prefill.request.id for _ in range(6) if (batch := advance(scheduler)) is not None]
    assert served == list("abcabc")


def test_what_is_parked_comes_back_between_steps_only() -> None:
    """A submission in the middle of a step must not give it a slot: it could be parked again before its state is."""
    scheduler = Scheduler(max_batch=2, max_queue=8, prefill_budget=640)
    scheduler.submit(request("a1", max_tokens=9, tenant="a"))
    scheduler.submit(request("a2", max_tokens=9, tenant="a"))
    advance(scheduler)
    scheduler.submit(request("b1", max_tokens=9, tenant="b"))
    assert [prefill.request.id for prefill, _ in scheduler.make_room()] == ["a2"]
    scheduler.cancel("b1")
    scheduler.submit(request("b2", max_tokens=9, tenant="b"))
    assert not scheduler.resumed and scheduler.slots_free == 1
    scheduler.admit()
    assert len(scheduler.resumed) == 1 and scheduler.slots_free == 0


def test_a_flood_gives_up_slots_to_whoever_has_less_than_his_share() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=80, prefill_budget=640)
    for index in range(64):
        scheduler.submit(request(f"a{index}", max_tokens=1000, tenant="a"))
    advance(scheduler)
    scheduler.submit(request("b0", max_tokens=2, tenant="b"))
    scheduler.submit(request("b1", max_tokens=2, tenant="b"))
    scheduler.submit(request("b2", max_tokens=2, tenant="b"))
    parked = scheduler.make_room()
    assert [prefill.request.id for prefill, _ in parked] == ["a3", "a2"]
    assert {slot for _, slot in parked} == {prefill.choices[0].slot for prefill in scheduler.prefills}
    assert (scheduler.running, scheduler.waiting, scheduler.slots_free) == (6, 61, 0)
    assert scheduler.make_room() == []  # both have their half now
    for prefill, slot in parked:
        prefill.state = f"of slot {slot}"
    advance(scheduler)
    advance(scheduler)
    scheduler.admit()
    assert {choice.request.id for choice in scheduler.decoding.values()} >= {"a0", "a1"}
    assert [state for _, state in scheduler.resumed] == [f"of slot {parked[-1][1]}"]
    assert scheduler.cancel("a3")  # while it is parked
    for id in [f"a{index}" for index in range(64)] + ["b2"]:
        scheduler.cancel(id)
    assert scheduler.slots_free == 4 and not scheduler.busy and not scheduler.queue


def test_the_pace_follows_what_steps_take() -> None:
    pace = Pace(8192, 0.25)
    for per_token in (0.001, 0.004, 0.00001):
        for _ in range(12):
            pace.took(pace.tokens, 0.05 + per_token * pace.tokens)
        full = 0.05 + per_token * pace.tokens
        assert full <= 0.25 and (pace.tokens == 8192 or full > 0.2)
    pace.took(3, 0.01)
    assert pace.tokens == 8192  # a short step says nothing of a full one
    for _ in range(12):
        pace.took(pace.tokens, 60.0)
    assert pace.tokens == 16
    assert Pace(512).tokens == 512


def test_a_full_queue_refuses_but_keeps_a_place_for_other_tenants() -> None:
    scheduler = Scheduler(max_batch=1, max_queue=2, prefill_budget=8)
    for index in range(3):
        scheduler.submit(request(f"a{index}", tenant="a"))
    assert (scheduler.running, scheduler.waiting) == (1, 2)
    with pytest.raises(QueueFull) as full:
        scheduler.submit(request("a3", tenant="a"))
    assert full.value.retry_after_s == 1
    scheduler.submit(request("b0", tenant="b"))
    with pytest.raises(QueueFull):
        scheduler.submit(request("b1", tenant="b"))


def test_impossible_requests_are_refused_before_they_take_anything() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=8)
    with pytest.raises(InvalidRequest, match="1 to 4") as refused:
        scheduler.submit(request("five", choices=5))
    assert refused.value.param == "n"
    with pytest.raises(InvalidRequest, match="empty"):
        scheduler.submit(request("nothing", 0))
    scheduler.submit(request("one"))
    with pytest.raises(InvalidRequest, match="is running"):
        scheduler.submit(request("one"))
    assert scheduler.slots_free == 3


def test_choices_are_admitted_together_and_share_one_prefill() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=8)
    scheduler.submit(request("one", 3, max_tokens=3))
    scheduler.submit(request("four", 3, choices=4))
    scheduler.submit(request("small", 3))  # would fit, but it is not its turn
    batch = advance(scheduler)
    assert batch is not None and [chunk.prefill.request.id for chunk in batch.chunks] == ["one"]
    assert scheduler.waiting == 2
    advance(scheduler)
    advance(scheduler)
    batch = scheduler.next_batch()
    assert batch is not None
    assert [(chunk.prefill.request.id, len(chunk.prefill.choices)) for chunk in batch.chunks] == [("four", 4)]
    scheduler.consumed(batch)
    assert len(scheduler.decoding) == 4


def test_cancelling_the_first_choice_keeps_the_prefill_for_the_others() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=8)
    scheduler.submit(request("r", 30, choices=3))
    advance(scheduler)
    slot = scheduler.prefills[0].choices[0].slot
    assert [choice.index for choice in scheduler.cancel("r", 0)] == [0]
    batch = scheduler.next_batch()
    assert batch is not None
    assert (batch.chunks[0].slot, batch.chunks[0].start) == (slot, 8)
    assert [choice.index for choice in batch.chunks[0].prefill.choices] == [1, 2]
    assert scheduler.slots_free == 2
    assert scheduler.cancel("r", 0) == []
    assert [choice.index for choice in scheduler.cancel("r")] == [1, 2]
    assert scheduler.slots_free == 4 and not scheduler.busy and scheduler.next_batch() is None


def test_quarantine_runs_every_row_alone_from_its_own_tokens() -> None:
    scheduler = Scheduler(max_batch=4, max_queue=4, prefill_budget=4)
    scheduler.submit(request("decoding", 3, max_tokens=9))
    advance(scheduler)
    scheduler.submit(request("prefilling", 6))
    advance(scheduler)
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.quarantine(batch)
    alone = [advance(scheduler) for _ in range(4)]
    ran = [[(chunk.prefill.request.id, chunk.start, chunk.stop) for chunk in one.chunks] for one in alone if one]
    assert ran == [
        [("prefilling", 0, 4)],
        [("prefilling", 4, 6)],
        [("decoding", 0, 4)],
        [("decoding", 4, 5)],
    ]
    together = scheduler.next_batch()
    assert together is not None and together.rows == 2 and not together.chunks


class SchedulerMachine(RuleBasedStateMachine):
    """Random submits, cancels, steps and failures against plain book-keeping."""

    @initialize(max_batch=st.integers(1, 5), max_queue=st.integers(1, 6), budget=st.integers(1, 12))
    def start(self, max_batch: int, max_queue: int, budget: int) -> None:
        self.scheduler = Scheduler(max_batch=max_batch, max_queue=max_queue, prefill_budget=budget)
        self.budget = budget
        self.unfinished: dict[str, set[int]] = {}
        self.order: dict[str, list[str]] = {}
        self.drawn: Counter[tuple[str, int]] = Counter()
        self.number = 0

    def finish(self, id: str, choice: int) -> None:
        self.unfinished[id].remove(choice)  # a second finish would raise
        if not self.unfinished[id]:
            del self.unfinished[id]

    @rule(
        prompt=st.integers(1, 30),
        choices=st.integers(1, 5),
        tenant=st.sampled_from("abc"),
        max_tokens=st.integers(0, 4),
    )
    def submit(self, prompt: int, choices: int, tenant: str, max_tokens: int) -> None:
        self.number += 1
        one = request(f"{tenant}{self.number}", prompt, max_tokens=max_tokens, choices=choices, tenant=tenant)
        try:
            self.scheduler.submit(one)
        except InvalidRequest:
            assert choices > self.scheduler.max_batch
        except QueueFull:
            assert self.scheduler.waiting >= self.scheduler.max_queue
        else:
            self.unfinished[one.id] = set(range(choices))
            self.order.setdefault(tenant, []).append(one.id)

    @precondition(lambda self: self.unfinished)
    @rule(data=st.data(), whole=st.booleans())
    def cancel(self, data: st.DataObject, whole: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.unfinished)))
        choice = None if whole else data.draw(st.integers(0, 4))
        for ended in self.scheduler.cancel(id, choice):
            self.finish(id, ended.index)
        assert not whole or id not in self.unfinished

    @rule(failed=st.sampled_from([False, False, False, True]))
    def step(self, failed: bool) -> None:
        for prefill, _ in self.scheduler.make_room():
            prefill.state = prefill.request.id
        self.scheduler.admit()
        for slot, state in self.scheduler.resumed:
            live = [one for choices in self.scheduler._requests.values() for one in choices]
            assert state in {one.request.id for one in live if one.slot == slot}
        self.scheduler.resumed.clear()
        batch = self.scheduler.next_batch()
        assert (batch is None) == (not self.unfinished)
        if batch is None:
            return
        slots = batch.slots
        assert len(set(slots)) == len(slots) and min(slots) >= 0
        assert len(batch.token_ids) == sum(batch.lengths)
        assert 0 <= sum(chunk.stop - chunk.start for chunk in batch.chunks) <= self.budget
        for chunk in batch.chunks:
            tenant = chunk.prefill.request.tenant
            queue = self.scheduler.queue._tenants.get(tenant, ())
            waiting = {one.request.id for one in queue if not one.parked}  # those have had their start
            later = self.order[tenant][self.order[tenant].index(chunk.prefill.request.id) + 1 :]
            assert waiting <= set(later)
        if failed:
            if batch.rows == 1:
                for choice in batch.choices:
                    self.scheduler.release(choice)
                    self.finish(choice.request.id, choice.index)
            else:
                self.scheduler.quarantine(batch)
            return
        ready = batch.ready
        for choice in self.scheduler.consumed(batch):
            assert choice.request.sampling.max_tokens == 0
            self.finish(choice.request.id, choice.index)
        for choice, position in ready:
            assert 0 <= position < sum(batch.lengths)
            self.drawn[choice.request.id, choice.index] += 1
            finish = self.scheduler.drew(choice, 7, ended=False)
            done = self.drawn[choice.request.id, choice.index] == choice.request.sampling.max_tokens
            assert finish == ("length" if done else None)
            if finish:
                self.finish(choice.request.id, choice.index)

    @invariant()
    def slots_are_owned_once(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        scheduler = self.scheduler
        held = [choice.slot for live in scheduler._requests.values() for choice in live if choice.slot >= 0]
        assert sorted(held + scheduler._free) == list(range(scheduler.max_batch))
        live = {id: {choice.index for choice in choices} for id, choices in scheduler._requests.items()}
        assert live == self.unfinished
        assert scheduler.waiting <= scheduler.max_queue + 2  # one more for each other tenant
        assert scheduler.running + scheduler.waiting == len(self.unfinished)

    def teardown(self) -> None:
        """Whatever state the play ends in, the rest is done in a bounded number of steps."""
        if not hasattr(self, "scheduler"):
            return
        bound = 40 * (1 + sum(len(choices) for choices in self.unfinished.values()))
        for _ in range(bound):
            self.step(failed=False)
            if not self.unfinished:
                break
        assert not self.unfinished and self.scheduler.slots_free == self.scheduler.max_batch


SchedulerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduler = SchedulerMachine.TestCase
