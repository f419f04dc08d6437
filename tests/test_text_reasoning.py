"""Reasoning apart from the answer, for any cutting of the reply."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rookery.server.text.reasoning import ReasoningSplitter, strip_reasoning


def split(chunks: list[str], *, open: bool, missing: str) -> tuple[str, str]:
    splitter = ReasoningSplitter(open, missing=missing)
    pieces = [piece for chunk in chunks for piece in splitter.push(chunk)] + splitter.flush()
    assert all(piece.text for piece in pieces)
    kinds = [piece.kind for piece in pieces]
    assert kinds == sorted(kinds, reverse=True)  # never reasoning after content
    return tuple(  # type: ignore[return-value]
        "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("reasoning", "content")
    )


@pytest.mark.parametrize(
    ("reply", "open", "missing", "reasoning", "content"),
    [
        (">\nSo.\n\nHm </th.\n</think>\n\nYes > no\n", True, ">", "So.\n\nHm </th.", "Yes > no\n"),
        (" So</think>Yes", True, "", "So", "Yes"),
        ("cut short </thi", True, ">", "cut short </thi", ""),
        (">\nYes", False, ">", "", "Yes"),
        (">\n\nYes </think> no", False, ">", "", "Yes </think> no"),
        ("Yes", False, ">", "", "Yes"),
        (" Yes\n", False, "", "", " Yes\n"),
        (" <think>a</think> b", False, "", "a", "b"),
        (" <thinker", False, "", "", " <thinker"),
        ("  ", False, "", "", "  "),
        ("", True, ">", "", ""),
        (">></think>>", True, ">", ">", ">"),
        (">a</think></think>b", True, ">", "a", "</think>b"),
        (">   </think>\n", True, ">", "", ""),
    ],
)
def test_replies_are_split(reply: str, open: bool, missing: str, reasoning: str, content: str) -> None:
    assert split([reply], open=open, missing=missing) == (reasoning, content)
    assert split(list(reply), open=open, missing=missing) == (reasoning, content)


@given(chunks=st.lists(st.sampled_from([">", "<", "/", "think", "</think>", "<think>", " ", "\n", "a", "</thi", "nk"])))
@pytest.mark.parametrize(("open", "missing"), [(True, ">"), (True, ""), (False, ">"), (False, "")])
def test_cutting_does_not_matter(open: bool, missing: str, chunks: list[str]) -> None:
    whole = split(["".join(chunks)], open=open, missing=missing)
    assert split(chunks, open=open, missing=missing) == whole
    assert split(list("".join(chunks)), open=open, missing=missing) == whole


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<think>\nhm\n</think>\n\nYes", "Yes"),
        (" <think></think>Yes", "Yes"),
        ("<think>never closed", ""),
        ("Use <think>x</think> tags", "Use <think>x</think> tags"),
    ],
)
def test_history_holds_no_reasoning(text: str, kept: str) -> None:
    assert strip_reasoning(text) == kept
