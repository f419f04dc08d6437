"""Keys of prefixes, and states under a byte budget."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rookery.server.state.cache import Marks, PrefixCache
from rookery.server.state.digest import PrefixDigest, namespace, prefix_keys
from rookery.server.state.memory import Snapshot, StateMemory

from .arrays import state_of

NAMES = namespace("model", "tokenizer", "tenant")
ids = st.lists(st.integers(0, 65535), max_size=40)


def snapshot(values: int = 64) -> Snapshot:
    return Snapshot(state_of(torch.zeros(1, 2, 8), torch.zeros(1, 1, 8, values)))


SIZE = snapshot().size_bytes


@given(ids, st.integers(1, 40))
def test_a_prefix_has_one_key_however_it_is_read(tokens: list[int], cut: int) -> None:
    whole, pieces = PrefixDigest(NAMES), PrefixDigest(NAMES)
    whole.extend(tokens)
    for start in range(0, len(tokens), cut):
        pieces.extend(tokens[start : start + cut])
        assert len(pieces.key) == 16  # asking on the way changes nothing
    assert pieces.key == whole.key and pieces.length == len(tokens)
    if tokens:
        keys, end = prefix_keys(NAMES, tokens, [len(tokens), 1])
        assert keys[len(tokens)] == end.key == whole.key and set(keys) == {1, len(tokens)}


@given(ids, ids)
def test_other_tokens_have_other_keys(one: list[int], other: list[int]) -> None:
    keys = [prefix_keys(NAMES, tokens, [])[1].key for tokens in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


def test_names_are_told_apart_wherever_they_end() -> None:
    names = {namespace("ab", "c"), namespace("a", "bc"), namespace("abc"), namespace("abc", ""), namespace("ab", "c ")}
    assert len(names) == 5


def test_twins_of_a_digest_go_their_own_ways() -> None:
    digest = PrefixDigest(NAMES)
    digest.extend([1, 2])
    twin = digest.copy()
    twin.extend([3])
    assert digest.key == prefix_keys(NAMES, [1, 2], [])[1].key
    assert twin.key == prefix_keys(NAMES, [1, 2, 3], [])[1].key


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300), st.booleans()), max_size=60))
def test_memory_stays_within_its_budget(uses: list[tuple[int, int, bool]]) -> None:
    memory = StateMemory(5 * SIZE + 17)
    for number, gain, put in uses:
        key, held = bytes([number]), len(memory)
        if put:
            fits = key in memory or held < 5
            assert memory.keep(NAMES, number, key, snapshot(), gain=gain) and key in memory
            assert memory.evictions or fits
        else:
            assert (memory.take(key) is not None) == (key in memory)
        assert memory.used_bytes == len(memory) * SIZE <= memory.budget_bytes
        assert sorted(memory.places.lengths(NAMES)) == sorted(key[0] for key, _, _ in memory)


def test_what_saves_least_goes_first_and_what_is_never_used_goes_in_the_end() -> None:
    memory = StateMemory(3 * SIZE)
    memory.keep(NAMES, 1, b"great", snapshot(), gain=1000)
    memory.keep(NAMES, 1, b"small", snapshot(), gain=10)
    memory.keep(NAMES, 1, b"used", snapshot(), gain=10)
    memory.take(b"used")
    memory.keep(NAMES, 1, b"new", snapshot(), gain=10)
    assert b"small" not in memory and {b"great", b"used", b"new"} == set(memory._held)
    for number in range(200):
        memory.keep(NAMES, 1, b"%d" % number, snapshot(), gain=10)
    assert b"great" not in memory
    assert memory.evictions == 201


def test_one_larger_than_the_budget_is_not_taken_and_drops_nothing() -> None:
    memory = StateMemory(2 * SIZE)
    memory.keep(NAMES, 1, b"a", snapshot(), gain=1)
    assert not memory.keep(NAMES, 1, b"b", snapshot(10_000), gain=10**6)
    assert b"a" in memory


def test_a_cache_knows_the_lengths_of_what_it_holds() -> None:
    cache = PrefixCache(2 * SIZE)
    for length in (5, 5, 9, 7):
        cache.memory.keep(NAMES, length, bytes([length, len(cache.memory)]), snapshot(), gain=length)
    assert len(cache.memory) == 2 and sorted(cache.lengths(NAMES)) == [7, 9]
    assert not list(cache.lengths(namespace("other")))
    cache.discard(bytes([9, 2]))
    assert sum(cache.memory.places._lengths[NAMES].values()) == len(cache.memory) == len(cache.memory.places)


def test_marks_forget_the_oldest() -> None:
    marks = Marks(2)
    marks.add([b"a", b"b", b"a", b"c"])
    assert b"a" in marks and b"c" in marks and b"b" not in marks
