"""Vocabularies in a `tokenizer.json`: ChatRWKV's 20B file for Pile and Raven models, and any other."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from llguidance import LLTokenizer
from tokenizers import Tokenizer as HfTokenizer

from ..errors import CheckpointError
from .tokenizer import lone_surrogate

END_NAMES = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<|rwkv_tokenizer_end_of_text|>", "<eos>", "[EOS]")
"""Names under which files have their end token, likeliest first."""
MAX_FILE_BYTES = 128 * 2**20


class JsonTokenizer:
    """A `tokenizers` vocabulary. The names of its special tokens, met in a text, are ordinary text."""

    def __init__(self, definition: str) -> None:
        hf = _parse(definition)
        hf.encode_special_tokens = True  # a user who writes <|endoftext|> gets letters, not an end
        hf.no_truncation()
        hf.no_padding()
        self._hf = hf
        self.fingerprint = hashlib.sha256(definition.encode()).hexdigest()
        self.vocab_size = max(hf.get_vocab(with_added_tokens=True).values()) + 1
        special = {token_id for token_id, token in hf.get_added_tokens_decoder().items() if token.special}
        names = (hf.token_to_id(name) for name in END_NAMES)
        self.eos_token_id: int | None = next((token_id for token_id in names if token_id in special), None)
        trie = LLTokenizer(definition, n_vocab=self.vocab_size, eos_token=self.eos_token_id, slices=[])
        self._trie = trie
        self._tokens = [
            b"" if token_id in special else trie.decode_bytes([token_id]) for token_id in range(self.vocab_size)
        ]

    @classmethod
    def from_file(cls, path: Path) -> JsonTokenizer:
        """Read a tokenizer.json.

        Raises:
            CheckpointError: it is unreadable, too large or malformed.
        """
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            return cls(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path.name} is no usable tokenizer.json: {str(error)[:200]}",
                "use the tokenizer.json that came with the model, or name another with --tokenizer",
            ) from None

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise lone_surrogate(error) from None
        (encoding,) = self._hf.encode_batch_fast([text], add_special_tokens=False)  # unlike `encode`, frees the GIL
        return list(encoding.ids)

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._tokens[token_id] if 0 <= token_id < self.vocab_size else b""

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    @cached_property
    def llguidance(self) -> LLTokenizer:
        """See `Tokenizer.llguidance`."""
        return self._trie.with_slices(LLTokenizer.general_slices())


def _parse(definition: str) -> HfTokenizer:
    try:
        return HfTokenizer.from_str(definition)
    except Exception as error:  # the library raises plain Exception for whatever its parser dislikes
        raise ValueError(str(error)) from None
