"""The dialogues Gosling learns from: the same for a seed, and never what the evaluation asks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random

import pytest

from rookery.models.gosling.corpus import facts, skills, smalltalk, structured, values, wording
from rookery.models.gosling.corpus.conversation import Dialogue, conversation, corpus, far_conversation, far_corpus
from rookery.models.gosling.corpus.turn import Turn
from rookery.models.gosling.corpus.wording import Split
from rookery.models.gosling.vocabulary import END_OF_TEXT, Vocabulary
from rookery.server.text.tools import DIALECTS, Tool


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary.load()


def test_a_seed_gives_the_same_documents(vocabulary: Vocabulary) -> None:
    one, two, other = (corpus(Random(seed), vocabulary, 60, 900) for seed in (1, 1, 2))
    first = [next(one).tokens for _ in range(20)]
    assert first == [next(two).tokens for _ in range(20)]
    assert first != [next(other).tokens for _ in range(20)]


@pytest.mark.parametrize(
    "value",
    [
        *(values.person, values.place, values.word, values.colour, values.animal, values.language),
        *(values.code, values.age, values.date, values.password, values.string),
    ],
)
def test_values_of_the_two_splits_are_disjoint(value: values.Value) -> None:
    rng = Random(0)
    trained = {value(rng, "train") for _ in range(2000)}
    tested = {value(rng, "test") for _ in range(300)}
    assert len(tested) > 3
    assert not trained & tested


def test_mixed_words_hold_no_part_of_a_held_out_word() -> None:
    listed = [word for word in values.LISTED if wording.held_out(word)]
    assert listed and not set(listed) & set(values.MIXABLE)
    assert not any(wording.held_out(form) for word in values.MIXABLE for form in (word, word.capitalize()))


def test_mixed_words_begin_with_other_pieces_after_a_blank_than_after_a_quotation_mark(vocabulary: Vocabulary) -> None:
    rng = Random(0)
    drawn = [values.mixed(rng) for _ in range(2000)]
    assert all(2 <= len(word) <= 12 and word.isalpha() and word.islower() for word in drawn)
    blank = vocabulary.ids[b" "]

    def differs(word: str) -> bool:
        return vocabulary.encode(" " + word) != [blank, *vocabulary.encode(word)]

    assert sum(map(differs, drawn)) > 300


def test_wordings_of_the_two_splits_are_disjoint() -> None:
    rng = Random(0)
    for intent in smalltalk.INTENTS.values():
        trained = {wording.choose(rng, intent.asks, "train") for _ in range(500)}
        tested = {wording.choose(rng, intent.asks, "test") for _ in range(50)}
        assert tested and not trained & tested


def test_every_kind_of_fact_has_held_out_wordings() -> None:
    rng = Random(0)
    for kind in facts.KINDS:
        for templates in (kind.says, kind.changes, kind.asks, kind.forgets):
            assert wording.held_out(wording.choose(rng, templates, "test"))


def test_a_pair_of_summands_is_held_out_with_its_twin() -> None:
    def pairs(split: Split) -> set[tuple[int, ...]]:
        rng = Random(0)
        found = set()
        for _ in range(1000):
            turn = skills.add(rng, split, 10)
            numbers = [int(n) for n in "".join(c if c.isdigit() else " " for c in turn.user).split()]
            assert turn.answer == f" {sum(numbers)}."
            found.add(tuple(sorted(numbers)))
        return found

    assert not pairs("train") & pairs("test")


@pytest.mark.parametrize("skill", [skills.copy, skills.spell, skills.reverse, skills.sort, skills.count])
def test_skills_answer_for_both_splits(skill: Callable[[Random, Split], Turn]) -> None:
    rng = Random(0)
    for split in ("train", "test"):
        turn = skill(rng, split)
        assert turn.answer.startswith(" ") and "\n\n" not in turn.user + turn.answer


def test_json_answers_are_compact_json_of_what_was_said() -> None:
    rng = Random(0)
    for skill in (structured.echo, structured.extract, structured.fill) * 20:
        turn = skill(rng, "test")
        parsed = json.loads(turn.answer)
        assert turn.answer == " " + structured.dumps(parsed)
        assert all(str(value) in turn.user for value in (parsed.values() if isinstance(parsed, dict) else parsed))


@pytest.mark.parametrize("opened", [True, False])
def test_a_tool_call_names_an_offered_tool_and_its_arguments(opened: bool) -> None:
    rng = Random(0)
    for _ in range(40):
        offers = structured.served_tools(rng)
        turn = structured.served_call(rng, "test", offers, opened=opened)
        assert (turn.lead + turn.answer).startswith(" ```json\n") and turn.answer.endswith("\n```")
        call = json.loads((turn.lead + turn.answer).removeprefix(" ```json\n").removesuffix("\n```"))
        names = {offer.tool.name: set(offer.names) for offer in offers}
        assert names[call["name"]] == set(call["arguments"])
        listed = structured.served_system(offers, True).removeprefix("Tools:\n").rsplit("\n", 1)[0]
        assert [tool["name"] for tool in json.loads(listed)] == list(names)


@pytest.mark.parametrize("demanded", [True, False])
def test_tools_are_listed_as_the_server_lists_them(demanded: bool) -> None:
    offers = structured.served_tools(Random(1))
    tools = []
    for offer in offers:
        listed = json.loads(offer.listed())
        tools.append(Tool(listed["name"], listed["description"], {"properties": listed["arguments"]}))
    assert DIALECTS["g1"].describe(tools, demanded) == structured.served_system(offers, demanded)


def test_a_document_learns_the_answers_and_what_ends_them(vocabulary: Vocabulary) -> None:
    dialogue = Dialogue(vocabulary)
    dialogue.say(Turn("Hi.", " Hello!"))
    dialogue.say(Turn("Bye.", " Goodbye!"))
    document = dialogue.end()
    assert vocabulary.decode(document.tokens) == (
        "User: Hi.\n\nAssistant: Hello!\n\nUser: Bye.\n\nAssistant: Goodbye!\n\n"
    )
    learned = [token for token, own in zip(document.tokens, document.learned, strict=True) if own]
    assert vocabulary.decode(learned) == " Hello!\n\nUser: Goodbye!\n\n"
    assert learned[-1] == END_OF_TEXT


def test_far_dialogues_ask_at_the_end_for_what_was_told_first(vocabulary: Vocabulary) -> None:
    rng = Random(5)
    for _ in range(10):
        text = vocabulary.decode(far_conversation(rng, vocabulary, 3000).tokens)
        turns = text.split("\n\nUser: ")
        first = turns[0].split("Assistant: ")[1]
        about = next(k for k in facts.KINDS if re.fullmatch(re.escape(k.noted).replace(r"\{x\}", ".+"), first))
        asked = [i for i, turn in enumerate(turns) if about.answer.split("{x}")[0] in turn.split("Assistant: ")[1]]
        assert asked and max(asked) >= len(turns) - 9


def test_far_dialogues_reach_the_length_asked_for(vocabulary: Vocabulary) -> None:
    documents = far_corpus(Random(1), vocabulary, 2500, 24000)
    lengths = [len(next(documents).tokens) for _ in range(12)]
    assert sorted(lengths)[2] >= 2500 and max(lengths) > 12000  # a tool call may end its dialogue at once


def test_a_document_is_about_as_long_as_asked(vocabulary: Vocabulary) -> None:
    rng = Random(3)
    lengths = [len(conversation(rng, vocabulary, 3000, "train").tokens) for _ in range(20)]
    assert sorted(lengths)[10] >= 3000
    assert max(lengths) < 4500
