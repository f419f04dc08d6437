"""Recorded decode steps on a CPU, where a recording is the step itself: sizes, padding, and the check at the start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.server.engine.graphs import DecodeGraphs, Outcome, buckets, recordable

from .checkpoints import random_model
from .devices import Eager


class Stale(Eager):
    """For steps of 2 rows, repeats the outcome of the recording for ever, as a wrongly recorded graph does."""

    def record(self, run: Callable[[], Outcome]) -> Callable[[], Outcome]:
        outcome = run()
        if not isinstance(outcome, Tensor) or len(outcome) != 2:
            return run
        stale = outcome.clone()
        return lambda: stale


@pytest.mark.parametrize("version", ["4", "7"])
def test_steps_equal_the_model_and_leave_other_slots_alone(version: str) -> None:
    model = random_model("4" if version == "4" else "7")
    recorded, plain = model.new_pool(5), model.new_pool(5)
    graphs = DecodeGraphs(model, recorded, Eager(), [1, 2, 4])
    assert torch.equal(recorded.wkv, plain.wkv)  # the check at the start leaves no trace
    for token_ids, slots in ([[5], [3]], [[1, 2, 3], [4, 3, 0]], [[7, 8], [0, 4]]):
        got = graphs.forward(token_ids, slots)
        expected = model.forward(torch.tensor(token_ids), Rows.pack(slots, [1] * len(slots)), plain)
        assert got is not None
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(recorded.wkv, plain.wkv, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(recorded.shift, plain.shift, rtol=1e-5, atol=1e-5)


def test_outcomes_outlive_the_next_step() -> None:
    model = random_model("7")
    graphs = DecodeGraphs(model, model.new_pool(2), Eager(), [2])
    first = graphs.forward([1, 2], [0, 1])
    assert first is not None
    before = first.clone()
    graphs.forward([3, 4], [0, 1])
    assert torch.equal(first, before)


def test_too_many_rows_have_no_graph() -> None:
    model = random_model("7")
    assert DecodeGraphs(model, model.new_pool(3), Eager(), [2]).forward([1, 2, 3], [0, 1, 2]) is None


def test_a_wrong_recording_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model("7")
    shares: list[float] = []
    graphs = DecodeGraphs(model, model.new_pool(4), Stale(), [1, 2, 4], shares.append)
    assert graphs.sizes == [1, 4]
    assert "2 rows differs" in caplog.text
    assert shares == [1 / 3, 2 / 3, 1]


def test_sizes_grow_to_the_largest_batch() -> None:
    assert buckets(1) == [1]
    assert buckets(10) == [1, 2, 4, 8, 10]
    assert buckets(64)[-3:] == [32, 48, 64]
    assert buckets(960)[-1] == 960
    assert buckets(5000)[-1] == 960
    assert all(sizes == sorted(set(sizes)) for sizes in map(buckets, range(1, 1000, 37)))


def test_the_cpu_records_nothing() -> None:
    assert not recordable(torch.device("cpu"))
