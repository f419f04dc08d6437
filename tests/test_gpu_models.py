"""Whole models on a GPU: goldens, recorded steps, batches; run with `-m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.engine.engine import Engine
from rookery.server.engine.graphs import CudaRecorder, DecodeGraphs, buckets
from rookery.server.engine.request import Request, SamplingParams
from rookery.server.model.base import Model
from rookery.server.model.synthetic import Plan, synthetic_checkpoint
from rookery.server.model.weights import read_checkpoint

from .checkpoints import build_model
from .test_model_goldens import MODELS, load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def model_of(version: str, dtype: torch.dtype) -> Model:
    """Two layers of usual head size."""
    ranks = {"6": (32, 64), "7": (64, 64, 32, 128)}.get(version, ())
    plan = Plan(version=version, layers=2, width=768, ffn_width=3072, vocab_size=512, ranks=ranks)  # type: ignore[arg-type]
    return build_model(synthetic_checkpoint(plan, dtype=torch.float32), dtype=dtype, device="cuda")


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
            engine.record()
            assert engine.graphs is not None
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
