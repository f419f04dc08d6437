"""Both forms of a prompt's WKV: the same outcome, a choice by size, and a benchmark that times them."""

from __future__ import annotations

import pytest
import torch

from rookery.kernels.rows import Rows
from rookery.kernels.triton import forms
from rookery.kernels.triton.forms import Entry, recurs
from rookery.kernels.wkv7_heads import wkv7_heads, wkv7_heads_reference
from rookery.server.bench import kernels

from ..test_kernels_wkv import Case
from .heads import random_heads


def test_an_entry_names_the_least_pairs_and_the_longest_prompt() -> None:
    entries = (Entry(pairs=1000, tokens=64), Entry(pairs=1, tokens=4))
    assert recurs(1000, 64, entries) and recurs(5, 4, entries)
    assert not recurs(999, 64, entries) and not recurs(1000, 65, entries)
    assert not recurs(10**6, 1), "without a measurement, all prompts are computed in chunks"


@pytest.mark.parametrize("first", [True, False])
def test_heads_by_token_equal_their_reference(first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "RECURRENT", (Entry(pairs=1, tokens=17),))
    rows = Rows.pack([5, -1, 1, 0, -1, 2], [1, 1, 17, 0, 3, 2], decode=1)
    inputs, weights, state = random_heads(rows.tokens, torch.float32, first=first)
    expected_state = state.clone()
    got = wkv7_heads(*inputs, weights, state, rows)
    expected = wkv7_heads_reference(*inputs, weights, expected_state, rows)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    torch.testing.assert_close(state, expected_state, rtol=1e-4, atol=1e-4)


def test_the_table_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case("wkv6", 20, 0)
    rows = Rows.pack([1], [20])
    outcomes = []
    for entries in ((), (Entry(pairs=1, tokens=20),)):
        monkeypatch.setattr(forms, "RECURRENT", entries)
        outcomes.append(case.fast(*case.inputs, case.state.clone(), rows))
    assert not torch.equal(*outcomes)  # of two forms
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-4)


def test_the_benchmark_times_both() -> None:
    report = kernels.measure(
        torch.device("cpu"), torch.float32, width=64, vocab_size=20, batches=[], prompts=[], forms=[(1, 2)],
        copy_bytes=2**10, side=8, rounds=1,
    )  # fmt: skip
    assert [form["operator"] for form in report["results"]] == ["wkv6", "wkv7_heads"]
    assert all(form["by_token_us"] > 0 and form["in_chunks_us"] > 0 for form in report["results"])
    assert kernels.render(report).row_count == 4
