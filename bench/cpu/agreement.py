"""Whether llama.cpp, given our GGUF in float32, computes what Rookery computes: else the comparison is void."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .child import Child
from .entries import Peers
from .files import Files

PROMPT_TOKENS, GREEDY_TOKENS = 64, 32
TOLERANCE = 1e-2
"""Of the largest difference between logits, in standard deviations of the logits: sums of float32 in another order."""


def agreement(files: Files, peers: Peers, interpreter: str, threads: int) -> dict[str, Any]:
    """Logits of one random prompt and its greedy continuation, by both engines.

    Raises:
        PeerFailed: one of them could not run.
    """
    assert peers.python is not None
    numbers = random.Random(7)
    prompt = [numbers.randrange(1, 60000) for _ in range(PROMPT_TOKENS)]
    told = {}
    sides = {
        "rookery": (interpreter, "rookery", "safetensors", "float32"),
        "llama": (peers.python, "llama", "f32", "f32"),
    }
    for side, (python, engine, file, kept) in sides.items():
        settings = {"path": str(files.path(file)), "kept": kept, "threads": threads, "streams": 1}
        with tempfile.TemporaryDirectory() as folder, Child(python, engine, settings) as child:
            array = Path(folder) / "logits.npy"
            child.ask("logits", token_ids=prompt, file=str(array))
            drawn = child.ask("greedy", token_ids=prompt, count=GREEDY_TOKENS)["token_ids"]
            told[side] = (np.load(array), drawn)
    files.drop("f32")
    (ours, our_tokens), (theirs, their_tokens) = told["rookery"], told["llama"]
    difference = float(np.abs(ours - theirs).max() / ours.std())
    same = sum(1 for a, b in zip(our_tokens, their_tokens, strict=True) if a == b)
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "largest_logit_difference_in_deviations": difference,
        "same_greedy_tokens": f"{same} of {GREEDY_TOKENS}",
        "agrees": difference < TOLERANCE and our_tokens == their_tokens,
    }
