"""Ids to text as they arrive: joined, it is the plain decode cut at the first stop, however the ids came."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from rookery.server.text.detokenizer import Detokenizer, StopScanner
from rookery.server.text.tokenizer import ByteTokenizer

BYTES = ByteTokenizer()


def cut_at_first_stop(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """The stop that is complete first, the longest of those: by trying every end."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            stop = max(complete, key=len)
            return text[: end - len(stop)], stop
    return text, None


def read(data: bytes, stops: Sequence[str] = ()) -> tuple[list[str], Detokenizer]:
    detokenizer = Detokenizer(BYTES, stops)
    pieces = [detokenizer.push(byte) for byte in data]
    return [*pieces, detokenizer.flush()], detokenizer


@given(data=st.binary(max_size=40))
@example(data="🦅".encode()[:3])
@example(data=b"\xf0\x9f\xa6a\x80\xed\xa0\x80\xc0\xafok")
def test_any_bytes_join_to_the_plain_decode(data: bytes) -> None:
    pieces, _ = read(data)
    assert "".join(pieces) == data.decode("utf-8", "replace")


@given(text=st.text(max_size=20))
def test_characters_come_whole_and_at_once(text: str) -> None:
    detokenizer = Detokenizer(BYTES)
    for character in text:
        *before, last = character.encode()
        assert [detokenizer.push(byte) for byte in before] == [""] * len(before)
        assert detokenizer.push(last) == character
    assert detokenizer.flush() == ""


@given(text=st.text("ab\n", max_size=30), stops=st.lists(st.text("ab\n", max_size=5), max_size=4), cut=st.data())
@example(text="aab", stops=["aab"], cut=None)
@example(text="abab\n", stops=["bab\n", "ab"], cut=None)
def test_stops_cut_at_the_first_complete_one(text: str, stops: list[str], cut: st.DataObject | None) -> None:
    expected, stop = cut_at_first_stop(text, stops)
    scanner = StopScanner(stops)
    begin, joined = 0, ""
    while begin < len(text):
        size = 1 if cut is None else cut.draw(st.integers(1, len(text) - begin))
        joined += scanner.push(text[begin : begin + size])
        begin += size
        seen = text[:begin]
        assert expected.startswith(joined)
        if scanner.stopped is None:  # nothing is held back that cannot become a stop
            held = seen[len(joined) :]
            assert held == "" or any(stop.startswith(held) for stop in stops)
    joined += scanner.flush()
    assert (joined, scanner.stopped) == (expected, stop)


@given(data=st.binary(max_size=30), stops=st.lists(st.sampled_from(["�", "a", "é", "�a", "\x00"]), max_size=3))
def test_bytes_and_stops_together(data: bytes, stops: list[str]) -> None:
    pieces, detokenizer = read(data, stops)
    assert ("".join(pieces), detokenizer.stopped) == cut_at_first_stop(data.decode("utf-8", "replace"), stops)


def test_after_a_stop_nothing_comes() -> None:
    pieces, detokenizer = read(b"one\n\nUser: two", ["\n\nUser:", "\nUser:"])
    assert "".join(pieces) == "one"
    assert detokenizer.stopped == "\n\nUser:"
    assert detokenizer.push(65) == detokenizer.flush() == ""


def test_held_text_is_given_at_the_end() -> None:
    pieces, detokenizer = read(b"x\n\nUs", ["\n\nUser:"])
    assert pieces == ["x", "", "", "", "", "\n\nUs"]
    assert detokenizer.stopped is None


def test_ids_without_text_make_none() -> None:
    detokenizer = Detokenizer(BYTES, ["z"])
    assert [detokenizer.push(i) for i in (300, -1, 97)] == ["", "", "a"]
