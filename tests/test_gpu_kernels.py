"""The Triton kernels on a GPU at the sizes models have, against the torch forms on the CPU; run with `-m gpu`."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from rookery.kernels.head_norm import head_norm
from rookery.kernels.rows import Rows
from rookery.kernels.sample import Penalties, Streams, sample, sample_reference
from rookery.kernels.sampling import Truncation
from rookery.kernels.shift_mix import shift_mix
from rookery.kernels.wkv7 import wkv7
from rookery.kernels.wkv7_heads import HeadWeights, wkv7_heads

from . import test_kernels_wkv
from .test_kernels_wkv import Case

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

NAMES = ["wkv4", "wkv5", "wkv6", "wkv7"]
EXACT, HALF = 2e-4, 4e-3
SLOTS = 40
Settings = TypeVar("Settings", Truncation, Streams, Penalties)
ROWS = ([3, -1, 0, 7, 1, 2, 5, 4, 6, 8], [1, 1, 1, 0, 15, 16, 17, 33, 700, 256])
POSITIONS = [0, 0, 0, 4, 0, 16, 15, 1, 1000, 7]


def pack(device: str) -> Rows:
    return Rows.pack(*ROWS, device, positions=POSITIONS)


@pytest.fixture(autouse=True)
def real_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_kernels_wkv, "HEADS", 12)
    monkeypatch.setattr(test_kernels_wkv, "HEAD_SIZE", 64)
    monkeypatch.setattr(test_kernels_wkv, "SLOTS", SLOTS)


def there(settings: Settings) -> Settings:
    """The same on the GPU."""
    names = [field.name for field in dataclasses.fields(settings)]
    return type(settings)(*(getattr(settings, name).cuda() for name in names))


def near(got: Tensor, expected: Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(got.cpu().float(), expected.float(), rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("half", [None, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_wkv_equals_the_torch_form(name: str, half: torch.dtype | None) -> None:
    cpu, gpu = pack("cpu"), pack("cuda")
    case = Case(name, cpu.tokens, 0)
    exact = {"wkv4": (2, 3), "wkv5": (3, 4), "wkv6": (3, 4)}.get(name, (1,))
    inputs = [x if half is None or i in exact else x.to(half) for i, x in enumerate(case.inputs)]
    cpu_state, gpu_state = case.state.clone(), case.state.cuda()
    got = case.fast(*(x.cuda() for x in inputs), gpu_state, gpu)
    expected = case.fast(*inputs, cpu_state, cpu)
    near(got, expected, HALF if half else EXACT)
    near(gpu_state, cpu_state, HALF if half else EXACT)


@pytest.mark.parametrize("name", ["wkv5", "wkv6", "wkv7"])
def test_states_may_be_stored_in_float16(name: str) -> None:
    cpu, gpu = pack("cpu"), pack("cuda")
    case = Case(name, cpu.tokens, 0)
    cpu_state, gpu_state = case.state.half(), case.state.half().cuda()
    got = case.fast(*(x.cuda() for x in case.inputs), gpu_state, gpu)
    near(got, case.fast(*case.inputs, cpu_state, cpu), EXACT)
    near(gpu_state, cpu_state.float(), 1e-3)


@pytest.mark.parametrize("half", [None, torch.float16])
@pytest.mark.parametrize("name", ["wkv5", "wkv6", "wkv7"])
def test_cuts_on_the_grid_change_no_bit(name: str, half: torch.dtype | None) -> None:
    case = Case(name, 300, 4)
    exact = {"wkv5": (3, 4), "wkv6": (3, 4)}.get(name, (1,))
    inputs = [x.cuda() if half is None or i in exact else x.to("cuda", half) for i, x in enumerate(case.inputs)]
    outcomes = []
    for cuts in ([0, 300], [0, 11, 27, 75, 299, 300], [0, 251, 300]):  # the row begins at 5
        state, pieces = case.state.cuda(), []
        for start, stop in itertools.pairwise(cuts):
            part = [x[start:stop] if i < case.per_token else x for i, x in enumerate(inputs)]
            rows = Rows.pack([2], [stop - start], "cuda", positions=[5 + start], decode=0)
            pieces.append(case.fast(*part, state, rows))
        outcomes.append((torch.cat(pieces), state))
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome, outcomes[0], strict=True))


@pytest.mark.parametrize("hardest", [-30.0, -368.0, -float("inf")])
def test_wkv6_takes_any_decay(hardest: float) -> None:
    case = Case("wkv6", 75, 8)
    r, k, v, log_decay, bonus = case.inputs
    hard = torch.rand(log_decay.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    inputs = (r, k, v, torch.where(hard, torch.tensor(hardest), log_decay), bonus)
    slow_state, state = case.state.clone(), case.state.cuda()
    got = case.fast(*(x.cuda() for x in inputs), state, Rows.pack([1, 0], [1, 74], "cuda"))
    near(got, case.slow(*inputs, slow_state, Rows.pack([1, 0], [1, 74])), EXACT)
    near(state, slow_state, EXACT)


@pytest.mark.parametrize("a", [1.0, 0.5])
@pytest.mark.parametrize("log_decay", [0.0, -0.6065306597])
def test_wkv7_takes_one_token_repeated(log_decay: float, a: float) -> None:
    random = torch.Generator().manual_seed(7)
    r, k, v = (torch.randn(1, 4, 64, generator=random).expand(4096, 4, 64) for _ in range(3))
    kk = torch.nn.functional.normalize(k, dim=-1)
    inputs = (r, torch.full_like(r, log_decay), kk, v, kk, torch.full_like(r, a))
    cpu_state, gpu_state = torch.zeros(1, 4, 64, 64), torch.zeros(1, 4, 64, 64, device="cuda")
    r, decay, k, v, kk, rate = (x.cuda() for x in inputs)
    got = wkv7(r, decay, k, v, kk, rate, gpu_state, Rows.pack([0], [4096], "cuda"))
    expected = wkv7(*inputs, cpu_state, Rows.pack([0], [4096]))
    near(got, expected, 2e-3)
    near(gpu_state, cpu_state, 2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_does_not_know_how_many_decode_with_it(name: str) -> None:
    case = Case(name, SLOTS - 1, 1)
    inputs = [x.cuda() for x in case.inputs]
    outcomes = []
    for rows in (1, 2, 17, SLOTS - 1):
        state = case.state.cuda()
        part = [x[:rows] if i < case.per_token else x for i, x in enumerate(inputs)]
        y = case.fast(*part, state, Rows.pack(list(range(rows)), [1] * rows, "cuda"))
        outcomes.append((y[0].clone(), state[0].clone()))
    for y, state in outcomes[1:]:
        assert torch.equal(y, outcomes[0][0])
        assert torch.equal(state, outcomes[0][1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_operators_equal_the_torch_forms(dtype: torch.dtype) -> None:
    from rookery.kernels.triton.wkv7_heads import wkv7_heads as heads_by_token

    heads, width = 12, 768
    cpu, gpu = pack("cpu"), pack("cuda")
    random = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    streams = [normal(cpu.tokens, width).to(dtype) for _ in range(8)]
    vectors = [normal(width) for _ in range(7)]
    r_k = normal(heads, 64)
    state, shift = normal(SLOTS, heads, 64, 64), normal(SLOTS, width).to(dtype)
    norm = [normal(width).to(dtype) for _ in range(2)]
    mu = normal(6, 1, width).to(dtype)
    results = []
    for device, rows in (("cuda", gpu), ("cpu", cpu)):
        r, w, k, v, a, g, v_first, v_share = (x.to(device) for x in streams)
        w0, a0, v0, k_k, k_a, weight, bias = (x.to(device) for x in vectors)
        weights = HeadWeights(w0, a0, v0, k_k, k_a, r_k.to(device), weight, bias)
        own_state, own_shift = state.to(device, copy=True), shift.to(device, copy=True)
        y = wkv7_heads(r, w, k, v, a, g, v_first, v_share, weights, own_state, rows)
        by_token = (
            y
            if device == "cpu"
            else heads_by_token(
                r, w, k, v, a, g, v_first, v_share, weights, state.to(device, copy=True), rows, by_token=True
            )
        )
        gated = head_norm(r.float().view(-1, heads, 64), weight, bias, g, dtype)
        total, mixed = shift_mix(r, k, norm[0].to(device), norm[1].to(device), mu.to(device), own_shift, rows)
        results.append((y, by_token, gated, own_state, total, mixed, own_shift))
    for got, expected in zip(*results, strict=True):
        near(got, expected, EXACT if dtype == torch.float32 else 2e-2)


def test_sampling_draws_the_tokens_of_the_reference() -> None:
    rows, vocab = 48, 65536
    logits = 3 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3))
    i = torch.arange(rows)
    settings = Truncation(
        temperature=torch.where(i % 5 == 0, 0.0, 0.5 + i / rows),
        top_k=torch.where(i % 3 == 0, 50, 0),
        top_p=torch.where(i % 2 == 0, 0.8, 1.0).double(),
        min_p=torch.where(i % 7 == 0, 0.05, 0.0).double(),
        typical_p=torch.ones(rows).double(),
        top_p_first=i % 4 == 0,
    )
    penalties = Penalties(
        counts=torch.zeros(rows, vocab, dtype=torch.float64).scatter_(1, i[:, None] * 11, 2.0),
        free=torch.zeros(rows, vocab, dtype=torch.uint8).scatter_(1, i[:, None] * 11, 1),
        slots=torch.where(i % 2 == 0, i, -1),
        repetition=torch.full((rows,), 1.1),
        presence=torch.full((rows,), 0.3),
        frequency=torch.full((rows,), 0.2),
        decay=torch.full((rows,), 0.996, dtype=torch.float64),
    )
    streams = Streams(i * 977, i % 2, i)
    settings_there, streams_there, penalties_there = there(settings), there(streams), there(penalties)
    limits = vocab - 9 * i
    got = sample(logits.cuda(), settings_there, streams_there, penalties_there, limits.cuda())
    expected = sample_reference(logits.clone(), settings, streams, penalties, limits)
    assert got.tolist() == expected.tolist()
    near(penalties_there.counts, penalties.counts, 1e-6)
