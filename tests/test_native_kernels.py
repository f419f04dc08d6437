"""Each native op, on every tier of this machine, against plain torch: odd sizes, unaligned rows, guard bands."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rookery.kernels.cpu.library import (
    LIBRARY_VARIABLE,
    Act,
    CBuffer,
    CCall,
    COp,
    Format,
    Kind,
    StaleLibrary,
    Team,
    library,
)
from rookery.kernels.cpu.packed import MEETS, Activations, Packed, pack, quantize_int4, quantize_int8
from rookery.kernels.cpu.sources import digest
from rookery.kernels.rows import Rows
from rookery.kernels.wkv4 import wkv4_reference
from rookery.kernels.wkv6 import wkv6_reference
from rookery.kernels.wkv7 import wkv7_reference
from rookery.server.model.torch_arrays import from_torch

if library() is None:
    pytest.skip("the native library is not built here", allow_module_level=True)

GUARD = 5
"""Numbers before and after what an op may touch; odd, so that what lies between is aligned to nothing."""


def _teams() -> list[Team]:
    teams = []
    for tier in ("portable", "avx2", "avx512"):
        try:
            teams.append(Team(2, tier))
        except RuntimeError:
            continue
    return teams


TEAMS = _teams()


@pytest.fixture(params=TEAMS, ids=lambda team: team.tier)
def team(request: pytest.FixtureRequest) -> Team:
    chosen: Team = request.param
    return chosen


class Guarded:
    """A float32 array with guard bands, filled with NaN or with numbers."""

    def __init__(self, *shape: int, values: Tensor | None = None, seed: int = 0) -> None:
        count = torch.Size(shape).numel()
        self.whole = torch.full((count + 2 * GUARD,), torch.nan)
        self.inside = self.whole[GUARD:-GUARD].view(shape)
        if values is not None:
            self.inside.copy_(values)

    def buffer(self) -> CBuffer:
        width = self.inside.shape[-1]
        return CBuffer(data=self.inside.data_ptr(), width=width, stride=width, format=Format.F32)

    def check(self, expected: Tensor, tolerance: float = 1e-5) -> None:
        torch.testing.assert_close(self.inside, expected, rtol=tolerance, atol=tolerance)
        assert self.whole[:GUARD].isnan().all() and self.whole[-GUARD:].isnan().all()


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def given(*shape: int, seed: int) -> Guarded:
    return Guarded(*shape, values=random(*shape, seed=seed))


def make_op(
    kind: Kind, inputs: Sequence[CBuffer | None], out: list[CBuffer], vectors: list[Tensor], **fields: int
) -> COp:
    op = COp(kind=kind, last=1, count=len(out), offset=fields.pop("offset", -1), **fields)
    for i, buffer in enumerate(inputs):
        if buffer is not None:
            op.in_[i] = buffer
    for i, buffer in enumerate(out):
        op.out[i] = buffer
    for i, vector in enumerate(vectors):
        op.vec[i] = vector.data_ptr()
    return op


def run(team: Team, op: COp, call: CCall) -> None:
    team.run((COp * 1)(op), call)


def sums(weight: Tensor, x: Tensor, format: Format) -> Tensor:
    """The product with both sides rounded as the format rounds them."""
    if format == Format.F32:
        return x @ weight.T
    if format == Format.BF16:
        return x.bfloat16().float() @ weight.bfloat16().float().T
    scale = x.abs().amax(1, keepdim=True) / 127
    whole = (x / torch.where(scale > 0, scale, 1)).round()
    if format == Format.INT8:
        numbers, scales = map(torch.from_numpy, quantize_int8(weight.numpy()))
        return (whole @ numbers.T) * scale * scales
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % 32))
    numbers, multipliers, scales = map(torch.from_numpy, quantize_int4(padded.numpy()))
    numbers = (numbers.view(len(weight), -1, 32) * multipliers.unsqueeze(-1)).view_as(padded)
    return (whole @ numbers[:, : weight.shape[1]].T) * scale * scales


ACTS: dict[Act, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    Act.NONE: lambda x, old, gate: x,
    Act.TANH: lambda x, old, gate: torch.tanh(x),
    Act.SIGMOID: lambda x, old, gate: torch.sigmoid(x),
    Act.RELU2: lambda x, old, gate: torch.relu(x).square(),
    Act.ADD: lambda x, old, gate: old + x,
    Act.ADD_GATED: lambda x, old, gate: old + x * gate,
}


@pytest.mark.parametrize("format", [Format.F32, Format.BF16, Format.INT8, Format.INT4])
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), [(1, 16, 64), (3, 77, 30), (9, 130, 65), (37, 64, 200)])
def test_products(team: Team, format: Format, tokens: int, outputs: int, inputs: int) -> None:
    weight, x = random(outputs, inputs, seed=1) / inputs**0.5, given(tokens, inputs, seed=2)
    matrix, gate = pack(weight.numpy(), format), given(tokens, outputs, seed=3)
    operand, call = x.buffer(), CCall(tokens=tokens)
    if MEETS[format] != Format.F32:
        packed = Activations(tokens, inputs, MEETS[format])
        run(team, make_op(Kind.PACK, [x.buffer()], [packed.struct()], []), call)
        operand = packed.struct()
    for act, meaning in ACTS.items():
        adds = act in (Act.ADD, Act.ADD_GATED)
        out = given(tokens, outputs, seed=4) if adds else Guarded(tokens, outputs)
        expected = meaning(sums(weight, x.inside, format), out.inside.clone(), gate.inside)
        op = make_op(Kind.MATMUL, [operand, gate.buffer()], [out.buffer()], [], act=act)
        op.matrix = matrix.struct()
        run(team, op, call)
        out.check(expected, 2e-5)


def test_a_nan_is_never_rounded_away(team: Team) -> None:
    for format in (Format.BF16, Format.INT8):
        x, out = given(2, 70, seed=0), Guarded(2, 20)
        x.inside[1, 66] = torch.nan
        packed, matrix = Activations(2, 70, format), pack(random(20, 70, seed=1).numpy(), format)
        run(team, make_op(Kind.PACK, [x.buffer()], [packed.struct()], []), CCall(tokens=2))
        op = make_op(Kind.MATMUL, [packed.struct()], [out.buffer()], [])
        op.matrix = matrix.struct()
        run(team, op, CCall(tokens=2))
        assert out.inside[0].isfinite().all() and out.inside[1].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_embedding_is_normed(team: Team, dtype: torch.dtype) -> None:
    table, out = random(11, 37, seed=0).to(dtype), Guarded(6, 37)
    weight, bias, ids = random(37, seed=1), random(37, seed=2), torch.tensor([3, 0, 10, 10, 5, 1])
    formats = {torch.float32: Format.F32, torch.bfloat16: Format.BF16, torch.float16: Format.F16}
    op = make_op(Kind.EMBED, [], [out.buffer()], [weight, bias])
    op.eps, op.matrix = 1e-5, Packed(from_torch(table), None, 11, 37, 37, formats[dtype]).struct()
    run(team, op, CCall(tokens=6, ids=ids.data_ptr()))
    out.check(torch.nn.functional.layer_norm(table[ids].float(), (37,), weight, bias, 1e-5))


LENGTHS = [1, 1, 0, 9, 3]
SLOTS = [4, 0, 1, 2, -1]


def call_of(rows: Rows, *, shift: Tensor | None = None, wkv: Tensor | None = None) -> CCall:
    state = shift if shift is not None else wkv
    assert state is not None
    return CCall(
        tokens=rows.tokens,
        rows=len(rows.lengths),
        slots=rows.slots.data_ptr(),
        starts=rows.starts.data_ptr(),
        shift=state.data_ptr(),
        wkv=state.data_ptr(),
        shift_stride=state[0].numel(),
        wkv_stride=state[0].numel(),
    )


@pytest.mark.parametrize("width", [16, 45])
def test_norm_shift_and_mixes(team: Team, width: int) -> None:
    rows, shift = Rows.pack(SLOTS, LENGTHS), given(6, 3, width, seed=0)
    x, weight, bias, share = (random(*s, seed=i) for i, s in enumerate([(14, width), (width,), (width,), (width,)]))
    normed = torch.nn.functional.layer_norm(x, (width,), weight, bias, 1e-5)
    before, expected_shift = torch.empty_like(normed), shift.inside.clone()
    for slot, tokens in rows.spans():
        last = shift.inside[slot[0], 1] if slot[0] >= 0 else torch.zeros(width)
        before[tokens] = torch.cat([last[None], normed[tokens][:-1]])
        if slot[0] >= 0:
            expected_shift[slot[0], 1] = normed[tokens][-1]
    source, plain, mixed = Guarded(14, width, values=x), Guarded(14, width), Guarded(14, width)
    op = make_op(Kind.MIX, [source.buffer()], [plain.buffer(), mixed.buffer()], [weight, bias], offset=width)
    op.eps, op.vec[3] = 1e-5, share.data_ptr()
    run(team, op, call_of(rows, shift=shift.inside))
    plain.check(normed)
    mixed.check(normed + share * (before - normed))
    shift.check(expected_shift)


@pytest.mark.parametrize("size", [20, 64])
def test_wkv7_with_its_norm_and_gate(team: Team, size: int) -> None:
    heads, tokens = 3, sum(LENGTHS)
    rows, state = Rows.pack(SLOTS, LENGTHS), given(6, heads, size, size, seed=0)
    r, w, k, v, a, g, share, v_first = (given(tokens, heads * size, seed=i) for i in range(1, 9))
    w0, a0, k_k, k_a, r_k, weight, bias, v0 = (random(heads * size, seed=i) for i in range(20, 28))
    shape = (tokens, heads, size)
    value = torch.lerp(v.inside, v_first.inside, torch.sigmoid(v0 + share.inside)).view(shape)
    rate = torch.sigmoid(a0 + a.inside)
    key = (k.inside * (1 + (rate - 1) * k_a)).view(shape)
    removal = torch.nn.functional.normalize((k.inside * k_k).view(shape), dim=-1)
    log_decay = (-0.606530660 * torch.sigmoid(w0 + w.inside)).view(shape)
    expected_state = state.inside.clone()
    receptance = r.inside.view(shape)
    y = wkv7_reference(receptance, log_decay, key, value, removal, rate.view(shape), expected_state, rows)
    y = torch.nn.functional.group_norm(y.flatten(1), heads, weight, bias, 64e-5)
    y = y + ((receptance * key * r_k.view(heads, size)).sum(-1, keepdim=True) * value).flatten(1)
    out = Guarded(tokens, heads * size)
    inputs: list[CBuffer | None] = [x.buffer() for x in (r, w, k, v, a, g, share, v_first)]
    vectors = [w0, a0, k_k, k_a, r_k, weight, bias, v0]
    op = make_op(Kind.WKV7, inputs, [out.buffer()], vectors, heads=heads, head_size=size, offset=0)
    op.eps = 64e-5
    run(team, op, call_of(rows, wkv=state.inside))
    out.check(y * g.inside, 2e-4)
    state.check(expected_state, 2e-4)


@pytest.mark.parametrize("size", [20, 64])
def test_wkv6_with_its_norm_and_gate(team: Team, size: int) -> None:
    heads, tokens = 3, sum(LENGTHS)
    rows, state = Rows.pack(SLOTS, LENGTHS), given(6, heads, size, size, seed=0)
    r, k, v, g, more = (given(tokens, heads * size, seed=i) for i in range(1, 6))
    speed, bonus, weight, bias = (random(heads * size, seed=i) for i in range(20, 24))
    shape, expected_state = (tokens, heads, size), state.inside.clone()
    log_decay = -torch.exp(speed + more.inside).view(shape)
    rkv = (r.inside.view(shape), k.inside.view(shape), v.inside.view(shape))
    y = wkv6_reference(*rkv, log_decay, bonus.view(heads, size), expected_state, rows)
    y = torch.nn.functional.group_norm(y.flatten(1), heads, weight, bias, 64e-5)
    out = Guarded(tokens, heads * size)
    inputs: list[CBuffer | None] = [x.buffer() for x in (r, k, v, g, more)]
    op = make_op(Kind.WKV6, inputs, [out.buffer()], [speed, bonus, weight, bias], heads=heads, head_size=size, offset=0)
    op.eps = 64e-5
    run(team, op, call_of(rows, wkv=state.inside))
    out.check(y * torch.nn.functional.silu(g.inside), 2e-4)
    state.check(expected_state, 2e-4)


@pytest.mark.parametrize("kind", [Kind.WKV6, Kind.WKV7])
@pytest.mark.parametrize("size", [24, 64])
def test_a_row_gives_the_same_bits_however_it_is_cut(team: Team, kind: Kind, size: int) -> None:
    """Many tokens of a row may have a form of their own, with the state turned; few have another."""
    heads, tokens = 2, 45
    inputs = [random(tokens, heads * size, seed=i) for i in range(8 if kind == Kind.WKV7 else 5)]
    vectors = [random(heads * size, seed=i) for i in range(20, 28)]
    outcomes = []
    for cuts in ([45], [7, 8, 1, 29], [1] * 45):
        state, out = random(1, heads, size, size, seed=9), torch.empty(tokens, heads * size)
        start = 0
        for length in cuts:
            given = [
                CBuffer(x[start:].data_ptr(), None, heads * size, heads * size, 0, Format.F32) for x in (*inputs, out)
            ]
            op = make_op(kind, given[:-1], given[-1:], vectors, heads=heads, head_size=size, offset=0)
            rows = Rows.pack([0], [length])
            run(team, op, call_of(rows, wkv=state))
            start += length
        outcomes.append((out, state))
    for out, state in outcomes[1:]:
        assert torch.equal(out, outcomes[0][0]) and torch.equal(state, outcomes[0][1])


@pytest.mark.parametrize("width", [16, 75])
def test_wkv4(team: Team, width: int) -> None:
    rows, tokens = Rows.pack(SLOTS, LENGTHS), sum(LENGTHS)
    start = random(6, 3, width, seed=0)
    start[:, 1] = start[:, 1].abs() + 0.1
    state, expected_state = Guarded(6, 3, width, values=start), start.clone()
    r, k, v = (given(tokens, width, seed=i) for i in range(1, 4))
    log_decay, bonus = -torch.exp(random(width, seed=9)), random(width, seed=10)
    y = wkv4_reference(k.inside, v.inside, log_decay, bonus, expected_state, rows)
    out = Guarded(tokens, width)
    op = make_op(Kind.WKV4, [x.buffer() for x in (r, k, v)], [out.buffer()], [log_decay, bonus], offset=0)
    run(team, op, call_of(rows, wkv=state.inside))
    out.check(r.inside * y)
    state.check(expected_state)


def test_lerp_adds_to_the_shares(team: Team) -> None:
    x, before, more = (given(6, 35, seed=i) for i in range(3))
    share, out = random(35, seed=4), Guarded(6, 35)
    op = make_op(Kind.LERP, [x.buffer(), before.buffer(), more.buffer()], [out.buffer()], [share])
    run(team, op, CCall(tokens=6))
    out.check(torch.lerp(x.inside, before.inside, share + more.inside))


def test_the_structs_have_the_size_of_those_in_c() -> None:
    native = library()
    assert native is not None and native.rookery_program() % 2**32 == ctypes.sizeof(COp)


def test_a_library_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that an older checkout built would write other numbers into the same buffers."""
    monkeypatch.setenv(LIBRARY_VARIABLE, "libm.so.6")
    with pytest.raises(StaleLibrary, match="was built from other sources"):
        library.__wrapped__()


def test_a_library_older_than_the_sources_beside_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of programs is raised by hand; what is forgotten there must not give other tokens in silence."""
    monkeypatch.delenv(LIBRARY_VARIABLE, raising=False)
    library.__wrapped__()
    monkeypatch.setattr("rookery.kernels.cpu.library.digest", lambda folder: digest(folder) ^ 1)
    with pytest.raises(StaleLibrary, match="was built from other sources"):
        library.__wrapped__()
    monkeypatch.setattr("rookery.kernels.cpu.library.digest", lambda folder: 0)  # an install without sources
    library.__wrapped__()


def test_unknown_tiers_and_teams_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no avx9000"):
        Team(1, "avx9000")
    with pytest.raises(RuntimeError, match="0 threads"):
        Team(0)
