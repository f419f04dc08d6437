"""Bit for bit: whatever a prompt starts from and runs beside, its logits are those of a cold run of it alone."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.kernels.cpu.library import Format, library, shared_team
from rookery.server.config import Config
from rookery.server.engine.engine import Engine
from rookery.server.engine.messages import Settings
from rookery.server.engine.process import EngineServer, load
from rookery.server.engine.questions import OpenTurn, SettleTurn, Told
from rookery.server.engine.request import Request, SamplingParams, TokenEvent
from rookery.server.engine.spawn import settings_of
from rookery.server.errors import RookeryError, StartupError
from rookery.server.model.base import Model
from rookery.server.model.exact import TokenByToken
from rookery.server.model.kept import FORMATS
from rookery.server.model.load import exactly
from rookery.server.model.native import NativeModel
from rookery.server.model.shape import Version
from rookery.server.model.synthetic import Plan, synthetic_checkpoint
from rookery.server.state.snapshot import StateFormat
from rookery.server.state.store import StateStore

from .checkpoints import UNUSUAL, random_model
from .server_process import write_tiny

VERSIONS = list(UNUSUAL)
VOCABULARY = 97
Seen = list[tuple[int | None, tuple[tuple[int, float], ...]]]
"""Each token drawn, and the log-probabilities of all there are: what the logits were, bit for bit."""

native = pytest.mark.skipif(library() is None, reason="the native library is not built here")


@cache
def native_model(version: Version, format: Format) -> NativeModel:
    checkpoint = synthetic_checkpoint(UNUSUAL[version], dtype=torch.float32)
    return NativeModel(checkpoint, weights=format, team=shared_team(1))


def tokens(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCABULARY, (count,), generator=generator).tolist())


def asking(id: str, prompt: Iterable[int], draws: int, *, session: bool = False, at: tuple[int, ...] = ()) -> Request:
    sampling = SamplingParams(max_tokens=draws, temperature=0, logprobs=VOCABULARY)
    return Request(id=id, prompt_ids=tuple(prompt), sampling=sampling, session=session, boundaries=at)


def seen(events: Iterable[TokenEvent], id: str) -> Seen:
    return [
        (event.token_id, event.logprobs.top)
        for event in events
        if event.request_id == id and event.logprobs is not None
    ]


def drain(engine: Engine) -> list[TokenEvent]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


def cold(model: Model, prompt: tuple[int, ...], draws: int) -> Seen:
    """Alone, from its first token, all of it at once."""
    engine = Engine(model, max_batch=1, max_queue=1, prefill_budget=4096)
    engine.submit(asking("cold", prompt, draws))
    return seen(drain(engine), "cold")


WORK = st.lists(
    st.tuples(
        st.integers(0, 1),  # which trunk
        st.integers(0, 150),  # how much of it
        st.integers(1, 40),  # tokens of its own
        st.integers(0, 4),  # draws
        st.integers(0, 3),  # steps until the next comes
    ),
    min_size=2,
    max_size=8,
)
BUDGETS = st.sampled_from([5, 33, 512])


def check_hits(model: Model, work: list[tuple[int, int, int, int, int]], budget: int) -> None:
    """Every request of some traffic sees what it sees alone, with nothing stored."""
    engine = Engine(model, max_batch=4, max_queue=64, prefill_budget=budget, cache_bytes=2**24)
    events: list[TokenEvent] = []
    asked: dict[str, tuple[tuple[int, ...], int]] = {}
    for number, (trunk, common, own, draws, steps) in enumerate([(0, 70, 9, 3, 0), *work] * 2):  # twice: all is known
        prompt = tokens(150, trunk)[:common] + tokens(own, own)
        id = f"r{number}"
        engine.submit(asking(id, prompt, draws, at=(common,) if common else ()))
        asked[id] = prompt, draws
        for _ in range(steps):
            events += engine.step()
    events += drain(engine)
    assert any(event.cached_tokens for event in events)
    for id, (prompt, draws) in asked.items():
        assert seen(events, id) == cold(model, prompt, draws)


@native
@pytest.mark.parametrize("format", list(FORMATS.values()))
@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=4, deadline=None)
@given(work=WORK, budget=BUDGETS)
def test_a_hit_gives_the_bits_of_a_cold_run(
    version: Version, format: Format, work: list[tuple[int, int, int, int, int]], budget: int
) -> None:
    check_hits(native_model(version, format), work, budget)


@pytest.mark.parametrize("version", VERSIONS)
def test_torch_gives_the_bits_of_a_cold_run_where_that_is_asked_of_it(version: Version) -> None:
    model = exactly(random_model(version))
    assert isinstance(model, TokenByToken)
    check_hits(model, [(0, 33, 2, 2, 1), (1, 20, 5, 3, 0)], 33)


@native
@pytest.mark.parametrize("version", VERSIONS)
@settings(max_examples=5, deadline=None)
@given(turns=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=5))
def test_a_session_gives_the_bits_of_all_its_turns_in_one_prompt(
    version: Version, turns: list[tuple[int, int, int]]
) -> None:
    model = native_model(version, Format.F32)
    engine = Engine(model, max_batch=2, max_queue=9, prefill_budget=64, cache_bytes=2**24)
    format = StateFormat.of(model.shape, fingerprint="model", tokenizer="words")
    engine.attach(StateStore(None, format), max_sessions=9, threaded=False)
    assert engine.sessions is not None
    answers: list[Told | RookeryError] = []
    history: tuple[int, ...] = ()
    for number, (new, draws, kept) in enumerate(turns):
        prompt, id = tokens(new, number), f"turn-{number}"
        engine.sessions.ask(OpenTurn(tenant="", turn=id, session="s"), answers.append)
        drain(engine)
        engine.submit(asking(id, prompt, draws, session=True))
        found = seen(drain(engine), id)
        assert found == cold(model, history + prompt, draws)
        added = [*prompt, *(token for token, _ in found if token is not None)][: new + kept]  # ends anywhere
        engine.sessions.ask(SettleTurn(tenant="", turn=id, token_ids=added), answers.append)
        drain(engine)
        history += tuple(added)
    assert all(isinstance(answer, Told) for answer in answers) and len(answers) == 2 * len(turns)


@native
def test_the_matrix_unit_and_long_passes_give_the_same_bits() -> None:
    """Sizes that matrices of a real model have: two calls of 256 tokens, tiles of 16 and panels of 64."""
    plan = Plan(version="7", layers=2, width=256, vocab_size=VOCABULARY, ffn_width=1024, ranks=(32, 32, 32, 32))
    for format in FORMATS.values():
        checkpoint = synthetic_checkpoint(plan, dtype=torch.float32)
        model = NativeModel(checkpoint, weights=format, team=shared_team(1))
        work = [(1, 33, 300, 3, 1), (0, 150, 40, 2, 0), (1, 120, 7, 4, 3), (1, 33, 299, 1, 0)]
        check_hits(model, work, 512)


def test_the_native_library_is_exact_as_it_is() -> None:
    torch_model = random_model("7")
    assert exactly(torch_model) is not torch_model
    if library() is not None:
        model = native_model("7", Format.F32)
        assert exactly(model) is model


def test_a_server_asked_to_be_exact_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_KERNELS", "torch")
    server = EngineServer(f"ipc://{tmp_path}/engine")
    try:
        load(Settings(endpoint="", model_path=str(write_tiny(tmp_path)), device="cpu", exact=True), server)
        assert server.engine is not None and isinstance(server.engine.model, TokenByToken)
        server.engine.submit(asking("one", tokens(20, 0), 2))
        assert len(seen(drain(server.engine), "one")) == 2
        server.engine.close()
    finally:
        server.close()


def test_states_that_are_stored_rounded_contradict_it() -> None:
    with pytest.raises(StartupError, match="rounds states"):
        settings_of(Config(exact=True, state_dtype="float16"), Path("model.pth"), "")
