"""Gosling's vocabulary: every input has tokens, and what was written is read back as the same tokens."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.models.gosling.corpus.conversation import conversation
from rookery.models.gosling.vocabulary import PARTS, SIZE, Vocabulary, build

VOCABULARY = Vocabulary.load()


def greedy(data: bytes) -> list[int]:
    """Longest match over the whole input, as the format defines it."""
    tokens = []
    while data:
        piece = next(data[:n] for n in range(VOCABULARY.longest, 0, -1) if data[:n] in VOCABULARY.ids)
        tokens.append(VOCABULARY.ids[piece])
        data = data[len(piece) :]
    return tokens


def test_size_and_bytes() -> None:
    assert VOCABULARY.size == SIZE
    assert all(VOCABULARY.pieces[byte + 1] == bytes([byte]) for byte in range(256))


@given(st.text())
def test_every_text_round_trips(text: str) -> None:
    tokens = VOCABULARY.encode(text)
    assert VOCABULARY.decode(tokens) == text
    assert tokens == greedy(text.encode())


@given(st.text(alphabet="Usera \n:1{}"), st.text(alphabet=" \nUser:Mi1"))
def test_a_cut_before_a_blank_changes_no_token(left: str, right: str) -> None:
    whole = VOCABULARY.encode(left + " " + right)
    assert whole == VOCABULARY.encode(left) + VOCABULARY.encode(" " + right)


def test_pieces_keep_to_their_rules() -> None:
    for index, piece in VOCABULARY.pieces.items():
        if index > 256:
            text = piece.decode()
            assert len(PARTS.findall(text)) == 1, text
            assert sum(c.isdigit() for c in text) < 2, text
            assert text in ("\n\n", "```") or text.strip().isalpha(), text


def test_generated_text_is_read_back_as_the_same_tokens() -> None:
    document = conversation(Random(0), VOCABULARY, 2000, "test")
    tokens = [token for token in document.tokens if token]
    assert VOCABULARY.encode(VOCABULARY.decode(tokens)) == tokens


@pytest.mark.slow
def test_a_vocabulary_built_anew_is_about_as_good(tmp_path: Path) -> None:
    build().save(tmp_path / "vocab.txt")
    anew = Vocabulary.load(tmp_path / "vocab.txt")
    document = conversation(Random(0), VOCABULARY, 5000, "train")
    text = VOCABULARY.decode(document.tokens)
    assert anew.size == SIZE
    assert len(anew.encode(text)) == pytest.approx(len(VOCABULARY.encode(text)), rel=0.03)


def test_a_wrong_length_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("1 'ab' 3\n")
    with pytest.raises(ValueError, match="token 1 has 2 bytes, not 3"):
        Vocabulary.load(tmp_path / "vocab.txt")
