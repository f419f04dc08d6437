"""Whole models on a GPU: goldens, recorded steps, batches, steps launched ahead; run with `-m gpu`.

The same code also runs on a CPU, with an eager recorder and device (`-m slow`): so that what was written without a GPU
at hand fails on one for reasons of the GPU only.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.bench.device import measure
from rookery.server.engine.batch import Batch, Choice
from rookery.server.engine.device import CudaDevice
from rookery.server.engine.engine import Engine
from rookery.server.engine.graphs import CudaRecorder, DecodeGraphs, Recorder, buckets
from rookery.server.engine.loop import Flight
from rookery.server.engine.mixed_steps import mixed_sizes
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.engine.warm_up import warm_up
from rookery.server.model.base import Model
from rookery.server.model.load import construct
from rookery.server.model.synthetic import PRESETS, Plan, synthetic_checkpoint
from rookery.server.model.weights import read_checkpoint

from .checkpoints import build_model
from .devices import Eager, Late
from .test_model_goldens import MODELS, load


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.slow),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the test runs."""
    name: str = request.param
    return name


def recorder_for(device: str) -> Recorder:
    return CudaRecorder() if device == "cuda" else Eager()


def ready(engine: Engine, device: str) -> None:
    """As a server on a GPU makes its engine ready."""
    if device == "cuda":
        warm_up(engine)
        return
    sizes = buckets(engine.pool.slots)
    engine.forward.record(Eager(), sizes, lambda share: None)
    engine.overlap(Late()).record(Eager(), sizes)


def model_of(version: str, dtype: torch.dtype, device: str, wkv_dtype: torch.dtype = torch.float32) -> Model:
    """Two layers of usual head size."""
    ranks = {"6": (32, 64), "7": (64, 64, 32, 128)}.get(version, ())
    plan = Plan(version=version, layers=2, width=768, ffn_width=3072, vocab_size=512, ranks=ranks)  # type: ignore[arg-type]
    return construct(synthetic_checkpoint(plan, dtype=torch.float32), dtype, torch.device(device), wkv_dtype)


def events_of(engine: Engine) -> dict[tuple[str, int], list[TokenEvent]]:
    events: dict[tuple[str, int], list[TokenEvent]] = {}
    while engine.busy:
        for event in engine.step():
            events.setdefault((event.request_id, event.choice), []).append(event)
    return events


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_goldens(fixtures: Path, name: str, chunk: int, device: str) -> None:
    golden = load(fixtures, name)
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=torch.float32, device=device)
    pool = model.new_pool(2)
    for prompt in ("short", "medium", "long"):
        pool.reset([1])
        tokens = golden.arrays[f"tokens_{prompt}"].long().to(device)
        hidden = [model.forward(x, Rows.pack([1], [len(x)], device), pool) for x in torch.split(tokens, chunk)]
        logits = model.logits(torch.cat(hidden))[golden.arrays[f"pos_{prompt}"].long().to(device)]
        torch.testing.assert_close(logits.cpu(), golden.arrays[f"logits_{prompt}"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_strays_no_further_than_the_official_package(
    fixtures: Path, name: str, dtype: torch.dtype, device: str
) -> None:
    golden = load(fixtures, name)
    official = golden.info["official_half_precision_vs_fp32_golden"]["bf16" if dtype == torch.bfloat16 else "fp16"]
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=dtype, device=device)
    tokens = golden.arrays["tokens_medium"].long().to(device)
    hidden = model.forward(tokens, Rows.pack([1], [len(tokens)], device), model.new_pool(2))
    logits = model.logits(hidden)[golden.arrays["pos_medium"].long().to(device)].cpu()
    error = (logits - golden.arrays["logits_medium"]).abs()
    assert error.max() <= 3 * official["max_abs"]
    assert error.mean() <= 3 * official["mean_abs"]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_of_an_engine_are_the_goldens(fixtures: Path, name: str, device: str) -> None:
    """From the prompt in chunks to recorded steps, three at a time."""
    golden = load(fixtures, name)
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=torch.float32, device=device)
    expected = golden.arrays["greedy_tokens"].tolist()
    engine = Engine(model, max_batch=3, max_queue=3, prefill_budget=48)
    ready(engine, device)
    for number in range(3):
        params = SamplingParams(max_tokens=len(expected), temperature=0.0)
        prompt = tuple(golden.arrays["tokens_medium"].tolist())
        engine.submit(Request(id=str(number), prompt_ids=prompt, sampling=params))
    drawn: dict[str, list[int | None]] = {}
    while engine.busy:
        for event in engine.step():
            drawn.setdefault(event.request_id, []).append(event.token_id)
    assert drawn == {str(number): expected for number in range(3)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_a_row_of_a_recorded_step_does_not_know_the_others(version: str, dtype: torch.dtype, device: str) -> None:
    """Within one size of batch, where products of matrices are the same: bit for bit."""
    model = model_of(version, dtype, device)
    pool = model.new_pool(8)
    graphs = DecodeGraphs(model, pool, recorder_for(device), [8])
    outcomes = []
    for others in ([1, 2, 3, 4, 5, 6, 7], [9, 9, 9, 0, 0, 0, 400], []):
        pool.reset(range(8))
        rows = []
        for token in (5, 6, 7):
            hidden = graphs.forward([token, *others], list(range(1 + len(others))))
            assert hidden is not None
            rows.append(hidden[0].clone())
        outcomes.append((torch.stack(rows), pool.wkv[0].clone()))
    for outcome in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(outcome, outcomes[0], strict=True))


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
def test_float16_states_stay_near_float32_ones(version: str, device: str) -> None:
    outcomes = []
    for wkv_dtype in (torch.float32, torch.float16):
        model = model_of(version, torch.float32, device, wkv_dtype)
        pool = model.new_pool(2)
        tokens = (7 * torch.arange(600, device=device)) % 512
        prompt = model.forward(tokens[:512], Rows.pack([1], [512], device), pool)
        steps = [model.forward(token, Rows.pack([1], [1], device), pool) for token in torch.split(tokens[512:], 1)]
        outcomes.append(torch.cat([prompt, *steps]))
    torch.testing.assert_close(*outcomes, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_recorded_steps_equal_eager_ones_bit_for_bit(version: str, dtype: torch.dtype, device: str) -> None:
    model = model_of(version, dtype, device)
    recorded = model.new_pool(20)
    sizes = buckets(20)
    graphs = DecodeGraphs(model, recorded, recorder_for(device), sizes)
    assert graphs.sizes == sizes  # every one passed its own comparison
    with torch.inference_mode():
        for rows in (1, 3, 8, 17, 20):
            recorded.reset(range(20))
            plain = model.new_pool(20)
            size = next(size for size in sizes if size >= rows)
            slots = [*range(rows), *(-1,) * (size - rows)]  # products of another size may round otherwise
            for step in range(4):
                token_ids = [(3 * row + step) % 512 for row in range(rows)]
                got = graphs.forward(token_ids, list(range(rows)))
                padded = torch.tensor([*token_ids, *(0,) * (size - rows)], device=device)
                expected = model.forward(padded, Rows.pack(slots, [1] * size, device), plain)[:rows]
                assert got is not None and torch.equal(got, expected)
            assert torch.equal(recorded.wkv, plain.wkv) and torch.equal(recorded.shift, plain.shift)


KINDS = (
    SamplingParams(max_tokens=20, temperature=0.0),
    SamplingParams(max_tokens=24, seed=1, stop_token_ids=tuple(range(0, 480, 70))),
    SamplingParams(max_tokens=17, seed=2, top_k=20, top_p=0.9, temperature=1.3),
    SamplingParams(max_tokens=22, seed=3, presence_penalty=0.5, frequency_penalty=0.3, penalty_decay=0.99),
    SamplingParams(max_tokens=1, seed=4),
    SamplingParams(max_tokens=12, seed=5, logit_bias={3: 4.0, 5: -100.0}, min_tokens=3, stop_token_ids=(3,)),
)


def traffic(more: tuple[SamplingParams, ...] = ()) -> list[Request]:
    kinds = KINDS + more
    return [
        Request(
            id=str(number),
            prompt_ids=tuple((5 * number + i) % 512 for i in range(3 + 17 * number)),
            sampling=kinds[number % len(kinds)],
            choices=1 + number % 2,
        )
        for number in range(9)
    ]


@pytest.mark.parametrize("more", [(), (SamplingParams(max_tokens=9, seed=6, logprobs=1),)])
def test_an_engine_that_launches_ahead_draws_the_tokens_of_one_that_waits(
    more: tuple[SamplingParams, ...], device: str
) -> None:
    """Also while a request runs that the host has to draw for."""
    model = model_of("7", torch.float32, device)
    drawn = []
    for ahead in (True, False):
        engine = Engine(model, max_batch=6, max_queue=16, prefill_budget=64, cache_bytes=2**24)
        if ahead:
            ready(engine, device)
            assert engine.forward.graphs is not None and engine.loop is not None
            assert engine.loop.sizes == engine.forward.graphs.sizes == buckets(6)
            if device == "cuda":
                assert engine.loop.mixed.sizes == sorted(mixed_sizes(6, 64))
        for request in traffic(more):
            engine.submit(request)
        events = events_of(engine)
        drawn.append({key: ([event.token_id for event in its], its[-1].finish) for key, its in events.items()})
        assert engine.stats().slots_free == 6
    assert drawn[0] == drawn[1]


def test_states_at_the_ends_are_those_of_the_tokens_consumed(device: str) -> None:
    """As computed from nothing, but for rounding; two of the requests end by a stop token, in the step after which
    another one is under way."""
    model = model_of("7", torch.float32, device)
    engine = Engine(model, max_batch=6, max_queue=16, prefill_budget=64, cache_bytes=2**26)
    ready(engine, device)
    for request in traffic():
        engine.submit(request)
    events = events_of(engine)
    assert engine.reuse is not None
    for request in traffic():
        for index in range(request.choices):
            consumed = [*request.prompt_ids, *(event.token_id or 0 for event in events[request.id, index][:-1])]
            pool = model.new_pool(1)
            with torch.inference_mode():
                tokens = torch.tensor(consumed, device=device)
                model.forward(tokens, Rows.pack([0], [len(consumed)], device, decode=0), pool)
            expected = pool.save(0)
            near = [
                snapshot
                for snapshot in engine.reuse.cache.memory._held.values()
                if np.allclose(snapshot.state.wkv, expected.wkv, rtol=1e-3, atol=1e-3)
            ]
            assert near, (request.id, index)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_neither_a_launch_nor_a_state_that_is_saved_waits_for_the_device(version: str) -> None:
    """torch raises where the host would wait."""
    model = model_of(version, torch.bfloat16, "cuda")
    engine = Engine(model, max_batch=6, max_queue=16, prefill_budget=64, cache_bytes=2**26)
    ready(engine, "cuda")
    assert engine.loop is not None and engine.reuse is not None
    launch, left = engine.loop.launch, engine.reuse.left

    def saved(choice: Choice, slot: int, *, whole: bool) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            left(choice, slot, whole=whole)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.reuse.left = saved  # type: ignore[method-assign]

    def checked(batch: Batch, start: float, by_host: Collection[Choice] = ()) -> Flight:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(batch, start, by_host)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    engine.loop.launch = checked  # type: ignore[method-assign]
    for request in traffic((SamplingParams(max_tokens=9, seed=6, logprobs=1),)):
        engine.submit(request)
    events = events_of(engine)
    assert {its[-1].finish for its in events.values()} <= {"stop", "length"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_results_come_back_in_the_order_of_the_steps() -> None:
    device = CudaDevice(torch.device("cuda"), 4)
    before = device.fetch(device.send(torch.tensor([1, 2, 3])))
    for number in range(20):
        now = device.fetch(device.send(torch.tensor([number, -number])))
        assert before() == ([number - 1, 1 - number] if number else [1, 2, 3])
        before = now


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_what_is_sent_and_brought_arrives_whatever_follows() -> None:
    """More than the pinned memory holds, and long before the device comes to it."""
    device = CudaDevice(torch.device("cuda"), 4)
    busy = torch.randn(4096, 4096, device="cuda")
    sent, brought = [], []
    for number in range(60):
        busy = busy @ busy / busy.norm()
        sent.append(device.send(torch.full((20_000,), number)))
        x = torch.full((50_000,), float(number), device="cuda")
        brought.append(device.bring(x + 1))
    assert all(bool((values == number).all()) for number, values in enumerate(sent))
    assert all(bool((wait() == number + 1).all()) for number, wait in enumerate(brought))


def test_a_device_is_measured_as_the_command_does_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(version="7", layers=2, width=256, ffn_width=512, vocab_size=512, ranks=(16, 16, 16, 16))
    monkeypatch.setitem(PRESETS, "small", plan)
    report = measure(
        ["small"], device, torch.float32, batches=[1, 5], prompts=[(2, 40)], copy_bytes=2**20, side=64, rounds=1
    )
    assert [row.get("error") for row in report["results"]] == [None] * 3
    assert all(row["tok_s"] > 0 for row in report["results"])
