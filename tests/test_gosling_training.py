"""The trainer: it resumes where it stopped, and two minutes of it already give a model that recalls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rookery.models.gosling.evaluate import SKILLS, Skill, recalled, score
from rookery.models.gosling.model import Gosling, Shape, load
from rookery.models.gosling.train import COSINES, PHASES, Phase, Row, Trainer, arguments, optimizer_for, rate_at
from rookery.models.gosling.vocabulary import Vocabulary

TRAIN = [sys.executable, "-m", "rookery.models.gosling.train"]


def test_rows_hand_out_the_documents_in_order_whatever_the_step() -> None:
    vocabulary, phase = Vocabulary.load(), Phase(1.0, rows=1, tokens=64, shortest=60, longest=200)
    whole, cut = (Row("seed", vocabulary, phase) for _ in range(2))
    tokens, targets, starts = whole.take(600)
    pieces = [cut.take(200) for _ in range(3)]
    assert tokens == [t for piece in pieces for t in piece[0]]
    assert targets == [t for piece in pieces for t in piece[1]]
    assert starts == [s for piece in pieces for s in piece[2]]
    assert starts[0] and sum(starts) > 1


def test_a_row_continues_from_its_saved_state() -> None:
    vocabulary, phase = Vocabulary.load(), Phase(1.0, rows=1, tokens=64, shortest=60, longest=200)
    row, resumed = Row("seed", vocabulary, phase), Row("another", vocabulary, phase)
    row.take(333)
    resumed.load_state_dict(row.state_dict())
    assert row.take(2000) == resumed.take(2000)


def test_weight_decay_is_for_the_big_matrices_only() -> None:
    model = Gosling(Shape(vocab_size=50))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, plain, double = (
        {names[id(p)] for p in group["params"]} for group in optimizer_for(model, 1e-3).param_groups
    )
    assert {"emb.weight", "head.weight", "blocks.1.ffn.value.weight"} <= decayed
    assert {"blocks.0.ln0.weight", "blocks.2.att.w1", "blocks.2.att.r_k"} <= plain
    assert double == {f"blocks.{i}.att.w0" for i in range(4)}


def test_the_rate_warms_up_and_falls_to_a_twentieth() -> None:
    whole = ((1.0, 1.0),)
    assert rate_at(whole, 0.0, 0, 1.0) == pytest.approx(0.01)
    assert rate_at(whole, 0.0, 500, 1.0) == pytest.approx(1.0)
    assert rate_at(whole, 0.5, 500, 1.0) == pytest.approx(0.525)
    assert rate_at(whole, 1.0, 500, 1.0) == pytest.approx(0.05)


def test_the_second_cosine_climbs_to_half_the_peak_and_falls() -> None:
    (first, _), (last, part) = COSINES
    width = last - first
    assert first == PHASES[-2].until and last == PHASES[-1].until == 1.0
    assert rate_at(COSINES, first - 1e-9, 5000, 1.0) == pytest.approx(0.05, abs=1e-6)
    assert rate_at(COSINES, first, 5000, 1.0) == pytest.approx(0.05 * part)
    assert rate_at(COSINES, first + width / 100, 5000, 1.0) == pytest.approx(part, rel=1e-3)
    assert rate_at(COSINES, first + width / 2, 5000, 1.0) == pytest.approx(0.525 * part)
    assert rate_at(COSINES, 1.0, 5000, 1.0) == pytest.approx(0.05 * part)


def test_every_second_row_has_the_far_dialogues(tmp_path: Path) -> None:
    trainer = Trainer(arguments(["--layers", "2", "--out", str(tmp_path)]))
    trainer.enter(len(PHASES) - 1)
    near, far = (sum(row.take(60_000)[2]) for row in trainer.rows)
    assert far <= 60_000 // PHASES[-1].longest < near


def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def trainer(out: str, *more: str) -> Trainer:
        shape = ["--smoke", "--no-compile", "--layers", "2", "--seed", "3", "--tokens", "12288"]
        return Trainer(arguments([*shape, "--out", str(tmp_path / out), *more]))

    straight = trainer("straight")
    straight.run()
    trainer("stopped", "--minutes", "0.0001").run()  # over after its first step
    resumed = trainer("stopped")
    resumed.resume()
    assert resumed.step == 1
    resumed.run()
    assert resumed.step == straight.step == 3
    for one, other in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    for one, other in zip(straight.average.parameters(), resumed.average.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.timeout(900)
@pytest.mark.training
def test_two_minutes_of_training_recall_a_fact(tmp_path: Path) -> None:
    """What CI runs: the loss falls, and a model from nothing answers small talk and recalls over a short way."""
    command = [*TRAIN, "--smoke", "--tokens", "1.2e6", "--out", str(tmp_path), "--report-s", "5"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    losses = [float(x) for x in re.findall(r"loss ([0-9.]+)", done.stdout)]
    assert losses[-1] < 0.25 * losses[0]
    model, vocabulary = load(tmp_path / "gosling.safetensors"), Vocabulary.load()
    assert score(model, vocabulary, SKILLS[0], 0, 60) > 40  # small talk
    alone = Skill("recall after 20 tokens, no other facts", None, recalled(20, (0, 0)))
    assert score(model, vocabulary, alone, 0, 100) > 15  # nobody guesses a name: without memory it is 0
