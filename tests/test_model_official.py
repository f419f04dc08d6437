"""Random models of unusual sizes, against the official package run beside us."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.server.model.shape import Version

from .arrays import held
from .checkpoints import UNUSUAL, random_model, save_checkpoint
from .official_oracle import Answer, Job, ask_official

VERSIONS = list(UNUSUAL)
STRATEGIES = {torch.float32: "cpu fp32", torch.bfloat16: "cpu bf16"}
TOKENS = [17, 3, 3, 3, 96, 0, 41, 5] * 6


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Mapping[tuple[Version, torch.dtype], Answer]:
    """The official package's answers to TOKENS, for every version and dtype."""
    folder = tmp_path_factory.mktemp("official")
    answers: dict[tuple[Version, torch.dtype], Answer] = {}
    for version_7 in (False, True):
        keys = [(version, dtype) for version in VERSIONS if (version == "7") == version_7 for dtype in STRATEGIES]
        jobs = [
            Job(save_checkpoint(folder / f"{version}.pth", UNUSUAL[version]), STRATEGIES[dtype], TOKENS)
            for version, dtype in keys
        ]
        answers |= dict(zip(keys, ask_official(jobs, folder, version_7=version_7), strict=True))
    return answers


@pytest.mark.parametrize("version", VERSIONS)
def test_logits_and_states_equal_the_official_package(
    version: Version, official: Mapping[tuple[Version, torch.dtype], Answer]
) -> None:
    expected = official[version, torch.float32]
    model = random_model(version)
    pool = model.new_pool(3)
    hidden = model.forward(torch.tensor(TOKENS), Rows.pack([1], [len(TOKENS)]), pool)
    torch.testing.assert_close(model.logits(hidden), expected.logits, rtol=0, atol=1e-4)
    state = held(pool, 1)
    torch.testing.assert_close(state.shift, expected.shift, rtol=1e-4, atol=5e-4)
    torch.testing.assert_close(state.wkv, expected.wkv, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("version", VERSIONS)
def test_bfloat16_is_no_further_off_than_the_official_package(
    version: Version, official: Mapping[tuple[Version, torch.dtype], Answer]
) -> None:
    exact = official[version, torch.float32].logits
    allowed = 2 * (official[version, torch.bfloat16].logits - exact).abs().mean()
    model = random_model(version, dtype=torch.bfloat16)
    hidden = model.forward(torch.tensor(TOKENS), Rows.pack([0], [len(TOKENS)]), model.new_pool(1))
    assert (model.logits(hidden) - exact).abs().mean() < allowed
