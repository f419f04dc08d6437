"""Vocabularies: exact greedy longest match over any bytes, the right file for a model, clear refusals."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rookery.server.errors import CheckpointError, InvalidRequest
from rookery.server.text.json_tokenizer import JsonTokenizer
from rookery.server.text.tokenizer import ByteTokenizer, Tokenizer, load_tokenizer
from rookery.server.text.world import WorldTokenizer, is_vocabulary, packaged_vocabulary, read_vocabulary


class ReferenceTrie:
    """Greedy longest match, as plainly as it can be written: the meaning of World encoding."""

    def __init__(self, tokens: dict[int, bytes]) -> None:
        self.root: dict[int, Any] = {}
        for token_id, token in tokens.items():
            node = self.root
            for byte in token:
                node = node.setdefault(byte, {})
            node[-1] = token_id

    def encode(self, data: bytes) -> list[int]:
        ids: list[int] = []
        begin = 0
        while begin < len(data):
            node, position, longest = self.root, begin, (-1, begin)
            while position < len(data) and data[position] in node:
                node = node[data[position]]
                position += 1
                if -1 in node:
                    longest = (node[-1], position)
            ids.append(longest[0])
            begin = longest[1]
        return ids


@pytest.fixture(scope="module")
def vocabulary() -> dict[int, bytes]:
    return read_vocabulary(packaged_vocabulary().read_bytes().decode())


@pytest.fixture(scope="module")
def world(vocabulary: dict[int, bytes]) -> WorldTokenizer:
    return WorldTokenizer(vocabulary)


@pytest.fixture(scope="module")
def reference(vocabulary: dict[int, bytes]) -> ReferenceTrie:
    return ReferenceTrie(vocabulary)


def small_vocabulary(*words: str) -> dict[int, bytes]:
    """The 256 single bytes and some words."""
    tokens = {byte + 1: bytes((byte,)) for byte in range(256)}
    return tokens | {257 + i: word.encode() for i, word in enumerate(words)}


def vocabulary_text(tokens: dict[int, bytes], newline: str = "\n") -> str:
    lines = []
    for token_id, token in tokens.items():
        try:
            literal = repr(token.decode())
        except UnicodeDecodeError:
            literal = repr(token)
        lines.append(f"{token_id} {literal} {len(token)}")
    return newline.join(lines) + newline


def test_world_ids_are_those_of_the_official_package(world: WorldTokenizer, fixtures: Path) -> None:
    cases = json.loads((fixtures / "tokenizer_world.json").read_text())["cases"]
    assert len(cases) == 40
    for case in cases:
        data = bytes.fromhex(case.get("bytes_hex") or case["utf8_hex"])
        assert world.encode_bytes(data) == case["ids"], case["name"]
        if "text" in case:
            assert world.encode(case["text"]) == case["ids"], case["name"]
        assert b"".join(map(world.token_bytes, case["ids"])) == data
        assert world.decode(case["ids"]) == data.decode("utf-8", "replace")


def test_world_encodes_pieces_of_tokens_as_the_reference_does(
    world: WorldTokenizer, reference: ReferenceTrie, vocabulary: dict[int, bytes]
) -> None:
    """Tokens cut anywhere and joined: where a wrong longest match would show."""
    draw = random.Random(0)
    tokens = list(vocabulary.values())
    for _ in range(3000):
        pieces = [draw.choice(tokens)[: draw.randint(1, 128)] for _ in range(draw.randint(1, 6))]
        data = b"".join(pieces) + draw.randbytes(draw.randint(0, 3))
        assert world.encode_bytes(data) == reference.encode(data)
        text = data.decode("utf-8", "ignore")
        assert world.encode(text) == reference.encode(text.encode())


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60), text=st.text(max_size=60))
def test_world_encodes_anything_as_the_reference_does(
    world: WorldTokenizer, reference: ReferenceTrie, data: bytes, text: str
) -> None:
    ids = world.encode_bytes(data)
    assert ids == reference.encode(data)
    assert b"".join(map(world.token_bytes, ids)) == data
    assert world.encode(text) == reference.encode(text.encode())
    assert world.decode(world.encode(text)) == text


@pytest.mark.parametrize("piece_chars", [1, 40, 150])
def test_long_texts_encode_as_if_at_once(
    world: WorldTokenizer,
    reference: ReferenceTrie,
    vocabulary: dict[int, bytes],
    monkeypatch: pytest.MonkeyPatch,
    piece_chars: int,
) -> None:
    monkeypatch.setattr("rookery.server.text.world.PIECE_CHARS", piece_chars)
    draw = random.Random(piece_chars)
    tokens = list(vocabulary.values())
    texts = ["x" * 700, "\n" * 999, "🦅" * 300, "日本語" * 200, " " * 129 + "é" * 500]
    texts += [b"".join(draw.choices(tokens, k=150)).decode("utf-8", "ignore") for _ in range(30)]
    for text in texts:
        assert world.encode(text) == reference.encode(text.encode())


def test_world_knows_its_ids(world: WorldTokenizer) -> None:
    assert world.vocab_size == 65530
    assert world.eos_token_id == 0
    assert [world.token_bytes(i) for i in (-1, 0, 1, 256, 65529, 65530, 10**9)][:4] == [b"", b"", b"\0", b"\xff"]
    assert world.token_bytes(65530) == b""
    assert world.encode("<|endoftext|>") == world.encode_bytes(b"<|endoftext|>")
    assert 0 not in world.encode("<|endoftext|>\0")
    assert world.encode("") == []


def test_lone_surrogates_are_refused_with_their_place(world: WorldTokenizer) -> None:
    for tokenizer in (world, ByteTokenizer()):
        with pytest.raises(InvalidRequest, match=r"U\+D83D at character 2") as caught:
            tokenizer.encode("ab\ud83d")
        assert caught.value.code == "invalid_unicode"
    with pytest.raises(InvalidRequest, match="at character 90000"):
        world.encode("a" * 90_000 + "\udc00")


def test_line_ends_do_not_change_a_vocabulary(tmp_path: Path) -> None:
    tokens = small_vocabulary("it's", 'say "so"', "a b", "\\", "\n\n", "é", "\u2028", "日本")
    tokens[300] = b"\xe6\x97"
    files = {}
    for name, newline in (("lf.txt", "\n"), ("crlf.txt", "\r\n")):
        (tmp_path / name).write_bytes(vocabulary_text(tokens, newline).encode())
        files[name] = WorldTokenizer.from_file(tmp_path / name)
    assert files["lf.txt"].fingerprint == files["crlf.txt"].fingerprint
    assert [files["crlf.txt"].token_bytes(i) for i in sorted(tokens)] == [tokens[i] for i in sorted(tokens)]
    assert files["lf.txt"].vocab_size == 301
    assert files["lf.txt"].token_bytes(270) == b""
    del tokens[300]
    assert WorldTokenizer(tokens).fingerprint != files["lf.txt"].fingerprint


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("300 'ab' 3", "has 2 bytes"),
        ("300 'ab'", "not `<id> <literal> <length>`"),
        ("300 __import__('os').getpid() 2", "line 257"),
        ("300 ['a'] 1", "neither text nor bytes"),
        ("300 'a 2", "not a literal"),
        ("1 'zz' 2", "comes twice"),
        ("0 'zz' 2", "out of range"),
        ("99999999 'zz' 2", "out of range"),
        ("x 'zz' 2", "line 257"),
    ],
)
def test_broken_vocabularies_are_refused_by_line(tmp_path: Path, line: str, reason: str) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text(vocabulary_text(small_vocabulary()) + line + "\n")
    with pytest.raises(CheckpointError) as caught:
        WorldTokenizer.from_file(path)
    assert reason in caught.value.cause
    assert caught.value.mend


def test_a_vocabulary_without_all_bytes_is_refused() -> None:
    tokens = small_vocabulary()
    del tokens[8]
    with pytest.raises(ValueError, match="1 single bytes have no token"):
        read_vocabulary(vocabulary_text(tokens))


def test_the_tokenizer_is_chosen_by_flag_then_folder_then_size(tmp_path: Path) -> None:
    model = tmp_path / "model.pth"
    assert isinstance(load_tokenizer(None, model_path=model, vocab_size=256), ByteTokenizer)
    by_size = load_tokenizer(None, model_path=model, vocab_size=65536)
    assert by_size.vocab_size == 65530
    small = tmp_path / "vocab.txt"
    small.write_text(vocabulary_text(small_vocabulary("hello")))
    beside = load_tokenizer(None, model_path=model, vocab_size=320)
    assert beside.encode("hello") == [257]
    assert load_tokenizer(None, model_path=tmp_path, vocab_size=320).fingerprint == beside.fingerprint
    # another model's file beside this one is passed over, a file asked for is not
    assert load_tokenizer(None, model_path=model, vocab_size=65536).fingerprint == by_size.fingerprint
    assert load_tokenizer(small, model_path=model, vocab_size=65536).vocab_size == 258
    with pytest.raises(CheckpointError, match="the model has 257 rows"):
        load_tokenizer(small, model_path=model, vocab_size=257)


@pytest.mark.parametrize("vocab_size", [50277, 50304, 1000])
def test_a_model_whose_vocabulary_is_missing_says_what_to_do(tmp_path: Path, vocab_size: int) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(None, model_path=tmp_path / "model.pth", vocab_size=vocab_size)
    assert "--tokenizer" in caught.value.mend
    with pytest.raises(CheckpointError, match="no tokenizer at"):
        load_tokenizer(tmp_path / "absent.txt", model_path=tmp_path, vocab_size=vocab_size)


def test_other_files_named_vocab_are_not_vocabularies(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    assert not is_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe\0")
    assert not is_vocabulary(tmp_path / "vocab.txt")


@pytest.fixture(scope="module")
def pile(fixtures: Path) -> Tokenizer:
    return load_tokenizer(fixtures / "20B_tokenizer.json", model_path=fixtures / "pile.pth", vocab_size=50277)


def test_the_20b_vocabulary(pile: Tokenizer) -> None:
    assert pile.encode("Hello RWKV\n\nBob:") == [12092, 416, 27767, 55, 187, 187, 26845, 27]
    assert (pile.vocab_size, pile.eos_token_id) == (50277, 0)
    assert pile.token_bytes(50254) == b" " * 24
    assert pile.token_bytes(0) == pile.token_bytes(1) == b""
    text = "  héllo  世界 🦅\t\n"
    ids = pile.encode(text)
    assert pile.decode(ids) == text
    assert b"".join(map(pile.token_bytes, ids)) == text.encode()
    with pytest.raises(InvalidRequest):
        pile.encode("\udfff")


def test_special_tokens_are_never_made_from_text(pile: Tokenizer) -> None:
    ids = pile.encode("a<|endoftext|>b<|padding|>")
    assert not {0, 1} & set(ids)
    assert pile.decode(ids) == "a<|endoftext|>b<|padding|>"


def test_a_broken_tokenizer_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    for text in ("{", "{}", '{"model": 1}'):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"no usable tokenizer\.json"):
            JsonTokenizer.from_file(path)


def test_llguidance_sees_the_same_vocabulary(world: WorldTokenizer, pile: Tokenizer) -> None:
    for tokenizer in (world, pile, ByteTokenizer()):
        seen = tokenizer.llguidance
        assert seen.vocab_size == tokenizer.vocab_size
        assert seen.decode_bytes(tokenizer.encode("Äpfel\n")) == "Äpfel\n".encode()
        assert seen.tokenize_str("Äpfel\n") == tokenizer.encode("Äpfel\n")  # what it does with text a grammar forces
        if tokenizer.eos_token_id is not None:
            assert seen.eos_token == tokenizer.eos_token_id


def test_text_needs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from rookery.server.text.tokenizer import load_tokenizer;"
        "load_tokenizer(None, model_path=Path('m.pth'), vocab_size=65536).encode('a'); print('torch' in sys.modules)"
    )
    assert run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
