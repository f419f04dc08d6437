"""Grammars inside the sampler: whatever the logits, what comes out matches."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from rookery.server.engine.constraint import ConstraintError, Constraints, GrammarConstraint
from rookery.server.engine.request import SamplingParams
from rookery.server.engine.sampler import ChoiceSampling, Sampler

END = 0
PIECES = [
    b"",
    *(bytes([i]) for i in range(1, 256)),
    b"\x00",
    b'{"',
    b'":',
    b', "',
    b"true",
    b"12",
    b"\n\n",
    "é".encode(),
]
NEWLINES = PIECES.index(b"\n\n")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "tags", "ok"],
    "additionalProperties": False,
}


class Pieces:
    """A vocabulary for llguidance: bytes, a few longer tokens, and an end token without text."""

    eos_token_id = END
    bos_token_id = None
    tokens = PIECES
    special_token_ids = (END,)

    def __call__(self, text: bytes) -> list[int]:
        return [PIECES.index(bytes([byte])) for byte in text]


@pytest.fixture(scope="module")
def tokenizer() -> LLTokenizer:
    return LLTokenizer(TokenizerWrapper(Pieces()))


@pytest.fixture
def constraints(tokenizer: LLTokenizer) -> Iterator[Constraints]:
    made = Constraints(lambda: tokenizer)
    yield made
    made.close()


def started(constraints: Constraints, params: SamplingParams) -> GrammarConstraint:
    constraint = constraints.start(params)
    assert constraint is not None
    return constraint


def params(grammar: str, **changes: Any) -> SamplingParams:
    return SamplingParams(max_tokens=100, grammar=grammar, stop_token_ids=(END, NEWLINES), **changes)


def schema_grammar(schema: dict[str, Any]) -> str:
    grammar: str = LLMatcher.grammar_from_json_schema(schema)
    return grammar


def allowed_ids(constraint: GrammarConstraint) -> set[int]:
    words = constraint.allowed().tolist()
    return {w * 32 + b for w, word in enumerate(words) for b in range(32) if word >> b & 1}


def complete(choice: ChoiceSampling, limit: int, seed: int) -> bytes | None:
    """The text drawn from random logits; None when it was cut by the limit."""
    generator, text = torch.Generator().manual_seed(seed), b""
    for _ in range(limit):
        draw = Sampler().sample(torch.randn(1, 300, generator=generator) * 3, [choice])[0]
        assert draw.error is None
        text += b"" if draw.token_id in (END, NEWLINES) else PIECES[draw.token_id]
        if draw.ended:
            return text
    return None


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_random_logits_make_valid_json(constraints: Constraints, temperature: float) -> None:
    setting, finished = params(schema_grammar(SCHEMA), temperature=temperature, seed=3), 0
    for index in range(8):
        text = complete(ChoiceSampling(setting, index, constraints.start(setting)), 400, seed=index)
        if text is not None:
            value = json.loads(text)
            assert set(value) == {"name", "age", "tags", "ok"}
            assert 0 <= value["age"] <= 150 and set(value["tags"]) <= {"red", "green"} and value["ok"] in (True, False)
            finished += 1
    assert finished >= 4
    assert len(constraints) == 1  # compiled once


def test_random_logits_match_a_regex(constraints: Constraints) -> None:
    setting = params(LLMatcher.grammar_from_regex("[a-c]{2,5}-[0-9]{3}"))
    for index in range(10):
        text = complete(ChoiceSampling(setting, index, constraints.start(setting)), 50, seed=index)
        assert text is not None and re.fullmatch("[a-c]{2,5}-[0-9]{3}", text.decode())


def test_stop_tokens_exactly_where_the_grammar_may_end(constraints: Constraints) -> None:
    constraint = started(constraints, params(LLMatcher.grammar_from_regex("(a|\\n\\n){1,3}")))
    a = PIECES.index(b"a")
    assert allowed_ids(constraint) == {a, PIECES.index(b"\n")}  # the token of two newlines would end it too early
    constraint.accept(a)
    assert allowed_ids(constraint) == {a, PIECES.index(b"\n"), END, NEWLINES}
    constraint.accept(a)
    assert not constraint.complete
    constraint.accept(a)
    assert constraint.complete


def test_choices_of_one_grammar_walk_apart(constraints: Constraints) -> None:
    setting = params(LLMatcher.grammar_from_regex("ab|cd"))
    first, second = started(constraints, setting), started(constraints, setting)
    first.accept(PIECES.index(b"a"))
    second.accept(PIECES.index(b"c"))
    assert allowed_ids(first) == {PIECES.index(b"b")}
    assert allowed_ids(second) == {PIECES.index(b"d")}
    assert len(constraints) == 1


def test_a_mask_is_made_ahead(constraints: Constraints) -> None:
    constraint = started(constraints, params(LLMatcher.grammar_from_regex("abc")))
    constraint.accept(PIECES.index(b"a"))
    assert not constraint.ready
    constraint.prepare()
    constraint.prepare()  # once is enough
    assert allowed_ids(constraint) == {PIECES.index(b"b")}
    assert [constraint.ready] == [True]


def test_slow_masks_hold_their_choice_until_they_are_there(tokenizer: LLTokenizer) -> None:
    made = Constraints(lambda: tokenizer, slow_s=0)
    constraint = started(made, params(LLMatcher.grammar_from_regex("[ab]{3}")))
    assert allowed_ids(constraint) == {PIECES.index(b"a"), PIECES.index(b"b")}
    for _ in range(2):
        constraint.accept(PIECES.index(b"a"))
        assert allowed_ids(constraint) == {PIECES.index(b"a"), PIECES.index(b"b")}
    constraint.accept(PIECES.index(b"b"))
    held = [constraint.held]
    assert allowed_ids(constraint) == {END, NEWLINES}
    assert [*held, constraint.held] == [True, False]
    made.close()


def test_a_token_that_is_not_allowed_is_an_error(constraints: Constraints) -> None:
    constraint = started(constraints, params(LLMatcher.grammar_from_regex("abc")))
    with pytest.raises(ConstraintError, match="does not allow"):
        constraint.accept(PIECES.index(b"x"))
    with pytest.raises(ConstraintError):
        constraint.allowed()


@pytest.mark.parametrize("grammar", ["{", "start: missing_rule", '{"grammars": []}'])
def test_a_grammar_that_does_not_compile_fails_its_row_only(constraints: Constraints, grammar: str) -> None:
    bad, good = params(grammar), SamplingParams(max_tokens=5, temperature=0)
    logits = torch.zeros(2, 300)
    logits[:, 65] = 1.0
    draws = Sampler().sample(logits, [ChoiceSampling(bad, 0, constraints.start(bad)), ChoiceSampling(good)])
    assert draws[0].error is not None and draws[0].error.startswith("the grammar cannot be used") and draws[0].refused
    assert draws[1].token_id == 65 and draws[1].error is None


def test_the_cache_is_bounded_by_count_and_by_size(tokenizer: LLTokenizer) -> None:
    by_count = Constraints(lambda: tokenizer, max_grammars=3)
    kept = [started(by_count, params(LLMatcher.grammar_from_regex(f"a{{{i + 1}}}"))) for i in range(6)]
    assert len(by_count) == 3
    assert all(allowed_ids(constraint) == {PIECES.index(b"a")} for constraint in kept)  # evicted ones go on
    by_count.close()

    by_size = Constraints(lambda: tokenizer, max_bytes=1000)
    for i in range(5):
        started(by_size, params(LLMatcher.grammar_from_regex("b" * 300 + str(i)))).allowed()
    assert len(by_size) == 2
    started(by_size, params(LLMatcher.grammar_from_regex("b" * 3000))).allowed()
    assert len(by_size) == 1  # one that is too large is used, then gives way
    by_size.close()


def test_no_grammar_is_no_constraint(constraints: Constraints) -> None:
    assert constraints.start(SamplingParams(max_tokens=1)) is None
    assert len(constraints) == 0


def test_a_tenant_s_costly_grammars_do_not_delay_another_tenant_s(
    tokenizer: LLTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten grammars of one tenant that do not come to an end; another tenant's, and one that both ask for, do."""
    made, gate = Constraints(lambda: tokenizer), threading.Event()
    compile_now = made._compile_now

    def slowly(grammar: str) -> tuple[LLMatcher, int]:
        if "bbb" in grammar:
            assert gate.wait(timeout=60)
        return compile_now(grammar)

    monkeypatch.setattr(made, "_compile_now", slowly)
    costly = [made.start(params(LLMatcher.grammar_from_regex(f"bbb{i}")), "costly") for i in range(10)]
    shared = params(LLMatcher.grammar_from_regex("bbb0"))
    waiting = [made.start(shared, tenant) for tenant in ("one", "two", "three")]  # hold no thread meanwhile
    other = made.start(params(LLMatcher.grammar_from_regex("a")), "other")
    assert other is not None and allowed_ids(other) == {PIECES.index(b"a")}
    assert not any(one is None or one.ready for one in [*costly, *waiting])
    gate.set()
    assert all(one is not None and allowed_ids(one) == {PIECES.index(b"b")} for one in [*costly, *waiting])
    made.close()
