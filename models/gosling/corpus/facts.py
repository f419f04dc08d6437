# ruff: noqa: E501 - a wording, or a list of words, stays on its line
"""Facts a user states about himself, changes, has forgotten, and asks for.

A kind of fact brings its own wordings; the answers are fixed, so that an exact match means something.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from . import values
from .turn import Turn, reply
from .values import Value
from .wording import Split, say

OPENING = (
    "[|||By the way, |Just so you know, |Please remember: |Note that |For later: |Listen, |Also, |Oh, |One thing: ]"
)
LEAD = "[|||Now, |So, |Tell me, |Quick question: |Hey, |One question: |Say, ]"
AGAIN = "[|||| again| now| please]"


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fact: templates of the user's sentences, the model's sentences with `{x}` for the value."""

    name: str
    value: Value
    says: Sequence[str]
    changes: Sequence[str]
    asks: Sequence[str]
    forgets: Sequence[str]
    answer: str
    noted: str
    changed: str
    topic: str  # as in "You have not told me your door code."

    def state(self, rng: Random, split: Split, value: str) -> Turn:
        return reply(say(rng, self.says, split, x=value), self.noted.format(x=value))

    def change(self, rng: Random, split: Split, value: str) -> Turn:
        return reply(say(rng, self.changes, split, x=value), self.changed.format(x=value))

    def ask(self, rng: Random, split: Split, value: str | None) -> Turn:
        """The question and its answer; None when the user has not told, or wants it forgotten."""
        known = self.answer.format(x=value) if value else f"You have not told me {self.topic}."
        return reply(say(rng, self.asks, split), known)

    def forget(self, rng: Random, split: Split) -> Turn:
        return reply(say(rng, self.forgets, split), f"I have forgotten {self.topic}.")


def _forgets(topic: str) -> list[str]:
    return [
        f"[|Please |Now ]forget {topic}[| again| now][.|!|, please.]",
        f"[|Please ][delete|erase] {topic}[| from your memory].",
        f"[Can|Could] you forget {topic}[|, please]?",
        f"You [should|must] forget {topic}[| now].",
        f"I want you to forget {topic}.",
    ]


def attribute(name: str, value: Value, spoken: str = "") -> Kind:
    """`my {name} is {x}`; `spoken` gives the user's names for it where there are several."""
    np = spoken or name
    return Kind(
        name=name,
        value=value,
        says=[
            f"{OPENING}my {np} is {{x}}[.|.|!|, OK?]",
            f"{OPENING}[{{x}} is my {np}|{{x}} is what my {np} is].",
            f"[|Please ][remember|note|keep in mind] that my {np} is {{x}}[|, please].",
            f"[I want you to know|You should know|I should say|Let me tell you] that my {np} is {{x}}.",
            f"My {np}: {{x}}[|.]",
            f"[|You can |Please ][save|store|remember] my {np}[:| as|, it is] {{x}}.",
        ],
        changes=[
            f"[Actually|No|No, wait|Sorry|Correction|Oh, wait], my {np} is [|now ]{{x}}.",
            f"My {np} [has changed|is new|is different now][: it is|, it is|. It is now] {{x}}[.|!]",
            f"[I have changed|I changed] my {np} to {{x}}.",
            f"[|From now on |From today ]my {np} is {{x}}[| instead| now].",
            f"[Please update|Change|Please change|Correct] my {np} to {{x}}.",
            f"I was wrong[, my|: my|. My] {np} is {{x}}.",
        ],
        asks=[
            f"{LEAD}what [is|was] my {np}{AGAIN}?",
            f"{LEAD}do you [|still |even ]remember my {np}?",
            f"[Can|Could] you [|still ][tell me|remind me of|recall|repeat] my {np}[|, please]?",
            f"[|Please |Now ]tell me my {np}[| again|, please].",
            f"{LEAD}what did I [say|tell you] my {np} [is|was]?",
            f"[Remind me|Please remind me|Help me]: what [is|was] my {np}?",
            f"I forgot my {np}[, what is it|. What was it|, can you help|. Do you know it]?",
            f"{LEAD}do you know my {np}[| by now| now]?",
            f"[And my|My] {np}[|, please| is what|, what is it]?",
        ],
        forgets=_forgets(f"my {np}"),
        answer=f"Your {name} is {{x}}.",
        noted=f"Noted, your {name} is {{x}}.",
        changed=f"Noted, your {name} is now {{x}}.",
        topic=f"your {name}",
    )


def called(who: str, a: str = "a") -> Kind:
    """`my {who} is called {x}`: pets, people, things with names. The alike kinds are the hard ones."""
    return Kind(
        name=who,
        value=values.person,
        says=[
            f"{OPENING}my {who} is [called|named] {{x}}[.|.|!]",
            f"{OPENING}my {who}'s name is {{x}}.",
            f"{OPENING}I have {a} {who} [called|named|whose name is] {{x}}.",
            f"{OPENING}the name of my {who} is {{x}}.",
            f"[|Please ][remember|note|keep in mind] that my {who} is [called|named] {{x}}.",
            f"{OPENING}{{x}} is [my {who}|the name of my {who}].",
        ],
        changes=[
            f"[Actually|No|No, wait|Sorry|Correction], my {who} is [called|named] {{x}}.",
            f"I [call|named|have renamed|renamed] my {who} {{x}}[ instead| now|].",
            f"My {who} has a new name[: {{x}}|, {{x}}|, it is {{x}}].",
            f"[|From now on |From today ]my {who} is [called|named] {{x}}[| instead| now].",
            f"I was wrong[, my|: my|. My] {who} is called {{x}}.",
        ],
        asks=[
            f"{LEAD}what is my {who} [called|named]{AGAIN}?",
            f"{LEAD}what [is|was] the name of my {who}{AGAIN}?",
            f"{LEAD}what [is|was] my {who}'s name{AGAIN}?",
            f"{LEAD}do you [|still |even ]remember [the name of my {who}|my {who}'s name|what my {who} is called]?",
            f"[Can|Could] you [tell me|remind me of|recall] [the name of my {who}|my {who}'s name]?",
            f"{LEAD}what did I [say|tell you] my {who} is called?",
            f"[|Please ]tell me [the name of my {who}|my {who}'s name][| again|, please].",
            f"I forgot [the name of my {who}|my {who}'s name][, what is it|. What was it]?",
            f"{LEAD}do you know [my {who}'s name|the name of my {who}|what my {who} is called]?",
        ],
        forgets=_forgets(f"[the name of my {who}|my {who}'s name]"),
        answer=f"Your {who} is called {{x}}.",
        noted=f"Noted, your {who} is called {{x}}.",
        changed=f"Noted, your {who} is now called {{x}}.",
        topic=f"the name of your {who}",
    )


NAME = Kind(
    name="name",
    value=values.person,
    says=[
        f"{OPENING}my name is {{x}}[.|.|!]",
        "[|Hello, |Hi, |Hey, |Hello! |Hi! |Hi there, |Good morning, |Good evening, ][I am|I'm|my name is|my name's] {x}[.|.|!]",
        "[|Hello, |Hi, |Please |You can |You may ]call me {x}[.|.|!]",
        "[People|My friends|They|Everybody|All] call me {x}.",
        "[|Hello, |Hi, ]this is {x}[| speaking| here].",
        "[|Please ][remember|note|keep in mind] that my name is {x}.",
        "[|Hello, |Hi, |Hey, ]{x} [here|is my name|is what they call me].",
        "[|Hello, |Hi, ]my name is {x}[, nice to meet you|. Nice to meet you|, what is yours|. Please remember it|, remember that].",
    ],
    changes=[
        "[|Please |No, |Actually, |Sorry, ]call me {x} [instead|from now on|now|please].",
        "[Actually|No|Sorry|No, wait|Correction], my name is [|now ]{x}.",
        "I [changed|have changed] my name to {x}.",
        "[My new name is|My name is now|From now on I am|From now on my name is] {x}.",
        "[I would like to be|I want to be|I prefer to be] called {x}[| instead| now].",
    ],
    asks=[
        f"{LEAD}what is my name{AGAIN}?",
        f"{LEAD}who am I{AGAIN}?",
        f"{LEAD}what am I called{AGAIN}?",
        f"{LEAD}do you [|still |even ][remember|know] my name?",
        f"{LEAD}do you [|still |even ][remember|know] [who I am|what I am called]?",
        "[Can|Could] you [|still ][tell me|recall|repeat|say] my name[|, please]?",
        "[|Please |Now ][say|tell me] my name[| again|, please].",
        f"{LEAD}what did I [say|tell you] my name [is|was]?",
        "[How|What] [do|should|will] you call me?",
        "I forgot my name[, what is it|. What was it|, can you help]?",
    ],
    forgets=_forgets("[my name|my name|who I am]"),
    answer="Your name is {x}.",
    noted="Nice to meet you, {x}.",
    changed="All right, I will call you {x}.",
    topic="your name",
)


def _told(name: str, value: Value, stem: str, now: str, question: str, you: str, topic: str) -> Kind:
    """Facts with a verb of their own. `stem`: "I live in {x}"; `now`: its change; `question`: "where do I live"."""
    return Kind(
        name=name,
        value=value,
        says=[
            f"{OPENING}{stem}[.|.|!]",
            f"[|Please ][remember|note|keep in mind|do not forget] that {stem}.",
            f"[I want you to know|You should know|I should say|Let me tell you] that {stem}.",
            f"[Well|You know|Yes|Now|So], {stem}[.|!]",
        ],
        changes=[
            f"[|Actually, |No, wait, |Sorry, |Correction: ]{now}[.|!]",
            f"[Things have changed|I was wrong|Something has changed][, |: |. ]{now}.",
            f"[|Please ][remember|note|keep in mind] that {now}.",
        ],
        asks=[
            f"{LEAD}{question}{AGAIN}?",
            f"[Remind me|Please remind me|Help me|I forgot|I forget]: {question}?",
            f"{LEAD}do you [|still |even ][remember|know] {topic.replace('you ', 'I ').replace('your', 'my')}?",
            f"[Can|Could] you [tell me|remind me|say] {topic.replace('you ', 'I ').replace('your', 'my')}[|, please]?",
            f"[|Please ]tell me {topic.replace('you ', 'I ').replace('your', 'my')}[| again|, please].",
        ],
        forgets=_forgets(topic.replace("you ", "I ").replace("your", "my")),
        answer=f"{you}.",
        noted=f"Noted. {you}.",
        changed=f"Noted. {you} now.",
        topic=topic,
    )


KINDS: list[Kind] = [
    NAME,
    *map(called, ["dog", "cat", "horse", "parrot", "friend", "sister", "brother", "teacher"]),
    *map(called, ["boss", "neighbour", "daughter", "son", "boat", "cousin", "rabbit"]),
    called("uncle", "an"),
    called("aunt", "an"),
    attribute("favourite colour", values.colour, "[favourite colour|favourite colour|favorite color]"),
    attribute("favourite food", values.food, "[favourite|favorite] food"),
    attribute("favourite drink", values.drink, "[favourite|favorite] drink"),
    attribute("favourite fruit", values.fruit, "[favourite|favorite] fruit"),
    attribute("favourite animal", values.animal, "[favourite|favorite] animal"),
    attribute("favourite sport", values.sport, "[favourite|favorite] sport"),
    attribute("favourite city", values.place, "[favourite|favorite] city"),
    attribute("instrument", values.instrument),
    attribute("door code", values.code),
    attribute("locker code", values.code),
    attribute("PIN", values.code, "[PIN|PIN|pin]"),
    attribute("badge number", values.code),
    attribute("room number", values.number),
    attribute("lucky number", values.number),
    attribute("house number", values.number),
    attribute("phone number", values.phone),
    attribute("password", values.password),
    attribute("birthday", values.date),
    attribute("street", values.place),
    attribute("school", values.place),
    attribute("team", values.place),
    attribute("secret word", values.word),
    attribute("user name", values.word, "[user name|username]"),
    attribute("dentist", values.person),
    _told(
        "town",
        values.place,
        "I live in {x}",
        "I [moved to|now live in] {x}",
        "[where do I live|which [town|city] do I live in]",
        "You live in {x}",
        "where you live",
    ),
    _told(
        "birth",
        values.place,
        "I was born in {x}",
        "I was really born in {x}",
        "where was I born",
        "You were born in {x}",
        "where you were born",
    ),
    _told(
        "age",
        values.age,
        "I am {x} years old",
        "I am now {x} years old",
        "[how old am I|what is my age]",
        "You are {x} years old",
        "how old you are",
    ),
    _told(
        "job",
        values.job,
        "I work as a {x}",
        "I now work as a {x}",
        "what do I [work as|do for a living]",
        "You work as a {x}",
        "what you work as",
    ),
    _told(
        "trip",
        values.place,
        "I am travelling to {x} [next week|soon]",
        "I am now travelling to {x}",
        "where am I travelling",
        "You are travelling to {x}",
        "where you are travelling",
    ),
    _told(
        "language",
        values.language,
        "I am learning {x}",
        "I am now learning {x}",
        "what am I learning",
        "You are learning {x}",
        "what you are learning",
    ),
    _told(
        "train",
        values.clock,
        "my train leaves at {x}",
        "my train now leaves at {x}",
        "when does my train leave",
        "Your train leaves at {x}",
        "when your train leaves",
    ),
    _told(
        "play",
        values.instrument,
        "I am building a {x}",
        "I am now building a {x}",
        "what am I building",
        "You are building a {x}",
        "what you are building",
    ),
]


def pick_kinds(rng: Random, count: int) -> list[Kind]:
    """Kinds without repetition; the name, the commonest fact of real chats, comes more often than others."""
    kinds = rng.sample(KINDS, min(count, len(KINDS)))
    if NAME not in kinds and kinds and rng.random() < 0.4:
        kinds[0] = NAME
    rng.shuffle(kinds)
    return kinds
