"""Keys of stored states: what a state was computed from, in 16 bytes, whatever its length.

A client cannot make a key that reaches another's state: the namespace, which holds the tenant, goes into it first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pool import State


def namespace(*fields: str) -> bytes:
    """What states must have in common to be exchanged: model, tokenizer, dtype, tuned state, tenant …, 32 bytes."""
    digest = blake2b(digest_size=32, person=b"rookery.names")
    for field in fields:
        raw = field.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.digest()


def state_digest(state: State | None) -> str:
    """Of a state's values, so that two of one name are told apart; empty for none."""
    if state is None:
        return ""
    digest = blake2b(digest_size=16, person=b"rookery.state")
    for values in (state.shift, state.wkv):
        digest.update(values.astype("<f4").tobytes())
    return digest.hexdigest()


class PrefixDigest:
    """Digest of a namespace and the tokens read so far; it can be asked for at any token and goes on from there.

    Attributes:
        length: tokens read.
    """

    def __init__(self, namespace: bytes) -> None:
        self._hash = blake2b(namespace, digest_size=16, person=b"rookery.prefix")
        self.length = 0

    @property
    def key(self) -> bytes:
        """Of the tokens so far, 16 bytes."""
        return self._hash.digest()

    def extend(self, token_ids: Sequence[int]) -> None:
        """Read on."""
        self._hash.update(array("i", token_ids).tobytes())
        self.length += len(token_ids)

    def copy(self) -> PrefixDigest:
        """One that goes its own way from here."""
        twin = object.__new__(PrefixDigest)
        twin._hash, twin.length = self._hash.copy(), self.length
        return twin


def prefix_keys(
    namespace: bytes, token_ids: Sequence[int], positions: Iterable[int]
) -> tuple[dict[int, bytes], PrefixDigest]:
    """Keys of the prefixes that end at `positions` (1 to the length), in one pass; and the digest of the whole."""
    digest = PrefixDigest(namespace)
    ids = array("i", token_ids)
    keys: dict[int, bytes] = {}
    for position in sorted(set(positions)):
        digest.extend(ids[digest.length : position])
        keys[position] = digest.key
    digest.extend(ids[digest.length :])
    return keys, digest
