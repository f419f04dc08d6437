"""The native models: the goldens in float32, bit for bit whatever the batch, and near enough when quantised."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from rookery.kernels.cpu import library as library_module
from rookery.kernels.cpu.library import TIER_VARIABLE, Format, Team, library
from rookery.kernels.cpu.threads import set_threads, threads
from rookery.kernels.rows import Rows
from rookery.server.config import Config
from rookery.server.engine.process import EngineServer
from rookery.server.engine.process import load as load_engine
from rookery.server.engine.spawn import settings_of
from rookery.server.errors import StartupError
from rookery.server.model.kept import FORMATS
from rookery.server.model.load import load_model
from rookery.server.model.native import NativeModel
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import synthetic_checkpoint
from rookery.server.model.weights import read_checkpoint

from .arrays import InTensors, held, tensor
from .checkpoints import UNUSUAL, random_model, save_checkpoint
from .server_process import write_tiny
from .test_model_goldens import MODELS, SLOT, WHOLE, assert_state, load, run

if library() is None:
    pytest.skip("the native library is not built here", allow_module_level=True)

VERSIONS = list(UNUSUAL)


@cache
def team(threads: int = 2) -> Team:
    return Team(threads)


@cache
def native(fixtures: Path, name: str, format: Format) -> InTensors:
    return InTensors(NativeModel(read_checkpoint(fixtures / f"{name}.pth"), weights=format, team=team()))


@cache
def unusual(version: Version, format: Format = Format.F32, threads: int = 2) -> InTensors:
    checkpoint = synthetic_checkpoint(UNUSUAL[version], dtype=torch.float32)
    return InTensors(NativeModel(checkpoint, weights=format, team=team(threads)))


def tokens_of(count: int, seed: int) -> torch.Tensor:
    return torch.randint(97, (count,), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", MODELS)
def test_logits_states_and_continuations_equal_the_goldens(fixtures: Path, name: str) -> None:
    golden, model = load(fixtures, name), native(fixtures, name, Format.F32)
    for prompt, chunk in [("short", 1), ("medium", 7), ("medium", WHOLE), ("long", WHOLE)]:
        pool = model.new_pool(2)
        logits = run(model, golden.arrays[f"tokens_{prompt}"], pool, chunk=chunk)
        expected = golden.arrays[f"logits_{prompt}"]
        torch.testing.assert_close(logits[golden.arrays[f"pos_{prompt}"].long()], expected, rtol=0, atol=1e-4)
        if prompt == "medium":
            assert_state(held(pool, SLOT), golden.arrays, value_key=model.shape.version == "7")
    pool = model.new_pool(2)
    token = run(model, golden.arrays["tokens_medium"], pool, chunk=WHOLE)[-1:].argmax(-1)
    drawn = [int(token)]
    for _ in golden.arrays["greedy_tokens"][1:]:
        token = run(model, token, pool, chunk=1).argmax(-1)
        drawn.append(int(token))
    assert drawn == golden.arrays["greedy_tokens"].tolist()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("format", list(FORMATS.values()))
def test_a_row_is_the_same_bit_for_bit_in_any_batch(version: Version, format: Format) -> None:
    model = unusual(version, format)
    pool, alone = model.new_pool(8), model.new_pool(8)
    for slot in range(8):
        history = tokens_of(3 * slot + 1, slot)
        model.forward(history, Rows.pack([slot], [len(history)]), pool)
        alone.write(slot, pool.save(slot))
    slots, lengths = [5, 0, -1, 3, 6, 1, 4], [1, 1, 1, 20, 0, 2, 300]
    tokens = tokens_of(sum(lengths), 99)
    logits = model.logits(model.forward(tokens, Rows.pack(slots, lengths), pool))
    parts = zip(slots, torch.split(tokens, lengths), torch.split(logits, lengths), strict=True)
    for slot, part, got in parts:
        if slot >= 0:
            hidden = [model.forward(piece, Rows.pack([slot], [len(piece)]), alone) for piece in torch.split(part, 17)]
            if hidden:
                assert torch.equal(got, model.logits(torch.cat(hidden)))
    for slot in range(8):  # those in the batch and those not
        assert torch.equal(held(pool, slot).wkv, held(alone, slot).wkv)
        assert torch.equal(held(pool, slot).shift, held(alone, slot).shift)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_number_of_threads_changes_nothing(version: Version) -> None:
    tokens, rows = tokens_of(43, 5), Rows.pack([0, 1, 2], [1, 40, 2])
    results = []
    for count in (1, 3):
        model = unusual(version, Format.F32, count)
        pool = model.new_pool(3)
        results.append((model.logits(model.forward(tokens, rows, pool)), *map(tensor, (pool.wkv, pool.shift))))
    assert all(torch.equal(one, three) for one, three in zip(*results, strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_native_equals_torch(version: Version) -> None:
    model, torch_model = unusual(version), random_model(version)
    pool, torch_pool = model.new_pool(3), torch_model.new_pool(3)
    for seed, lengths in enumerate([[1, 30, 0], [1, 1, 1], [5, 0, 260]]):
        tokens, rows = tokens_of(sum(lengths), seed), Rows.pack([2, 0, 1], lengths)
        got = model.logits(model.forward(tokens, rows, pool))
        expected = torch_model.logits(torch_model.forward(tokens, rows, torch_pool))
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


BOUNDS = {Format.BF16: 1e-4, Format.INT8: 2e-3, Format.INT4: 0.1}
"""Largest mean divergence (nats a token) from float32 on the trained small models."""


@pytest.mark.parametrize("format", BOUNDS)
@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("tiny")])
def test_smaller_weights_stay_near(fixtures: Path, name: str, format: Format) -> None:
    golden, model = load(fixtures, name), native(fixtures, name, format)
    tokens = golden.arrays["tokens_long"]
    exact = run(native(fixtures, name, Format.F32), tokens, model.new_pool(2), chunk=WHOLE).log_softmax(-1)
    near = run(model, tokens, model.new_pool(2), chunk=WHOLE).log_softmax(-1)
    assert float((exact.exp() * (exact - near)).sum(-1).mean()) < BOUNDS[format]


def test_nothing_is_done_for_no_tokens() -> None:
    model = unusual("7")
    pool = model.new_pool(1)
    assert model.forward(torch.empty(0, dtype=torch.int64), Rows.pack([0], [0]), pool).shape == (0, 60)
    assert model.logits(torch.empty(0, 60)).shape == (0, 97) and not pool.wkv.any()


def test_slots_that_rest_take_no_memory_and_are_used_again() -> None:
    model = unusual("7")
    pool = model.new_pool(2)
    tokens, rows = tokens_of(40, 1), Rows.pack([1], [40])
    first = model.forward(tokens, rows, pool)
    assert pool.wkv[1].any() and pool.shift[1].any()
    pool.rest()
    assert not pool.wkv.any() and not pool.shift.any()
    assert torch.equal(model.forward(tokens, rows, pool), first)


def test_loading_takes_it_on_a_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"])
    model, info = load_model(path, device="cpu", quantize="int4")
    assert isinstance(model, NativeModel) and info.dtype == "int4" and info.weight_bytes == model.weight_bytes
    assert info.state_bytes == model.new_pool(1).state_bytes
    assert isinstance(load_model(path, device="cpu")[0], NativeModel)
    monkeypatch.setenv("ROOKERY_KERNELS", "torch")
    assert not isinstance(load_model(path, device="cpu")[0], NativeModel)


def _tiers() -> Iterator[str]:
    for tier in ("portable", "avx2", "avx512"):
        try:
            Team(1, tier).close()
        except RuntimeError:
            continue
        yield tier


@pytest.fixture
def chosen_tier(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the tier that loading takes from the environment; what it was comes back."""

    def choose(tier: str) -> None:
        monkeypatch.setenv(TIER_VARIABLE, tier)
        library_module._team.cache_clear()

    yield choose
    library_module._team.cache_clear()


@pytest.mark.parametrize("tier", list(_tiers()))
@pytest.mark.parametrize("name", ["micro-rwkv4", "micro-rwkv6", "micro-rwkv7"])
def test_each_tier_of_this_machine_equals_the_goldens(
    tier: str, name: str, fixtures: Path, chosen_tier: Callable[[str], None]
) -> None:
    chosen_tier(tier)
    model, _ = load_model(fixtures / f"{name}.pth", device="cpu")
    assert isinstance(model, NativeModel) and model.team.tier == tier
    golden = load(fixtures, name).arrays
    logits = run(InTensors(model), golden["tokens_long"], model.new_pool(2), chunk=WHOLE)
    torch.testing.assert_close(logits[golden["pos_long"].long()], golden["logits_long"], rtol=0, atol=1e-4)


def test_a_tier_that_is_not_there_is_an_error(tmp_path: Path, chosen_tier: Callable[[str], None]) -> None:
    chosen_tier("abacus")
    with pytest.raises(StartupError, match="no abacus") as caught:
        load_model(save_checkpoint(tmp_path / "m.pth", UNUSUAL["7"]), device="cpu")
    assert TIER_VARIABLE in caught.value.mend


def test_the_engine_computes_on_as_many_threads_as_it_is_told(tmp_path: Path) -> None:
    path, endpoint, before = write_tiny(tmp_path), f"ipc://{tmp_path}/engine", threads()
    server = EngineServer(endpoint)
    try:
        load_engine(settings_of(Config(device="cpu", threads=before + 2, max_batch=2), path, endpoint), server)
        assert server.engine is not None and isinstance(server.engine.model, NativeModel)
        assert threads() == before + 2 and server.engine.model.team.threads == before + 2
    finally:
        set_threads(before)
        if server.engine is not None:
            server.engine.close()
        server.close()
