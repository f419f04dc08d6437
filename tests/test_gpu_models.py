"""Whole models on a GPU: goldens, recorded steps, batches; run with `-m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.engine.engine import Engine
from rookery.server.engine.graphs import CudaRecorder, DecodeGraphs, buckets
from rookery.server.engine.request import Request, SamplingParams
from rookery.server.engine.warm_up import warm_up
from rookery.server.model.base import Model
from rookery.server.model.load import construct
from rookery.server.model.synthetic import Plan, synthetic_checkpoint
from rookery.server.model.weights import read_checkpoint

from .checkpoints import build_model
from .test_model_goldens import MODELS, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def model_of(version: str, dtype: torch.dtype, wkv_dtype: torch.dtype = torch.float32) -> Model:
    """Two layers of usual head size."""
    ranks = {"6": (32, 64), "7": (64, 64, 32, 128)}.get(version, ())
    plan = Plan(version=version, layers=2, width=768, ffn_width=3072, vocab_size=512, ranks=ranks)  # type: ignore[arg-type]
    return construct(synthetic_checkpoint(plan, dtype=torch.float32), dtype, torch.device("cuda"), wkv_dtype)


@pytest.mark.parametrize("chunk", [1, 7, 10_000])
@pytest.mark.parametrize("name", MODELS)
def test_logits_equal_the_goldens(fixtures: Path, name: str, chunk: int) -> None:
    golden = load(fixtures, name)
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=torch.float32, device="cuda")
    pool = model.new_pool(2)
    for prompt in ("short", "medium", "long"):
        pool.reset([1])
        tokens = golden.arrays[f"tokens_{prompt}"].long().cuda()
        hidden = [model.forward(x, Rows.pack([1], [len(x)], "cuda"), pool) for x in torch.split(tokens, chunk)]
        logits = model.logits(torch.cat(hidden))[golden.arrays[f"pos_{prompt}"].long().cuda()]
        torch.testing.assert_close(logits.cpu(), golden.arrays[f"logits_{prompt}"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", MODELS)
def test_half_precision_strays_no_further_than_the_official_package(
    fixtures: Path, name: str, dtype: torch.dtype
) -> None:
    golden = load(fixtures, name)
    official = golden.info["official_half_precision_vs_fp32_golden"]["bf16" if dtype == torch.bfloat16 else "fp16"]
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=dtype, device="cuda")
    tokens = golden.arrays["tokens_medium"].long().cuda()
    hidden = model.forward(tokens, Rows.pack([1], [len(tokens)], "cuda"), model.new_pool(2))
    logits = model.logits(hidden)[golden.arrays["pos_medium"].long().cuda()].cpu()
    error = (logits - golden.arrays["logits_medium"]).abs()
    assert error.max() <= 3 * official["max_abs"]
    assert error.mean() <= 3 * official["mean_abs"]


@pytest.mark.parametrize("name", MODELS)
def test_greedy_continuations_of_an_engine_are_the_goldens(fixtures: Path, name: str) -> None:
    """From the prompt in chunks to recorded steps, three at a time."""
    golden = load(fixtures, name)
    model = build_model(read_checkpoint(fixtures / f"{name}.pth"), dtype=torch.float32, device="cuda")
    expected = golden.arrays["greedy_tokens"].tolist()
    engine = Engine(model, max_batch=3, max_queue=3, prefill_budget=48)
    warm_up(engine)
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
def test_a_row_of_a_recorded_step_does_not_know_the_others(version: str, dtype: torch.dtype) -> None:
    """Within one size of batch, where products of matrices are the same: bit for bit."""
    model = model_of(version, dtype)
    pool = model.new_pool(8)
    graphs = DecodeGraphs(model, pool, CudaRecorder(), [8])
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
def test_float16_states_stay_near_float32_ones(version: str) -> None:
    outcomes = []
    for wkv_dtype in (torch.float32, torch.float16):
        model = model_of(version, torch.float32, wkv_dtype)
        pool = model.new_pool(2)
        tokens = (7 * torch.arange(600, device="cuda")) % 512
        prompt = model.forward(tokens[:512], Rows.pack([1], [512], "cuda"), pool)
        steps = [model.forward(token, Rows.pack([1], [1], "cuda"), pool) for token in torch.split(tokens[512:], 1)]
        outcomes.append(torch.cat([prompt, *steps]))
    torch.testing.assert_close(*outcomes, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_recorded_steps_equal_eager_ones_bit_for_bit(version: str, dtype: torch.dtype) -> None:
    model = model_of(version, dtype)
    recorded = model.new_pool(20)
    sizes = buckets(20)
    graphs = DecodeGraphs(model, recorded, CudaRecorder(), sizes)
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
                padded = torch.tensor([*token_ids, *(0,) * (size - rows)], device="cuda")
                expected = model.forward(padded, Rows.pack(slots, [1] * size, "cuda"), plain)[:rows]
                assert got is not None and torch.equal(got, expected)
            assert torch.equal(recorded.wkv, plain.wkv) and torch.equal(recorded.shift, plain.shift)


def test_an_engine_with_graphs_draws_the_tokens_of_one_without() -> None:
    model = model_of("7", torch.float32)
    drawn = []
    for records in (True, False):
        engine = Engine(model, max_batch=6, max_queue=16, prefill_budget=64)
        if records:
            warm_up(engine)
            assert engine.forward.graphs is not None
        for number in range(9):
            params = SamplingParams(max_tokens=20, temperature=0.0 if number % 2 else 1.0, seed=number)
            prompt = tuple((5 * number + i) % 512 for i in range(3 + 17 * number))
            engine.submit(Request(id=str(number), prompt_ids=prompt, sampling=params))
        tokens: dict[str, list[int | None]] = {}
        while engine.busy:
            for event in engine.step():
                tokens.setdefault(event.request_id, []).append(event.token_id)
        drawn.append(tokens)
    assert drawn[0] == drawn[1]
