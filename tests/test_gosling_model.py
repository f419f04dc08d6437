"""The shipped file: the official layout, read alike by the official package, and it remembers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors import safe_open

from rookery.models.gosling.corpus.conversation import Dialogue, distraction
from rookery.models.gosling.evaluate import WEIGHTS, Exam, complete, right_answers
from rookery.models.gosling.model import Gosling, Shape, State, load
from rookery.models.gosling.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load()


@pytest.fixture(scope="module")
def gosling() -> Gosling:
    return load(WEIGHTS).eval()


def test_the_file_is_small_and_in_the_official_layout(vocabulary: Vocabulary) -> None:
    assert WEIGHTS.stat().st_size < 6e6
    with safe_open(WEIGHTS, "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}
    vocab_size, width = shapes["emb.weight"]
    assert vocab_size == vocabulary.size
    assert shapes["head.weight"] == [vocab_size, width]
    assert shapes["blocks.0.att.x_r"] == [1, 1, width]
    assert shapes["blocks.0.att.r_k"] == [width // 64, 64]
    assert shapes["blocks.0.ffn.key.weight"] == [4 * width, width]
    assert "blocks.0.ln0.weight" in shapes and "blocks.0.att.v0" not in shapes and "blocks.1.att.v0" in shapes


def test_it_recalls_a_name_after_300_tokens_of_other_things(gosling: Gosling, vocabulary: Vocabulary) -> None:
    right = 0
    for name in ("Alice", "Mirdano", "Tokuvel", "Benazi", "Rolf"):
        rng = Random(name)
        dialogue = Dialogue(vocabulary)
        dialogue.write(f"User: My name is {name}.\n\nAssistant: Nice to meet you, {name}.\n\n", learned=False)
        while len(dialogue) < 300:
            dialogue.say(distraction(rng, "test"))
        dialogue.write("User: What is my name?\n\nAssistant:", learned=False)
        prompt = vocabulary.decode(dialogue.document.tokens)
        right += complete(gosling, vocabulary, prompt) == f" Your name is {name}."
    assert right >= 4


def test_it_answers_and_closes_its_turn(gosling: Gosling, vocabulary: Vocabulary) -> None:
    assert complete(gosling, vocabulary, "User: Who are you?\n\nAssistant:").startswith(" I am Gosling")
    text = "User: Hello!\n\nAssistant: Hello! Tell me something and I will remember it.\n\nUser:"
    tokens = vocabulary.encode(text)
    closing = slice(len(tokens) - 4, len(tokens))  # the answer's end, the blank line, `User` and `:`
    assert right_answers(gosling, [Exam(tokens, [closing])]) == [True]


@pytest.mark.parametrize("begin", [True, False])
def test_packed_documents_are_fresh_documents(begin: bool) -> None:
    """A row of two documents gives the second what it gets alone."""
    torch.manual_seed(0)
    model = Gosling(Shape(vocab_size=50))
    for parameter in model.parameters():  # the official start has zeros that would hide a mistake
        torch.nn.init.normal_(parameter, std=0.3)
    tokens = torch.randint(1, 50, (1, 60))
    if begin:
        tokens[0, 25] = 0
    starts = torch.zeros(1, 60, dtype=torch.bool)
    starts[0, 25] = True
    packed, _ = model(tokens, starts, State.empty(model.shape, 1))
    alone, _ = model(tokens[:, 25:], torch.zeros(1, 35, dtype=torch.bool), State.empty(model.shape, 1))
    torch.testing.assert_close(packed[:, 25:], alone, rtol=1e-4, atol=1e-4)


def test_the_official_package_computes_the_same(
    gosling: Gosling, vocabulary: Vocabulary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = vocabulary.encode("User: My dog is called Rex.\n\nAssistant: Noted, your dog is called Rex.\n\nUser: ok")
    torch.save(gosling.state_dict(), tmp_path / "gosling.pth")
    program = (
        "import sys, torch\nfrom rwkv.model import RWKV\n"
        "model = RWKV(model=sys.argv[1], strategy='cpu fp32')\n"
        "tokens = [int(t) for t in sys.argv[3].split(',')]\n"
        "torch.save(model.forward(tokens, None, full_output=True)[0], sys.argv[2])\n"
    )
    # Its own process: the package reads these switches when it is imported.
    environment = os.environ | {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    answer = tmp_path / "logits.pt"
    arguments = [str(tmp_path / "gosling"), str(answer), ",".join(map(str, tokens))]
    subprocess.run([sys.executable, "-c", program, *arguments], env=environment, check=True, capture_output=True)
    batch = torch.tensor([tokens])
    with torch.inference_mode():
        logits, _ = gosling(batch, torch.zeros_like(batch, dtype=torch.bool), State.empty(gosling.shape, 1))
    torch.testing.assert_close(logits[0], torch.load(answer, weights_only=True), rtol=0, atol=1e-3)
