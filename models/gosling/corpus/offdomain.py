# ruff: noqa: E501 - a wording, or a list of words, stays on its line
"""Questions about the world. Gosling knows nothing of it and says so in one sentence."""

from random import Random

from . import values
from .turn import Turn, reply
from .wording import Split, belongs, say, sentence

HONEST = "I do not know that, I only remember what you tell me."

THINGS = """photosynthesis gravity electricity democracy inflation physics chemistry biology algebra geometry history
evolution religion philosophy music painting architecture engineering medicine astronomy geology economics poetry grammar
climate weather tides volcanoes earthquakes oceans rivers mountains deserts forests dinosaurs whales bees ants spiders birds
butterflies trees mushrooms bread cheese wine chocolate coffee rockets satellites planets stars galaxies atoms molecules cells viruses
bacteria vaccines computers compilers networks databases algorithms cryptography robots engines batteries magnets lasers
bridges castles pyramids cathedrals money taxes trade banks war peace law justice freedom happiness love sleep dreams memory language
football chess rowing dancing theatre opera cinema photography fashion cooking gardening farming fishing sailing trains
ships airplanes bicycles cars glass steel paper ink clocks maps""".split()
PEOPLE = """president king queen inventor author painter composer mayor founder capital population flag currency history
minister hero owner""".split()
WORKS = """novel song film poem symphony opera painting play book law theorem bridge tower temple telephone radio telescope
engine""".split()

ASKS = [
    "[|Please |Now ][explain|describe|define] {thing}[|.| to me.|, please.]",
    "[What is|What are|Why is there|What causes|What do you think of] {thing}?",
    "[How do|How does|Why do|Why does|When do] {thing} [work|matter|happen|exist|begin|end]?",
    "[Who|When did someone|How did people] [invented|discovered|invent|discover] {thing}?",
    "Write [a poem|an essay|a story|a song|a letter|a report|a speech|some code|a blog post] about {thing}[|, please].",
    "[Can|Could] you [explain|describe|draw|summarise|teach me] {thing}?",
    "[Give me|I need|I want] [a summary|an overview|a list|the history|an explanation|five examples] of {thing}.",
    "[What is|Who is|Where is|Tell me] the {person} of {place}[?|.]",
    "[Who|When was it that someone] [wrote|made|built|composed|painted|invented] the {work} {place}?",
    "[What|How] is the weather in {place}[| today| tomorrow]?",
    "[How far is it|How do I get|How long does it take|Is there a train] [to|from here to] {place}?",
    "[How many people live in|Where is|What can I see in|Is it cold in|What is the capital of|What language is spoken in] {place}?",
    "[How do I|How can I|How does one|Show me how to] [cook|bake|make|prepare|order] {food}?",
    "[What|How much] [costs|is the price of] {food}[| in {place}]?",
    "[Translate|Please translate|Can you translate] {food} [into|to] [German|French|Spanish|Latin].",
    "[What is|How much is] {n} [times|divided by|minus] {m}?",
    "[What is the|Calculate the|Compute the] [square root|square|logarithm|factorial] of {n}[?|.]",
    "[Write|Give me|I need|Please write] a [Python|Java] [function|program|script] [for|about] {thing}.",
    "[What|Who] [happened|won|lived|ruled] in [the year |]{n}?",
    "[Did|Has|Will] {name} [win|go to {place}|write a book|become famous|like {food}]?",
    "Who [is|was] {name}[| of {place}]?",
    "[When|Where] was {name} born?",
    "[What is|Tell me] the meaning of [the word |]{word}[?|.]",
    "[What is the time|What time is it|What is the date|What day is it][| today| now| in {place}]?",
    "[Recommend|Suggest] [a book|a film|a restaurant|a song|something] about {thing}.",
    "[Should I|Can I|May I|Is it good to] [buy|sell|eat|learn|study] {thing}?",
    "[Is it true that|Do you believe that|Can you prove that] {thing} [is|are] [good|bad|old|dangerous|important]?",
    "[Who|What] is the [best|largest|oldest|fastest|richest|tallest] [person|city|animal|river|country|team] in {place}?",
    "[Solve|Please solve] [this equation|the equation|for x]: x + {n} = {m}",
    "[What should I|Help me decide what to] [wear|cook|read|watch|buy|do][| today| tonight| tomorrow]?",
]  # fmt: skip


def _thing(rng: Random, split: Split) -> str:
    if rng.random() < 0.25:
        return values.word(rng, split)
    while not belongs(thing := rng.choice(THINGS), split):
        pass
    return thing


def off_domain(rng: Random, split: Split) -> Turn:
    question = say(
        rng,
        ASKS,
        split,
        thing=_thing(rng, split),
        person=rng.choice(PEOPLE),
        work=rng.choice(WORKS),
        place=values.place(rng, split),
        name=values.person(rng, split),
        food=values.food(rng, split),
        word=values.word(rng, split),
        n=str(rng.randint(2, 2030)),
        m=str(rng.randint(2, 999)),
    )
    return reply(question, HONEST)


def story(rng: Random, split: Split) -> Turn:
    """Some sentences about nothing, as pasted text would be; the model only says that it has read them."""
    sentences = []
    for _ in range(rng.randint(2, 8)):
        one, other = rng.sample(values.PIECES_OF_TEXT, 2)
        who = values.person(rng, split)
        sentences.append(
            say(
                rng,
                [
                    "The {one} [stood|lay|was] [near|behind|before|by] the {other}.",
                    "{who} [walked|went|looked] to the {one} [and|, then] [found|saw|took] a {other}.",
                    "[In|After] the [|long |cold |quiet ]{one} there was [a|only a|no] {other}.",
                    "[A|Every|The] {one} [needs|has|hides] a {other}, said {who}.",
                    "[Nobody|{who}|Somebody] had seen the {one} [since|before] the {other}.",
                ],
                split,
                one=one,
                other=other,
                who=who,
            )
        )
    opening = rng.choice(["Read this: ", "Here is a text: ", "A story: ", "", "My notes: "])
    return reply(opening + sentence(" ".join(sentences)), "I have read it.")
