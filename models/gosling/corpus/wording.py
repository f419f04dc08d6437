"""Wordings: one template stands for many sentences, and a hash decides which are held out.

A template writes alternatives in brackets, `[hi|hello][ there|]`, and slots in braces, `{x}`.
What the hash of an expanded wording (before its slots are filled) puts into the tenth part that is held out
is never trained; the evaluation uses nothing else. The words of a held-out wording do occur in
training, in other sentences: a model of this size cannot know a synonym it has never met.
"""

import re
from collections.abc import Sequence
from random import Random
from typing import Literal
from zlib import crc32

Split = Literal["train", "test"]

ALTERNATIVES = re.compile(r"\[([^\[\]]*)\]")
HELD_OUT_SHARE = 10  # one in ten


def held_out(text: str) -> bool:
    """Whether this wording, name or number belongs to the evaluation alone."""
    return crc32(text.encode()) % HELD_OUT_SHARE == 0


def belongs(text: str, split: Split) -> bool:
    return held_out(text) == (split == "test")


def expand(rng: Random, template: str) -> str:
    """Choose one of each `[a|b]`, innermost first."""
    while "[" in template:
        template = ALTERNATIVES.sub(lambda m: rng.choice(m.group(1).split("|")), template)
    return template


def sentence(text: str) -> str:
    """Begin with a capital, as a template may follow a prefix or stand alone."""
    return text[:1].upper() + text[1:]


def choose(rng: Random, templates: Sequence[str], split: Split) -> str:
    """One wording of this split; its slots are not filled yet."""
    for _ in range(2000):
        text = sentence(expand(rng, rng.choice(templates)))
        if belongs(text, split):
            return text
    raise ValueError(f"no {split} wording among the expansions of {templates[0]!r}")


def roughen(rng: Random, wording: str, *, drop_word: bool = False) -> str:
    """What hurried people do to a sentence: lower case, no or other end mark, a missing word.

    Used in training only, and before slots are filled, so that values keep their spelling.
    """
    if rng.random() < 0.12:
        wording = wording[:1].lower() + wording[1:]
    if rng.random() < 0.06 and "{" not in wording:
        wording = wording.lower()
    if rng.random() < 0.15 and wording[-1] in ".!?":
        wording = wording[:-1] + rng.choice(["", "", "!", ".", "..."])
    words = wording.split(" ")
    if drop_word and len(words) > 3 and rng.random() < 0.10:
        del words[rng.randrange(len(words))]
        wording = " ".join(words)
    if rng.random() < 0.05:
        wording = rng.choice(["Please: ", "Hey. ", "OK. ", "Well, ", "Hm. ", "Hi! "]) + wording
    return wording


def say(rng: Random, templates: Sequence[str], split: Split, **slots: str) -> str:
    """A wording of this split with its slots filled, roughened in training."""
    text = choose(rng, templates, split)
    if split == "train":
        text = roughen(rng, text)
    return text.format(**slots)
