"""Schema fill is measured under the server's own grammar."""

from __future__ import annotations

import json
from random import Random

import pytest
import torch

from rookery.models.gosling.evaluate import Exam, constrained, right_answers
from rookery.models.gosling.grammar import allowed_tokens
from rookery.models.gosling.model import Gosling, Shape
from rookery.models.gosling.vocabulary import FILE, Vocabulary

TYPES = {"name": "string", "age": "number"}


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load()


def test_the_grammar_lets_the_answer_through_and_little_else(vocabulary: Vocabulary) -> None:
    answer = vocabulary.encode(' {"name":"Ada","age":41}')
    allowed = allowed_tokens(FILE, TYPES, answer)
    assert allowed.shape == (len(answer), vocabulary.size)
    assert all(allowed[i, token] for i, token in enumerate(answer))
    assert vocabulary.decode(allowed[0].nonzero().flatten().tolist()) == " "
    assert not allowed[:, vocabulary.ids[b"\n\n"]].any()  # inside a string it would have to be escaped
    number = len(answer) - 2
    assert all(vocabulary.decode([int(token)]).strip() in "0123456789.,eE}" for token in allowed[number].nonzero())


@pytest.mark.parametrize("answer", [' {"age":41,"name":"Ada"}', ' {"name":"Ada"}', ' {"name":"Ada","age":"41"}', " {"])
def test_what_does_not_match_is_refused(vocabulary: Vocabulary, answer: str) -> None:
    with pytest.raises(ValueError, match="grammar"):
        allowed_tokens(FILE, TYPES, vocabulary.encode(answer))


def test_an_exam_asks_for_the_object_alone(vocabulary: Vocabulary) -> None:
    rng = Random(1)
    for _ in range(20):
        exam = constrained(rng, vocabulary)
        (answer,) = exam.answers
        text = vocabulary.decode(exam.tokens[answer])
        assert text == " " + json.dumps(json.loads(text), separators=(",", ":"))
        assert exam.allowed is not None and len(exam.allowed) == answer.stop - answer.start


def test_what_the_grammar_forbids_is_never_the_likeliest(vocabulary: Vocabulary) -> None:
    """A model that knows nothing is right wherever the grammar leaves one token, and only there."""
    torch.manual_seed(0)
    model = Gosling(Shape(vocabulary.size, layers=2)).eval()
    tokens = vocabulary.encode("User: Hi.\n\nAssistant: Hello!\n\n")
    answer = slice(len(tokens) - 3, len(tokens))
    only = torch.zeros(3, vocabulary.size, dtype=torch.bool)
    only[range(3), tokens[answer]] = True
    assert right_answers(model, [Exam(tokens, [answer], only)]) == [True]
    assert right_answers(model, [Exam(tokens, [answer])]) == [False]
