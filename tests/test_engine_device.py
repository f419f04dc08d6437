"""The memory that values wait in for their way to a device that fetches them as late as it may."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.server.engine.device import Staging


class Lazy:
    """Fetches what it was given when somebody waits for it."""

    def __init__(self) -> None:
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.fetched = 0

    def copy(self, held: Tensor) -> None:
        self.pending.append((held, held.clone()))

    def catch_up(self, to: int) -> None:
        for held, expected in self.pending[self.fetched : to]:
            assert torch.equal(held, expected), "overwritten before it was fetched"
        self.fetched = max(self.fetched, to)


class Mark:
    def __init__(self, device: Lazy) -> None:
        self.device, self.at = device, 0

    def record(self) -> None:
        self.at = len(self.device.pending)

    def synchronize(self) -> None:
        self.device.catch_up(self.at)


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(0, 33), max_size=60), dtype=st.sampled_from([torch.int64, torch.float64]))
def test_nothing_is_overwritten_before_it_was_fetched(lengths: list[int], dtype: torch.dtype) -> None:
    device = Lazy()
    staging = Staging(list(torch.zeros(3, 256, dtype=torch.uint8)), [Mark(device) for _ in range(3)])
    for number, length in enumerate(lengths):
        values = torch.full((length,), number, dtype=dtype)
        held = staging.hold(values)
        if length > 32:
            assert held is None  # more than a segment
            continue
        assert held is not None and torch.equal(held, values) and held.dtype == dtype
        device.copy(held)
    device.catch_up(len(device.pending))


def test_values_keep_their_shape_and_may_change_afterwards() -> None:
    device = Lazy()
    staging = Staging(list(torch.zeros(2, 1024, dtype=torch.uint8)), [Mark(device), Mark(device)])
    values = torch.arange(12).view(3, 4).T
    held = staging.hold(values)
    assert held is not None and held.shape == (4, 3)
    expected = values.clone()
    values.zero_()
    assert torch.equal(held, expected)
