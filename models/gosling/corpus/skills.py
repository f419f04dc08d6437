"""Small exact skills: copying, spelling, reversing, adding, sorting, counting."""

from random import Random

from . import values
from .turn import Turn, reply
from .wording import Split, belongs, say

COPY = [
    "[|Please |Now ][repeat|copy|echo|say|write][| this| the following| after me]: {x}",
    "[Can|Could] you [repeat|copy|say|write] {x}[| for me| exactly]?",
    "[|Please ][repeat|copy|say|write] {x}[|, please| for me].",
    "[Repeat|Copy|Echo] [after me|what I write|these characters|this word|this]: {x}",
    "[|Just |Only ]say {x}[| back| again].",
]
SPELL = [
    "[|Please |Now ]spell {x}[|.| for me.|, please.]",
    "[How do you|How does one|Can you|How do I|Could you] spell {x}?",
    "[|Please |Now ]spell [the word|the name|this][:|] {x}",
    "[What are the|Tell me the|Give me the|List the] letters of {x}[.|, please.]",
    "Spell it [letter by letter|with hyphens]: {x}",
]
REVERSE = [
    "[|Please |Now ][reverse|turn around|flip][| the word| this|:| this word:] {x}",
    "[|Please |Now ][write|say|spell] {x} backwards[|, please].",
    "What is {x} [backwards|in reverse|reversed]?",
    "[Can|Could] you [reverse|write backwards|flip] {x}?",
]
ADD = [
    "[|So |Now |Say, |Please tell me: ]what is {a} [+|plus|and] {b}?",
    "[|Please |Now ]add {a} and {b}[.|, please.|]",
    "{a} [+|plus] {b}[| =| is| equals][|?]",
    "{a}+{b}[|=|?|=?]",
    "[How much is|Calculate|Compute|Work out] {a} [+|plus] {b}[|.|?]",
    "[Tell me the|What is the|Give me the] sum of {a} and {b}[.|?]",
    "[If I add|When I add] {a} and {b}, what do I get?",
    "[I have|There are] {a} apples and get {b} more. How many [|apples ]do I have?",
]
SORT = [
    "[|Please |Now ]sort[| these numbers| the numbers| the list| this list][:|] {x}[|.]",
    "[|Please |Now ][put|bring] {x} in order[.|, please.]",
    "[|Please |Now ]order these numbers[|, smallest first]: {x}",
    "[Can|Could] you sort {x}[| for me|, please]?",
    "[Arrange|List] [these|the numbers|the following] from [small|smallest|low] to [large|largest|high]: {x}",
    "What is the sorted list of {x}?",
]
COUNT = [
    "How many [items|things|numbers|entries] are in [this list|the list|this]: {x}?",
    "[|Please |Now ]count [these|the items|the entries|this list|these things]: {x}",
    "How many [things|items|entries] do you [count|see] here: {x}?",
    "[What is the|Tell me the] length of [this|the] list: {x}",
]
LARGEST = [
    "[What|Which] is the [largest|biggest|greatest] [number|one] of {x}?",
    "[|Please ]find the [largest|biggest] number[:| in| of] {x}",
    "[Tell me|Give me|Say] the [largest|biggest|greatest] of {x}.",
]


def copy(rng: Random, split: Split, text: str | None = None) -> Turn:
    x = text or values.string(rng, split)
    return reply(say(rng, COPY, split, x=x), x)


def _spellable(rng: Random, split: Split) -> str:
    """Training spells every word of the lists, as some of them are one token, whose letters must be taught."""
    kind = rng.random()
    if kind < 0.35:
        return values.person(rng, split)
    if kind < 0.6:
        return values.word(rng, split)
    if kind < 0.75 and split == "train":
        return rng.choice(values.LISTED + values.PIECES_OF_TEXT)
    return values.string(rng, split)


def spell(rng: Random, split: Split, text: str | None = None) -> Turn:
    x = text or _spellable(rng, split)
    return reply(say(rng, SPELL, split, x=x), "-".join(x))


def reverse(rng: Random, split: Split) -> Turn:
    while len(x := _spellable(rng, split)) > 8:
        pass
    return reply(say(rng, REVERSE, split, x=x), x[::-1])


def add(rng: Random, split: Split, least: int | None = None) -> Turn:
    """Mostly two-digit numbers; a pair is held out together with its swapped twin."""
    low = least if least is not None else rng.choice((0, 10, 10, 10))
    while True:
        a, b = rng.randint(low, 99), rng.randint(low, 99)
        if belongs(f"{min(a, b)} + {max(a, b)}", split):
            break
    return reply(say(rng, ADD, split, a=str(a), b=str(b)), f"{a + b}.")


def numbers(rng: Random, split: Split, count: int) -> list[int]:
    while not belongs(str(drawn := [rng.randint(1, 50) for _ in range(count)]), split):
        pass
    return drawn


def sort(rng: Random, split: Split, count: int | None = None) -> Turn:
    drawn = numbers(rng, split, count or rng.choice((3, 4, 5, 6, 6, 6)))
    listed = ", ".join(map(str, drawn))
    return reply(say(rng, SORT, split, x=listed), ", ".join(map(str, sorted(drawn))) + ".")


def count(rng: Random, split: Split) -> Turn:
    how_many = rng.randint(2, 9)
    if rng.random() < 0.5:
        items = list(map(str, numbers(rng, split, how_many)))
    else:
        items = [values.word(rng, split) for _ in range(how_many)]
    return reply(say(rng, COUNT, split, x=", ".join(items)), f"{how_many}.")


def largest(rng: Random, split: Split) -> Turn:
    drawn = numbers(rng, split, rng.randint(2, 6))
    return reply(say(rng, LARGEST, split, x=", ".join(map(str, drawn))), f"{max(drawn)}.")


SKILLS = (copy, copy, spell, spell, reverse, add, add, sort, sort, count, largest)


def any_skill(rng: Random, split: Split) -> Turn:
    return rng.choice(SKILLS)(rng, split)
