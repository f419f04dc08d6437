"""Text to token ids and back: the interface every vocabulary has, and which one a model gets.

Three kinds exist among RWKV models: the World vocabulary (`world.py`: greedy longest match over bytes), a
`tokenizer.json` (`json_tokenizer.py`: the 20B vocabulary of Pile and Raven models, or any other) and plain bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ..errors import CheckpointError, InvalidRequest

if TYPE_CHECKING:
    from llguidance import LLTokenizer

WORLD_VOCAB_SIZE = 65536
"""Rows of every published World model; the vocabulary has text for ids 1 to 65529, id 0 ends a document."""
PILE_VOCAB_SIZES = (50277, 50304, 50432)
"""The 20B vocabulary as it is and as it is padded in checkpoints."""
MAX_PADDING = 512
"""Rows a checkpoint may have beyond its vocabulary before a file beside it is taken for another model's."""


class Tokenizer(Protocol):
    """Text ↔ ids of one vocabulary. Immutable, safe to use from several threads."""

    @property
    def vocab_size(self) -> int:
        """Ids below it can be drawn; a model may have more rows, whose ids have no meaning."""
        ...

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a document, where the vocabulary has one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest of what the ids mean: cached states belong to it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of the text; nothing is added, and no special token is ever made from text.

        Raises:
            InvalidRequest: the text holds a lone surrogate, which has no bytes.
        """
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token; empty for ids without text (the end token, padding, ids out of range)."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; bytes that are no UTF-8 become U+FFFD."""
        ...

    @property
    def llguidance(self) -> LLTokenizer:
        """The same vocabulary for constrained decoding, made on first use."""
        ...


def lone_surrogate(error: UnicodeEncodeError) -> InvalidRequest:
    """What a client is told about text that Python can hold but no UTF-8 can."""
    code = ord(error.object[error.start])
    return InvalidRequest(
        f"the text is not valid Unicode: a lone surrogate U+{code:04X} at character {error.start}",
        code="invalid_unicode",
    )


def first_surrogate(text: str) -> InvalidRequest | None:
    """The error `encode` would raise for this text, or None: to refuse it early, with the field's name."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return lone_surrogate(error)
    return None


class ByteTokenizer:
    """Each byte is a token: small test models of 256 entries. No id ends a document."""

    vocab_size = 256
    eos_token_id: int | None = None
    fingerprint = hashlib.sha256(b"bytes").hexdigest()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return list(text.encode())
        except UnicodeEncodeError as error:
            raise lone_surrogate(error) from None

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return bytes((token_id,)) if 0 <= token_id < 256 else b""

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    @cached_property
    def llguidance(self) -> LLTokenizer:
        """See `Tokenizer.llguidance`. Its end token is 255: a byte that no UTF-8 text holds, so no grammar needs it."""
        from .world import guidance_tokenizer

        return guidance_tokenizer([bytes((byte,)) for byte in range(256)], eos_token_id=255)


def load_tokenizer(path: Path | None, *, model_path: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer of a model: the file asked for, else one beside the model, else what its size tells.

    Args:
        path: World vocabulary (.txt) or tokenizer.json, or a folder that has one; None chooses.
        model_path: the checkpoint's file or folder; its folder is searched.
        vocab_size: rows of the model's embedding.

    Raises:
        CheckpointError: no vocabulary fits; the mend says what to do.
    """
    if path is not None:
        chosen = path if path.is_file() else next(_files_in(path), None)
        if chosen is None:
            raise CheckpointError(
                f"no tokenizer at {path}",
                "give --tokenizer a World vocabulary .txt, a tokenizer.json, or a folder that holds one",
            )
        tokenizer = _read(chosen)
        if tokenizer.vocab_size > vocab_size:
            raise CheckpointError(
                f"{chosen.name} has ids up to {tokenizer.vocab_size - 1}, the model has {vocab_size} rows",
                "use the tokenizer this model was trained with",
            )
        return tokenizer
    for found in _files_in(model_path if model_path.is_dir() else model_path.parent):
        tokenizer = _read(found)
        if 0 <= vocab_size - tokenizer.vocab_size <= MAX_PADDING:
            return tokenizer
    return _by_size(vocab_size)


def _by_size(vocab_size: int) -> Tokenizer:
    if vocab_size == WORLD_VOCAB_SIZE:
        from .world import WorldTokenizer, packaged_vocabulary

        return WorldTokenizer.from_file(packaged_vocabulary())
    if vocab_size == 256:
        return ByteTokenizer()
    if vocab_size in PILE_VOCAB_SIZES:
        raise CheckpointError(
            f"a model of {vocab_size} tokens (Pile, Raven) needs the 20B tokenizer, and none is beside it",
            "put ChatRWKV's 20B_tokenizer.json beside the model or name it with --tokenizer",
        )
    raise CheckpointError(
        f"no known vocabulary has {vocab_size} tokens, and no tokenizer file that fits is beside the model",
        "name its World vocabulary .txt or tokenizer.json with --tokenizer",
    )


def _files_in(folder: Path) -> Iterator[Path]:
    """Tokenizer files of a folder by their usual names, World vocabularies first."""
    from .world import is_vocabulary

    for path in (*sorted(folder.glob("rwkv_vocab*.txt")), folder / "vocab.txt"):
        if path.is_file() and is_vocabulary(path):
            yield path
    for name in ("tokenizer.json", "20B_tokenizer.json"):
        if (folder / name).is_file():
            yield folder / name


def _read(path: Path) -> Tokenizer:
    if path.suffix == ".json":
        from .json_tokenizer import JsonTokenizer

        return JsonTokenizer.from_file(path)
    from .world import WorldTokenizer

    return WorldTokenizer.from_file(path)
