"""Whole dialogues: facts stated, changed, forgotten and asked for among other turns.

The layout is the World/G1 template, `User: ...`, blank line, `Assistant: ...`, blank line. The model learns
(has loss on) its answers, the blank line that closes them, and what follows: `User:`, or token 0 at the
end. A server may stop on any of these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

from ..vocabulary import END_OF_TEXT, Vocabulary
from .facts import NAME, pick_kinds
from .offdomain import off_domain, story
from .skills import add, any_skill, copy, count, reverse, sort, spell
from .smalltalk import small_talk
from .structured import (
    any_structured,
    extract,
    fill,
    served_call,
    served_system,
    served_tools,
    tool_call,
    tool_result,
)
from .turn import Turn
from .values import person
from .wording import Split

SYSTEMS = (
    "You are a helpful assistant.",
    "You are Gosling.",
    "Answer briefly.",
    "You are a friendly assistant. Answer in one sentence.",
    "Be kind and honest.",
    "You are a small model that remembers what it is told.",
)

EXERCISES = (add, add, add, reverse, reverse, sort, count, spell, copy, extract, extract, extract, fill, fill, fill)


@dataclass(slots=True)
class Document:
    """Tokens of one dialogue and which of them the model learns to produce; both of one length."""

    tokens: list[int] = field(default_factory=list)
    learned: list[bool] = field(default_factory=list)

    def add(self, tokens: list[int], learned: bool) -> None:
        self.tokens += tokens
        self.learned += [learned] * len(tokens)


class Dialogue:
    """A document that is written turn by turn."""

    def __init__(self, vocabulary: Vocabulary, *, begin: bool = False, system: str = "") -> None:
        self.vocabulary = vocabulary
        self.document = Document([END_OF_TEXT], [False]) if begin else Document()
        self.turns = 0
        if system:
            self.write(f"System: {system}\n\n", learned=False)

    def __len__(self) -> int:
        return len(self.document.tokens)

    def write(self, text: str, *, learned: bool) -> None:
        self.document.add(self.vocabulary.encode(text), learned)

    def say(self, turn: Turn) -> slice:
        """Write the turn; returns where its answer and the blank line after it stand."""
        if turn.system:
            self.write(f"System: {turn.system}\n\n", learned=False)
        self.write("User:", learned=self.turns > 0)
        self.write(f" {turn.user}\n\nAssistant:{turn.lead}", learned=False)
        begin = len(self)
        self.write(turn.answer + "\n\n", learned=True)
        self.turns += 1
        return slice(begin, len(self))

    def end(self) -> Document:
        self.document.add([END_OF_TEXT], learned=True)
        return self.document


def distraction(rng: Random, split: Split) -> Turn:
    """A turn that states no fact about the user."""
    kind = rng.random()
    if kind < 0.30:
        return small_talk(rng, split)
    if kind < 0.44:
        return off_domain(rng, split)
    if kind < 0.76:
        return any_skill(rng, split)
    if kind < 0.95:
        return any_structured(rng, split)
    return story(rng, split)


def _fact_count(rng: Random, length: int) -> int:
    """Few to many facts, as many as the length can hold."""
    most = max(1, length // 70)
    kind = rng.random()
    if kind < 0.35:
        count = rng.randint(0, 4)
    elif kind < 0.80:
        count = rng.randint(4, 11)
    else:
        count = rng.randint(11, 28)
    return min(count, most)


def _events(rng: Random, split: Split, length: int) -> list[tuple[float, Turn]]:
    """Turns about facts with the place, in 0 to 1, at which each comes; questions crowd at the end."""
    events: list[tuple[float, Turn]] = []
    kinds = pick_kinds(rng, _fact_count(rng, length) + 1)
    unknown = kinds.pop()
    if rng.random() < 0.3:
        events.append((rng.random(), unknown.ask(rng, split, None)))
    early = rng.choice((0.03, 0.15, 0.5))
    for kind in kinds:
        value: str | None = kind.value(rng, split)
        assert value is not None
        told = rng.random() * early
        events.append((told, kind.state(rng, split, value)))
        fate = rng.random()
        if fate < 0.25:  # changed, or forgotten, and perhaps asked for in between
            at = told + (1 - told) * rng.random() * 0.8
            if rng.random() < 0.3:
                events.append(((told + at) / 2, kind.ask(rng, split, value)))
            if fate < 0.06:
                value = None
                events.append((at, kind.forget(rng, split)))
            else:
                value = kind.value(rng, split)
                events.append((at, kind.change(rng, split, value)))
            told = at
        if rng.random() < 0.5:
            events.append((told + (1 - told) * rng.random(), kind.ask(rng, split, value)))
        if rng.random() < 0.75:
            events.append((1 + rng.random(), kind.ask(rng, split, value)))
    return sorted(events, key=lambda event: event[0])


def conversation(rng: Random, vocabulary: Vocabulary, length: int, split: Split) -> Document:
    """A dialogue of about `length` tokens."""
    begin = rng.random() < 0.5
    if rng.random() < 0.06:  # tool calls end after one answer, or go on as a chat
        dialogue = Dialogue(vocabulary, begin=begin)
        dialogue.say(tool_call(rng, split))
        if rng.random() < 0.7 or length < 250:
            return dialogue.end()
    else:
        system = rng.choice(SYSTEMS) if rng.random() < 0.15 else ""
        dialogue = Dialogue(vocabulary, begin=begin, system=system)
    if rng.random() < 0.15:
        dialogue.say(small_talk(rng, split, "greeting"))
    for place, turn in _events(rng, split, length):
        while len(dialogue) < min(place, 1.0) * length:
            dialogue.say(distraction(rng, split))
        dialogue.say(turn)
        if place > 1 and rng.random() < 0.1:
            dialogue.say(distraction(rng, split))
    while len(dialogue) < length:
        dialogue.say(distraction(rng, split))
    return dialogue.end()


def far_conversation(rng: Random, vocabulary: Vocabulary, length: int) -> Document:
    """A few facts at the beginning, other turns, and at the end a question for each: the way that memory must last."""
    dialogue = Dialogue(vocabulary, begin=rng.random() < 0.5)
    kinds = pick_kinds(rng, rng.choice((1, 2, 3, 4, 4, 6, 9)))
    facts = {kind.name: (kind, kind.value(rng, "train")) for kind in kinds}
    for kind, value in facts.values():
        dialogue.say(kind.state(rng, "train", value))
        if rng.random() < 0.2:
            dialogue.say(distraction(rng, "train"))
    between = sorted(rng.random() * length for kind in kinds if rng.random() < 0.4)
    for place in (*between, length):
        while len(dialogue) < place:
            dialogue.say(distraction(rng, "train"))
        if place < length:
            kind, value = facts[rng.choice(kinds).name]
            if rng.random() < 0.25:
                value = kind.value(rng, "train")
                facts[kind.name] = kind, value
                dialogue.say(kind.change(rng, "train", value))
            else:
                dialogue.say(kind.ask(rng, "train", value))
    asked = list(facts.values())
    rng.shuffle(asked)
    for kind, value in asked:
        dialogue.say(kind.ask(rng, "train", value))
    return dialogue.end()


def told_by_system(rng: Random, vocabulary: Vocabulary, split: Split) -> Document:
    """The user's name stands in the system turn."""
    name = person(rng, split)
    system = rng.choice(("The user's name is {x}.", "You talk to {x}.", "The user is called {x}."))
    dialogue = Dialogue(vocabulary, begin=rng.random() < 0.5, system=system.format(x=name))
    for _ in range(rng.randint(0, 4)):
        dialogue.say(distraction(rng, split))
    dialogue.say(NAME.ask(rng, split, name))
    return dialogue.end()


def drill(rng: Random, vocabulary: Vocabulary, length: int) -> Document:
    """Nothing but exercises, the hard ones most: what a chat asks too seldom to be learned exactly."""
    dialogue = Dialogue(vocabulary, begin=rng.random() < 0.5)
    while len(dialogue) < length:
        exercise = rng.choice(EXERCISES)
        dialogue.say(exercise(rng, "train"))
    return dialogue.end()


def tool_dialogue(rng: Random, vocabulary: Vocabulary) -> Document:
    """Tools offered the way the server lists them: called when they help, their results told."""
    offers = served_tools(rng)
    demanded = rng.random() < 0.4
    system = served_system(offers, demanded)
    dialogue = Dialogue(vocabulary, begin=rng.random() < 0.5, system=system)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not demanded and rng.random() < 0.35:
            dialogue.say(distraction(rng, "train"))
            continue
        opened = demanded and rng.random() < 0.7
        dialogue.say(served_call(rng, "train", offers, opened=opened))
        if rng.random() < 0.5:
            dialogue.say(tool_result(rng, "train"))
    return dialogue.end()


def corpus(
    rng: Random, vocabulary: Vocabulary, shortest: int, longest: int, drills: float = 0.0, tools: float = 0.0
) -> Iterator[Document]:
    """Training dialogues for ever, their lengths uniform in the logarithm; `drills` and `tools` are shares of them."""
    while True:
        length = int(shortest * (longest / shortest) ** rng.random())
        kind = rng.random() - 0.02
        if kind < 0:
            yield told_by_system(rng, vocabulary, "train")
        elif kind < drills:
            yield drill(rng, vocabulary, length)
        elif kind < drills + tools:
            yield tool_dialogue(rng, vocabulary)
        else:
            yield conversation(rng, vocabulary, length, "train")


def far_corpus(rng: Random, vocabulary: Vocabulary, shortest: int, longest: int) -> Iterator[Document]:
    """Long training dialogues for ever, most of them with few facts and a long way to the questions."""
    while True:
        length = int(shortest * (longest / shortest) ** rng.random())
        if rng.random() < 0.75:
            yield far_conversation(rng, vocabulary, length)
        else:
            yield conversation(rng, vocabulary, length, "train")
