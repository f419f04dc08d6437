"""The World vocabulary: greedy longest match over bytes, no special tokens, no normalisation.

llguidance is given the vocabulary as byte strings; its trie walk is the greedy match, its decoder and its masks come
from the same table. The file has one token a line, `<id> <Python literal> <byte length>`: the git version ends lines
with LF, the one in the `rwkv` package with CRLF.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from llguidance import LLTokenizer, TokenizerWrapper

from ..errors import CheckpointError
from .tokenizer import first_surrogate, lone_surrogate

EOS_TOKEN_ID = 0
EOS_NAME = b"<|endoftext|>"
"""How grammars may call the end token; no text encodes to it."""
MAX_FILE_BYTES = 32 * 2**20
MAX_TOKENS = 2**20
PIECE_CHARS = 32 * 1024
"""Text encoded in one call: about 10 ms."""


def packaged_vocabulary() -> Path:
    """The vocabulary file inside the installed `rwkv` package, found without importing it (it would import torch).

    Raises:
        CheckpointError: the package is not installed.
    """
    spec = importlib.util.find_spec("rwkv")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "rwkv_vocab_v20230424.txt"
        if path.is_file():
            return path
    raise CheckpointError(
        "the World vocabulary of the `rwkv` package is missing",
        "pip install rwkv, or name a rwkv_vocab_v20230424.txt with --tokenizer",
    )


def is_vocabulary(path: Path) -> bool:
    """Whether the file's first line reads as a World entry (other models' `vocab.txt` do not)."""
    with path.open("rb") as file:
        line = file.readline(4096)
    try:
        _entry(line.decode().rstrip("\r\n"))
    except (UnicodeDecodeError, ValueError):
        return False
    return True


def read_vocabulary(text: str) -> dict[int, bytes]:
    """Token bytes by id, from the text of a vocabulary file.

    Raises:
        ValueError: a line is malformed, its length is wrong, an id comes twice, or a single byte has no token.
    """
    tokens: dict[int, bytes] = {}
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line:
            continue
        try:
            token_id, token = _entry(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
        if token_id in tokens:
            raise ValueError(f"line {number}: id {token_id} comes twice")
        if not 0 < token_id < MAX_TOKENS:
            raise ValueError(f"line {number}: id {token_id} is out of range (0 is the end token)")
        tokens[token_id] = token
    singles = {token for token in tokens.values() if len(token) == 1}
    if len(singles) != 256:
        raise ValueError(f"{256 - len(singles)} single bytes have no token, so some text could not be encoded")
    return tokens


def _entry(line: str) -> tuple[int, bytes]:
    """One line's id and bytes. The literal may hold spaces: split at the first and at the last one."""
    first, last = line.find(" "), line.rfind(" ")
    if not 0 < first < last:
        raise ValueError(f"not `<id> <literal> <length>`: {line[:80]!r}")
    literal = line[first + 1 : last]
    quote = literal[0] if literal else ""
    if quote in "'\"" and len(literal) >= 2 and literal.endswith(quote) and "\\" not in literal:
        token = literal[1:-1].encode()  # most lines: what is between the quotes is the text itself
    else:
        try:
            value = ast.literal_eval(literal)
        except (SyntaxError, MemoryError, RecursionError):
            raise ValueError(f"not a literal: {literal[:80]!r}") from None
        if not isinstance(value, (str, bytes)):
            raise ValueError(f"neither text nor bytes: {literal[:80]!r}")
        token = value.encode() if isinstance(value, str) else value
    if not token or len(token) != int(line[last + 1 :]):
        raise ValueError(f"{literal[:80]!r} has {len(token)} bytes, the line says {line[last + 1 :]}")
    return int(line[:first]), token


def guidance_tokenizer(tokens: Sequence[bytes], *, eos_token_id: int, slices: list[str] | None = None) -> LLTokenizer:
    """llguidance over a table of byte strings; ids with empty bytes are never matched.

    Args:
        slices: classes of text whose masks are computed ahead; None takes llguidance's, [] none (quicker to make).
    """
    table = _Table(list(tokens), eos_token_id)
    table.trie = LLTokenizer(TokenizerWrapper(table), n_vocab=len(tokens), slices=slices)
    return table.trie


class _Table:
    """What llguidance asks of a tokenizer. It calls it back for texts that a grammar forces, and gets its own greedy
    match."""

    bos_token_id = None
    trie: LLTokenizer | None = None

    def __init__(self, tokens: list[bytes], eos_token_id: int) -> None:
        self.tokens = tokens
        self.eos_token_id = eos_token_id
        self.special_token_ids = [eos_token_id]

    def __call__(self, text: str) -> list[int]:
        if self.trie is None or not isinstance(text, str):
            raise TypeError("text only: the wrapper tries bytes once, when it is made")
        return self.trie.greedy_tokenize(text)


class WorldTokenizer:
    """A vocabulary in the World format: the published one of 65,529 entries, or a smaller one."""

    eos_token_id: int | None = EOS_TOKEN_ID

    def __init__(self, tokens: dict[int, bytes]) -> None:
        self.vocab_size = max(tokens) + 1
        self._tokens = [tokens.get(token_id, b"") for token_id in range(self.vocab_size)]
        self._longest = max(map(len, self._tokens))

    @classmethod
    def from_file(cls, path: Path) -> WorldTokenizer:
        """Read a vocabulary file.

        Raises:
            CheckpointError: it is unreadable, too large or malformed.
        """
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
            return cls(read_vocabulary(path.read_bytes().decode()))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path.name} is no World vocabulary: {error}",
                "use an unchanged rwkv_vocab_v20230424.txt, or the vocabulary file that came with the model",
            ) from None

    @cached_property
    def fingerprint(self) -> str:
        """See `Tokenizer.fingerprint`: of ids and bytes, so line ends and spelling of the file do not matter."""
        digest = hashlib.sha256(b"world")
        for token in self._tokens:
            digest.update(len(token).to_bytes(4, "little") + token)
        return digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer.encode`."""
        try:
            return self._encode(text)
        except UnicodeEncodeError as error:  # its place is within one piece
            raise first_surrogate(text) or lone_surrogate(error) from None

    def _encode(self, text: str) -> list[int]:
        """Piece by piece, since the trie walk keeps the interpreter lock and a long text would stop all other threads.

        The greedy match looks at most one token's length ahead. So all tokens of a piece are right but those that
        begin within that length of its end; the next piece begins with those, at the first whole character.
        """
        ids: list[int] = []
        begin, size = 0, PIECE_CHARS
        while len(text) - begin > size:
            piece = self._trie.greedy_tokenize(text[begin : begin + size])
            kept, rest = len(piece), b""
            while kept and (len(rest) < self._longest or rest[0] & 0xC0 == 0x80):
                kept -= 1
                rest = self._tokens[piece[kept]] + rest
            if not kept:  # no token begins with a whole character: nothing of this piece is certain
                size *= 2
                continue
            ids += piece[:kept]
            begin, size = begin + size - len(rest.decode()), PIECE_CHARS
        return ids + self._trie.greedy_tokenize(text[begin:])

    def encode_bytes(self, data: bytes) -> list[int]:
        """Ids of any bytes, valid UTF-8 or not, by the same greedy match."""
        return self._byte_trie.greedy_tokenize(data.decode("latin-1"))

    def token_bytes(self, token_id: int) -> bytes:
        """See `Tokenizer.token_bytes`."""
        return self._tokens[token_id] if 0 <= token_id < self.vocab_size else b""

    def decode(self, ids: Sequence[int]) -> str:
        """See `Tokenizer.decode`."""
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    @cached_property
    def _trie(self) -> LLTokenizer:
        """Made for the first text: an engine needs none before its first grammar."""
        return guidance_tokenizer([EOS_NAME, *self._tokens[1:]], eos_token_id=EOS_TOKEN_ID, slices=[])

    @cached_property
    def llguidance(self) -> LLTokenizer:
        """See `Tokenizer.llguidance`."""
        return self._trie.with_slices(LLTokenizer.general_slices())

    @cached_property
    def _byte_trie(self) -> LLTokenizer:
        """The vocabulary with each byte spelt as the character of its value: llguidance walks text only, and this
        makes text of any bytes while keeping prefixes prefixes."""
        spelt = [token.decode("latin-1").encode() for token in self._tokens]
        return guidance_tokenizer([EOS_NAME, *spelt[1:]], eos_token_id=EOS_TOKEN_ID, slices=[])
