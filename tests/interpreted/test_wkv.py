"""The WKV kernels in Triton's interpreter: equal to their references, rows apart, hard inputs finite, cuts unseen."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.triton import wkv6 as triton6
from rookery.kernels.triton import wkv7 as triton7
from rookery.kernels.wkv4 import EMPTY_MAX, wkv4, wkv4_reference
from rookery.kernels.wkv5 import wkv5, wkv5_reference
from rookery.kernels.wkv6 import wkv6, wkv6_reference
from rookery.kernels.wkv7 import wkv7, wkv7_reference

from ..test_kernels_wkv import Case

NAMES = ["wkv4", "wkv5", "wkv6", "wkv7"]
EXACT = 1e-4
HALF = 4e-3
"""Of products with float16 operands; 4e-3 is where long texts begin to suffer."""


def halved(case: Case) -> tuple[Tensor, ...]:
    """The inputs a float16 model gives: tokens in float16, decay and bonus in float32."""
    exact = {"wkv4": (2, 3), "wkv5": (3, 4), "wkv6": (3, 4)}.get(case.fast.__name__, (1,))
    return tuple(x if i in exact else x.half() for i, x in enumerate(case.inputs))


def assert_near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def compare(case: Case, inputs: Sequence[Tensor], rows: Rows, tolerance: float) -> None:
    fast_state, slow_state = case.state.clone(), case.state.clone()
    fast, slow = case.fast(*inputs, fast_state, rows), case.slow(*inputs, slow_state, rows)
    assert_near(fast, slow, tolerance)
    assert_near(fast_state, slow_state, tolerance)  # the other slots too


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_any_rows_equal_the_reference(name: str, half: bool) -> None:
    slots, lengths = [3, -1, 1, 0, -1, 2, 5, 4], [1, 1, 17, 0, 3, 16, 15, 33]
    rows = Rows.pack(slots, lengths, positions=[0, 0, 0, 5, 14, 16, 1, 15])
    case = Case(name, rows.tokens, 0)
    compare(case, halved(case) if half else case.inputs, rows, HALF if half else EXACT)


@pytest.mark.parametrize("slots", [[2], [5, -1, 0], [*range(3, 7), -1, 0, -1]])
@pytest.mark.parametrize("name", NAMES)
def test_decode_rows_equal_the_reference(name: str, slots: list[int]) -> None:
    rows = Rows.pack(slots, [1] * len(slots))
    case = Case(name, rows.tokens, 1)
    compare(case, case.inputs, rows, EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_seventeen_decode_rows_with_a_strided_state(name: str) -> None:
    """As a layer sees the pool: slots lie further apart than a state is long."""
    rows = Rows.pack([*range(16, 0, -1), -1], [1] * 17)
    case = Case(name, 17, 2)
    pool = torch.randn(17, 3, *case.state.shape[1:], generator=torch.Generator().manual_seed(0)).abs()
    expected = pool.clone()
    got_y = case.fast(*case.inputs, pool[:, 1], rows)
    expected_y = case.slow(*case.inputs, expected[:, 1], rows)
    assert_near(got_y, expected_y, EXACT)
    assert_near(pool, expected, EXACT)


@pytest.mark.parametrize("name", NAMES)
def test_padding_reads_zero_and_no_tokens_change_nothing(name: str) -> None:
    case = Case(name, 10, 3)
    state = case.state.clone()
    got = case.fast(*case.inputs, state, Rows.pack([-1, -1], [1, 9]))
    assert torch.equal(state, case.state)
    expected = case.slow(*case.inputs, torch.zeros_like(state), Rows.pack([0, 1], [1, 9]))
    assert_near(got, expected, EXACT)
    assert len(case.fast(*case.part(slice(0, 0)), state, Rows.pack([1, 3], [0, 0]))) == 0
    assert torch.equal(state, case.state)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])  # wkv5 is wkv6's kernels
@settings(max_examples=3, deadline=None, derandomize=True)
@given(position=st.integers(0, 40), length=st.integers(1, 40), cuts=st.sets(st.integers(1, 4)))
def test_cuts_on_the_grid_change_no_bit(name: str, position: int, length: int, cuts: set[int]) -> None:
    """Wherever the row begins in its sequence, and whoever decodes beside it."""
    case = Case(name, 1 + length, 4)
    whole_state, cut_state = case.state.clone(), case.state.clone()
    rows = Rows.pack([5, 2], [1, length], positions=[7, position], decode=1)
    whole = case.fast(*case.inputs, whole_state, rows)[1:]
    lines = [16 * (position // 16 + cut) - position for cut in sorted(cuts)]
    pieces = []
    for start, stop in itertools.pairwise([0, *(line for line in lines if line < length), length]):
        rows = Rows.pack([2], [stop - start], positions=[position + start], decode=0)
        pieces.append(case.fast(*case.part(slice(1 + start, 1 + stop)), cut_state, rows))
    assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(cut_state[2], whole_state[2])


@pytest.mark.parametrize("name", ["wkv4", "wkv7"])
def test_any_cut_stays_within_rounding(name: str) -> None:
    case = Case(name, 40, 5)
    whole_state, cut_state = case.state.clone(), case.state.clone()
    whole = case.fast(*case.inputs, whole_state, Rows.pack([2], [40]))
    cuts = ((0, 1), (1, 8), (8, 25), (25, 40))
    pieces = [case.fast(*case.part(slice(a, b)), cut_state, Rows.pack([2], [b - a])) for a, b in cuts]
    assert_near(torch.cat(pieces), whole, EXACT)
    assert_near(cut_state, whole_state, EXACT)


@pytest.mark.parametrize("name", ["wkv4", "wkv7"])
def test_rows_do_not_know_their_batch_mates(name: str) -> None:
    lengths, slots = [1, 1, 20, 5], [3, 0, 6, 1]
    rows = Rows.pack(slots, lengths)
    case = Case(name, rows.tokens, 6)
    together_state, alone_state = case.state.clone(), case.state.clone()
    together = case.fast(*case.inputs, together_state, rows)
    start = 0
    for slot, length in zip(slots, lengths, strict=True):
        part = slice(start, start + length)
        alone = case.fast(*case.part(part), alone_state, Rows.pack([slot], [length]))
        assert torch.equal(together[part], alone)
        start += length
    assert torch.equal(together_state, alone_state)


@pytest.mark.parametrize(
    ("name", "module", "operands"), [("wkv6", triton6, torch.float32), ("wkv7", triton7, torch.float16)]
)
def test_chunked_equals_recurrent(name: str, module: ModuleType, operands: torch.dtype) -> None:
    slots, starts, positions = torch.tensor([2, -1, 0]), torch.tensor([0, 17, 17, 33]), torch.tensor([0, 5, 30])
    tolerance = EXACT if operands == torch.float32 else HALF
    case = Case(name, 33, 7)
    by_token, by_chunk = torch.empty_like(case.inputs[0]), torch.empty_like(case.inputs[0])
    token_state, chunk_state = case.state.clone(), case.state.clone()
    module.recurrent(*case.inputs, token_state, slots, starts, by_token)
    module.chunked(*case.inputs, chunk_state, slots, starts, positions, by_chunk, 33, operands)
    assert_near(by_chunk, by_token, tolerance)
    assert_near(chunk_state, token_state, tolerance)


def test_wkv6_takes_any_decay() -> None:
    case = Case("wkv6", 20, 8)
    r, k, v, log_decay, bonus = case.inputs
    drawn = torch.rand(log_decay.shape, generator=torch.Generator().manual_seed(0))
    for below, hardest in ((0.6, -30.0), (0.4, -368.0), (0.2, -float("inf"))):
        log_decay = torch.where(drawn < below, torch.tensor(hardest), log_decay)
    fast_state, slow_state = case.state.clone(), case.state.clone()
    rows = Rows.pack([1, 0], [1, 19])
    fast = wkv6(r, k, v, log_decay, bonus, fast_state, rows)
    assert_near(fast, wkv6_reference(r, k, v, log_decay, bonus, slow_state, rows), EXACT)
    assert_near(fast_state, slow_state, EXACT)


@pytest.mark.parametrize("log_decay", [0.0, -368.0])
def test_wkv5_takes_any_decay(log_decay: float) -> None:
    case = Case("wkv5", 20, 9)
    r, k, v, decay, bonus = case.inputs
    decay = torch.full_like(decay, log_decay)
    fast_state, slow_state = case.state.clone(), case.state.clone()
    rows = Rows.pack([1, 0], [1, 19])
    fast = wkv5(r, k, v, decay, bonus, fast_state, rows)
    assert_near(fast, wkv5_reference(r, k, v, decay, bonus, slow_state, rows), EXACT)
    assert_near(fast_state, slow_state, EXACT)


@pytest.mark.parametrize("log_decay", [-1e-6, -20.0])
def test_wkv4_takes_keys_no_exponential_could_hold(log_decay: float) -> None:
    case = Case("wkv4", 30, 10)
    k, v, decay, bonus = case.inputs
    decay = torch.full_like(decay, log_decay)
    state = torch.zeros_like(case.state)
    state[:, 2] = EMPTY_MAX
    fast_state, slow_state = state.clone(), state.clone()
    rows = Rows.pack([0], [30])
    fast = wkv4(200 * k, v, decay, bonus, fast_state, rows)
    assert_near(fast, wkv4_reference(200 * k, v, decay, bonus, slow_state, rows), EXACT)
    assert_near(fast_state, slow_state, EXACT)


@pytest.mark.parametrize(
    ("log_decay", "a", "half"),
    [(0.0, 1.0, False), (0.0, 1.0, True), (0.0, 0.5, False), (-0.6065306597, 1.0, True), (-0.6065306597, 0.5, False)],
)
def test_wkv7_takes_one_token_repeated(log_decay: float, a: float, half: bool) -> None:
    """Repeated keys with a full learning rate make the chunk's triangular system as badly conditioned as it gets."""
    tokens = 48
    random = torch.Generator().manual_seed(11)
    r, k, v = (torch.randn(1, 1, 64, generator=random).expand(tokens, 1, 64) for _ in range(3))
    kk = torch.nn.functional.normalize(k, dim=-1)
    if half:
        r, kk, v = r.half(), kk.half(), v.half()
    inputs = (r, torch.full(r.shape, log_decay), kk, v, kk, torch.full_like(r, a))
    fast_state, slow_state = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    fast = wkv7(*inputs, fast_state, Rows.pack([0], [tokens]))
    slow = wkv7_reference(*inputs, slow_state, Rows.pack([0], [tokens]))
    tolerance = 1e-2 if half else 1e-3
    assert_near(fast, slow, tolerance)
    assert_near(fast_state, slow_state, tolerance)


@pytest.mark.parametrize("name", ["wkv6", "wkv7"])
def test_float16_operands_survive_large_inputs(name: str) -> None:
    """Receptance of 12 and values of 5 times the usual size, at the hardest decay RWKV-7 allows."""
    case = Case(name, 33, 12)
    inputs = list(case.inputs)
    inputs[0] = inputs[0] * 12
    v = 2 if name == "wkv6" else 3
    inputs[v] = inputs[v] * 5
    inputs[3 if name == "wkv6" else 1] = torch.full_like(inputs[0], -0.6065306597)
    inputs = [x.half().float() for x in inputs]
    slots, starts, positions = torch.tensor([2]), torch.tensor([0, 33]), torch.tensor([9])
    module = triton6 if name == "wkv6" else triton7
    y, state = torch.empty_like(inputs[0]), case.state.clone()
    module.chunked(*inputs, state, slots, starts, positions, y, 33, torch.float16)
    slow_state = case.state.clone()
    slow = case.slow(*inputs, slow_state, Rows.pack([2], [33]))
    assert float((y - slow).abs().max()) <= 4e-3 * float(slow.abs().max())
    assert float((state - slow_state).abs().max()) <= 4e-3 * float(slow_state.abs().max())


def test_states_may_be_stored_in_float16() -> None:
    for name in ("wkv6", "wkv7"):
        case = Case(name, 20, 13)
        state = case.state.half()
        expected = state.float()
        rows = Rows.pack([2, 0], [1, 19])
        got_y, expected_y = case.fast(*case.inputs, state, rows), case.slow(*case.inputs, expected, rows)
        assert_near(got_y, expected_y, EXACT)
        assert_near(state.float(), expected, 1e-3)
        assert state.dtype == torch.float16
