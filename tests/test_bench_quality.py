"""The measurement of rounded weights: its rules, its figures, and the table in the documentation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.quality import (
    FORMS,
    WEIGHTS_ALONE,
    Reading,
    Rule,
    byte_readings,
    compared,
    measured,
    rounded_int4,
    rounded_int8,
    rounded_q4_0,
    rounded_q8_0,
    tables,
    with_rounded,
)
from rookery.kernels.cpu.library import Team, library
from rookery.server.model.synthetic import Plan, synthetic_checkpoint

from .arrays import equal
from .checkpoints import save_checkpoint

ROOT = Path(__file__).parent.parent
PLAN = Plan(version="7", layers=2, width=64, ffn_width=128, vocab_size=256, head_size=32, ranks=(8, 8, 8, 8))


def test_the_documentation_has_the_table_of_the_report() -> None:
    report = json.loads((ROOT / "bench/quality-cpu.json").read_text())
    assert tables(report) in (ROOT / "docs/precision.md").read_text()


@pytest.mark.parametrize(
    ("rule", "steps"), [(rounded_int8, 254), (rounded_q8_0, 254), (rounded_int4, 14), (rounded_q4_0, 14)]
)
def test_a_rule_stays_within_a_step_of_the_range(rule: Rule, steps: int) -> None:
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    span = 2 * weight.abs().amax(1, keepdim=True)
    near = rule(weight)
    assert bool(((near - weight).abs() <= 1.02 * span / steps).all()) and not near[3].any()
    assert not torch.equal(near, weight)


def test_blocks_have_scales_of_their_own() -> None:
    weight = torch.cat([torch.full((1, 32), 1e-3), torch.full((1, 32), 100.0)], 1)
    for rule in (rounded_q8_0, rounded_q4_0):
        torch.testing.assert_close(rule(weight), weight, rtol=1e-3, atol=0)


def test_a_distribution_that_is_the_same_differs_by_nothing() -> None:
    reading = Reading(torch.tensor([1, 2, 0]), torch.tensor([0, 1]))
    uniform, sure = torch.full((2, 3), 1 / 3).log(), torch.tensor([[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]).log()
    assert compared([uniform], [uniform], [reading]) == {"kl": 0, "same_top": 1, "perplexity": 3}
    near = compared([sure], [uniform], [reading])
    assert near["kl"] == pytest.approx(0.4596, abs=1e-4) and near["perplexity"] == 3


def test_only_large_matrices_are_rounded() -> None:
    checkpoint = synthetic_checkpoint(PLAN, dtype=torch.float32)
    rounded = with_rounded(checkpoint, WEIGHTS_ALONE["Q4_0, weights alone"])
    changed = {key for key, tensor in checkpoint.tensors.items() if not equal(tensor, rounded.tensors[key])}
    assert changed == {key for key in checkpoint.tensors if key.endswith(".weight") and "ln" not in key} - {
        "emb.weight"
    }


@pytest.mark.skipif(library() is None, reason="the native library is not built here")
def test_fewer_bits_cost_more(tmp_path: Path) -> None:
    told = measured(save_checkpoint(tmp_path / "m.pth", PLAN), byte_readings(bytes(range(200))), Team(1))
    divergence = {form: figures["kl"] for form, figures in told["figures"].items()}
    assert set(divergence) == {"float32", *FORMS} and told["tokens"] == 199
    assert divergence["float32"] == 0 < divergence["bfloat16"] < divergence["int8"] < divergence["int4"]
    assert divergence["Q8_0, weights alone"] < divergence["Q4_0, weights alone"]
