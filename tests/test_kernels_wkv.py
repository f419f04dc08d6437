"""The WKV operators: the fast forms equal the plain recurrences, rows keep to themselves, hard inputs stay finite."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rookery.kernels.rows import Rows
from rookery.kernels.wkv4 import EMPTY_MAX, wkv4, wkv4_reference
from rookery.kernels.wkv5 import wkv5, wkv5_reference
from rookery.kernels.wkv6 import wkv6, wkv6_reference
from rookery.kernels.wkv7 import wkv7, wkv7_reference

HEADS, HEAD_SIZE, SLOTS = 2, 6, 7


class Case:
    """Random inputs of one operator for N tokens, and both its forms."""

    def __init__(self, name: str, tokens: int, seed: int, *, decay_scale: float = 1.0) -> None:
        random = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=random)

        width, heads = HEADS * HEAD_SIZE, (HEADS, HEAD_SIZE)
        r, k, v = (normal(tokens, *heads) for _ in range(3))
        log_decay = -torch.exp(decay_scale * normal(tokens, *heads))
        self.state = normal(SLOTS, *heads, HEAD_SIZE)
        self.inputs: tuple[Tensor, ...]
        self.fast: Callable[..., Tensor]
        self.slow: Callable[..., Tensor]
        self.per_token = 4
        """So many of the first inputs have a token axis."""
        match name:
            case "wkv4":
                self.inputs = (normal(tokens, width), normal(tokens, width), -torch.exp(normal(width)), normal(width))
                self.state = torch.stack((normal(SLOTS, width), normal(SLOTS, width).exp(), normal(SLOTS, width)), 1)
                self.fast, self.slow, self.per_token = wkv4, wkv4_reference, 2
            case "wkv5":
                self.inputs = (r, k, v, -torch.exp(decay_scale * normal(*heads)), normal(*heads))
                self.fast, self.slow, self.per_token = wkv5, wkv5_reference, 3
            case "wkv6":
                self.inputs = (r, k, v, log_decay, normal(*heads))
                self.fast, self.slow = wkv6, wkv6_reference
            case _:
                kk = torch.nn.functional.normalize(normal(tokens, *heads), dim=-1)
                log_decay = -0.6065306597 * torch.sigmoid(normal(tokens, *heads))
                self.inputs = (r, log_decay, k, v, kk, torch.sigmoid(normal(tokens, *heads)))
                self.fast, self.slow, self.per_token = wkv7, wkv7_reference, 6

    def part(self, tokens: slice) -> tuple[Tensor, ...]:
        """The inputs of these tokens alone."""
        return tuple(x[tokens] if i < self.per_token else x for i, x in enumerate(self.inputs))


NAMES = ["wkv4", "wkv5", "wkv6", "wkv7"]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.sampled_from([0, 1, 2, 7, 16, 31, 32, 33, 70]), min_size=1, max_size=4), seed=st.integers(0, 99)
)
def test_any_rows_equal_the_reference(name: str, lengths: list[int], seed: int) -> None:
    lengths = [1, 1, *lengths]
    rows = Rows.pack(
        torch.randperm(SLOTS, generator=torch.Generator().manual_seed(seed)).tolist()[: len(lengths)], lengths
    )
    case = Case(name, rows.tokens, seed)
    fast_state, slow_state = case.state.clone(), case.state.clone()
    fast, slow = case.fast(*case.inputs, fast_state, rows), case.slow(*case.inputs, slow_state, rows)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_state, slow_state, rtol=1e-4, atol=1e-4)  # the other slots too


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_know_their_batch_mates(name: str) -> None:
    lengths, slots = [1, 1, 1, 0, 40, 5, 16], [3, 0, 6, 1, 2, 5, 4]
    rows = Rows.pack(slots, lengths)
    case = Case(name, rows.tokens, 0)
    together_state = case.state.clone()
    together = case.fast(*case.inputs, together_state, rows)
    start = 0
    for slot, length in zip(slots, lengths, strict=True):
        tokens = slice(start, start + length)
        state = case.state.clone()
        alone = case.fast(*case.part(tokens), state, Rows.pack([slot], [length]))
        torch.testing.assert_close(together[tokens], alone, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together_state[slot], state[slot], rtol=1e-5, atol=1e-5)
        start += length


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["fast", "slow"])
def test_padding_reads_zero_and_writes_nothing(name: str, form: str) -> None:
    rows = Rows.pack([-1, 2, -1], [1, 1, 9])
    case = Case(name, rows.tokens, 1)
    operator = getattr(case, form)
    state = case.state.clone()
    got = operator(*case.inputs, state, rows)
    zero = torch.zeros_like(case.state)
    torch.testing.assert_close(got[:1], operator(*case.part(slice(0, 1)), zero.clone(), Rows.pack([0], [1])))
    torch.testing.assert_close(got[2:], operator(*case.part(slice(2, 11)), zero.clone(), Rows.pack([0], [9])))
    untouched = [slot for slot in range(SLOTS) if slot != 2]
    assert torch.equal(state[untouched], case.state[untouched])
    assert not torch.equal(state[2], case.state[2])


@pytest.mark.parametrize("name", NAMES)
def test_no_tokens_change_nothing(name: str) -> None:
    case = Case(name, 0, 2)
    state = case.state.clone()
    for rows in (Rows.pack([], []), Rows.pack([1, 3], [0, 0])):
        assert len(case.fast(*case.inputs, state, rows)) == 0
    assert torch.equal(state, case.state)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_inputs_are_computed_in_float32(name: str) -> None:
    rows = Rows.pack([0, 1], [1, 20])
    case = Case(name, rows.tokens, 3)
    rounded = tuple(x.bfloat16().float() for x in case.inputs)
    half = tuple(
        x.bfloat16() if i not in {"wkv4": (2,), "wkv5": (3,), "wkv6": (3,)}.get(name, (1,)) else x
        for i, x in enumerate(rounded)
    )
    got = case.fast(*half, case.state.clone(), rows)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, case.fast(*rounded, case.state.clone(), rows))


@pytest.mark.parametrize("hardest", [-5.0, -9.0, -30.0, -368.0, -float("inf")])
def test_wkv6_takes_any_decay(hardest: float) -> None:
    rows = Rows.pack([0], [75])
    case = Case("wkv6", 75, 4)
    r, k, v, log_decay, bonus = case.inputs
    hard = torch.rand(log_decay.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    log_decay = torch.where(hard, torch.tensor(hardest), log_decay)
    fast_state, slow_state = case.state.clone(), case.state.clone()
    fast = wkv6(r, k, v, log_decay, bonus, fast_state, rows)
    torch.testing.assert_close(fast, wkv6_reference(r, k, v, log_decay, bonus, slow_state, rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_state, slow_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("log_decay", [0.0, -1e-7, -8.0, -368.0])
def test_wkv5_takes_any_decay(log_decay: float) -> None:
    rows = Rows.pack([0], [75])
    case = Case("wkv5", 75, 5)
    r, k, v, _, bonus = case.inputs
    decay = torch.full((HEADS, HEAD_SIZE), log_decay)
    fast_state, slow_state = case.state.clone(), case.state.clone()
    fast = wkv5(r, k, v, decay, bonus, fast_state, rows)
    torch.testing.assert_close(fast, wkv5_reference(r, k, v, decay, bonus, slow_state, rows), rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(fast_state, slow_state, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("log_decay", [-1e-6, -20.0])
def test_wkv4_takes_keys_no_exponential_could_hold(log_decay: float) -> None:
    rows = Rows.pack([0], [70])
    case = Case("wkv4", 70, 6)
    k, v, decay, bonus = case.inputs
    decay = torch.full_like(decay, log_decay)
    state = torch.zeros_like(case.state)
    state[:, 2] = EMPTY_MAX
    fast_state, slow_state = state.clone(), state.clone()
    fast = wkv4(200 * k, v, decay, bonus, fast_state, rows)
    torch.testing.assert_close(fast, wkv4_reference(200 * k, v, decay, bonus, slow_state, rows), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_state, slow_state, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("a", [1.0, 0.5])
@pytest.mark.parametrize("log_decay", [0.0, -1e-4, -0.6065306597])
def test_wkv7_takes_one_token_repeated(a: float, log_decay: float) -> None:
    """Repeated keys with a full learning rate make the chunk's triangular system as badly conditioned as it gets.

    The bound is wider here: what is written and removed cancels, and without decay its rounding is never forgotten.
    """
    tokens = 2048
    random = torch.Generator().manual_seed(7)
    r, k, v = (torch.randn(1, 1, 64, generator=random).expand(tokens, 1, 64) for _ in range(3))
    kk = torch.nn.functional.normalize(k, dim=-1)
    inputs = (r, torch.full_like(r, log_decay), kk, v, kk, torch.full_like(r, a))
    fast_state, slow_state = torch.zeros(1, 1, 64, 64), torch.zeros(1, 1, 64, 64)
    fast = wkv7(*inputs, fast_state, Rows.pack([0], [tokens]))
    slow = wkv7_reference(*inputs, slow_state, Rows.pack([0], [tokens]))
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(fast_state, slow_state, rtol=1e-3, atol=1e-3)
