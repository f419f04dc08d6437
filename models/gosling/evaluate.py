"""Measure Gosling: python -m rookery.models.gosling.evaluate prints the table of the model card.

Every case uses held-out values and wordings. An answer counts only when every token of it, with the blank
line that closes it, is the likeliest one after the correct tokens before it: then greedy decoding writes exactly
this answer. Where a dialogue asks several questions, the earlier answers are the correct ones.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from .corpus.conversation import Dialogue, distraction
from .corpus.facts import NAME, pick_kinds
from .corpus.offdomain import off_domain
from .corpus.skills import add, copy, count, largest, reverse, sort, spell
from .corpus.smalltalk import small_talk
from .corpus.structured import echo, extract, fill, served_call, served_system, served_tools, tool_call
from .corpus.turn import Turn
from .grammar import allowed_tokens
from .model import Gosling, State, load
from .vocabulary import END_OF_TEXT, Vocabulary
from .vocabulary import FILE as VOCABULARY

WEIGHTS = Path(__file__).with_name("gosling.safetensors")
BLOCK = 512  # tokens of a forward pass
ROWS = 8


@dataclass(slots=True)
class Exam:
    """One dialogue and where the answers that count stand in it."""

    tokens: list[int]
    answers: list[slice]
    allowed: Tensor | None = None  # what a grammar allows for each token of the only answer, [its tokens, vocab_size]


Examiner = Callable[[Random, Vocabulary], Exam]


def answered(turn: Callable[[Random], Turn]) -> Examiner:
    """A question after none to two turns of something else."""

    def exam(rng: Random, vocabulary: Vocabulary) -> Exam:
        asked = turn(rng)
        dialogue = Dialogue(vocabulary)
        for _ in range(0 if asked.system else rng.randint(0, 2)):
            dialogue.say(distraction(rng, "train"))
        return Exam(dialogue.document.tokens, [dialogue.say(asked)])

    return exam


def recalled(distance: int, others: tuple[int, int]) -> Examiner:
    """Facts are told, `distance` tokens without any follow, then each is asked for once, in any order."""

    def exam(rng: Random, vocabulary: Vocabulary) -> Exam:
        kinds = pick_kinds(rng, 1 + rng.randint(*others))
        dialogue = Dialogue(vocabulary)
        facts = [(kind, kind.value(rng, "test")) for kind in kinds]
        for kind, value in facts:
            dialogue.say(kind.state(rng, "test", value))
        told = len(dialogue)
        while len(dialogue) < told + distance:
            dialogue.say(distraction(rng, "train"))
        rng.shuffle(facts)
        answers = [dialogue.say(kind.ask(rng, "test", value)) for kind, value in facts]
        return Exam(dialogue.document.tokens, answers)

    return exam


def constrained(rng: Random, vocabulary: Vocabulary) -> Exam:
    """A schema filled under its grammar, which also ends the answer: no blank line is asked for."""
    exam = answered(lambda r: fill(r, "test"))(rng, vocabulary)
    answer = slice(exam.answers[0].start, exam.answers[0].stop - 1)
    filled = json.loads(vocabulary.decode(exam.tokens[answer]))
    types = {key: "string" if isinstance(value, str) else "number" for key, value in filled.items()}
    return Exam(exam.tokens, [answer], allowed_tokens(VOCABULARY, types, exam.tokens[answer]))


def served(demanded: bool) -> Examiner:
    """A call of a tool that is listed as the server lists it."""

    def exam(rng: Random, vocabulary: Vocabulary) -> Exam:
        offers = served_tools(rng)
        dialogue = Dialogue(vocabulary, system=served_system(offers, demanded))
        answer = dialogue.say(served_call(rng, "test", offers, opened=demanded))
        return Exam(dialogue.document.tokens, [answer])

    return exam


def replaced(forget: bool) -> Examiner:
    """One of up to four facts, half of the time the name, is changed or forgotten, then asked for."""

    def exam(rng: Random, vocabulary: Vocabulary) -> Exam:
        kinds = pick_kinds(rng, rng.randint(1, 4))
        chosen = rng.choice(kinds)
        if NAME in kinds and rng.random() < 0.5:
            chosen = NAME
        dialogue = Dialogue(vocabulary)
        for kind in kinds:
            dialogue.say(kind.state(rng, "test", kind.value(rng, "test")))
        dialogue.say(distraction(rng, "train"))
        value = None if forget else chosen.value(rng, "test")
        dialogue.say(chosen.forget(rng, "test") if value is None else chosen.change(rng, "test", value))
        for _ in range(rng.randint(0, 3)):
            dialogue.say(distraction(rng, "train"))
        answer = dialogue.say(chosen.ask(rng, "test", value))
        return Exam(dialogue.document.tokens, [answer])

    return exam


@dataclass(frozen=True, slots=True)
class Skill:
    name: str
    at_least: int | None  # percent, as promised
    exam: Examiner
    share: float = 1.0  # of the cases, where a case is thousands of tokens


SKILLS = (
    Skill("small talk, unseen wordings", 92, answered(lambda r: small_talk(r, "test"))),
    Skill("recall after 100 tokens, 0 to 3 other facts", 99, recalled(100, (0, 3))),
    Skill("recall after 1,000 tokens, 0 to 3 other facts", 97, recalled(1000, (0, 3))),
    Skill("recall after 5,000 tokens, 0 to 3 other facts", 93, recalled(5000, (0, 3)), share=0.35),
    Skill("recall after 20,000 tokens, 0 to 3 other facts", 80, recalled(20000, (0, 3)), share=0.35),
    Skill("recall after 1,000 tokens, 8 other facts", 85, recalled(1000, (8, 8))),
    Skill("recall after 5,000 tokens, 8 other facts", 75, recalled(5000, (8, 8))),
    Skill("a fact changed, then asked for", 95, replaced(forget=False)),
    Skill("a fact forgotten on request, then asked for", None, replaced(forget=True)),
    Skill("copy, up to 16 characters", 99, answered(lambda r: copy(r, "test"))),
    Skill("spell, up to 16 characters", 99, answered(lambda r: spell(r, "test"))),
    Skill("reverse, up to 8 characters", None, answered(lambda r: reverse(r, "test"))),
    Skill("add two 2-digit numbers, unseen pairs", 99, answered(lambda r: add(r, "test", 10))),
    Skill("sort six numbers up to 50", 98, answered(lambda r: sort(r, "test", 6))),
    Skill("count up to nine items", None, answered(lambda r: count(r, "test"))),
    Skill("largest of up to six numbers", None, answered(lambda r: largest(r, "test"))),
    Skill("JSON echo", 97, answered(lambda r: echo(r, "test"))),
    Skill("JSON extraction", 97, answered(lambda r: extract(r, "test"))),
    Skill("JSON schema fill with the grammar on", 97, constrained),
    Skill("JSON schema fill, without a grammar", None, answered(lambda r: fill(r, "test"))),
    Skill("tool call demanded, tools listed as signatures", None, answered(lambda r: tool_call(r, "test"))),
    Skill("tool call demanded, tools listed as the server does", None, served(demanded=True)),
    Skill("tool call the model's own choice", None, served(demanded=False)),
    Skill("question about the world, honest sentence", 97, answered(lambda r: off_domain(r, "test"))),
)  # fmt: skip


@torch.inference_mode()
def right_answers(model: Gosling, papers: list[Exam]) -> list[bool]:
    """For each answer of each dialogue whether greedy decoding would write all of it."""
    tokens = torch.nn.utils.rnn.pad_sequence(
        [torch.tensor(paper.tokens) for paper in papers], batch_first=True, padding_value=END_OF_TEXT
    )
    asked = torch.zeros_like(tokens, dtype=torch.bool)
    for row, paper in enumerate(papers):
        for answer in paper.answers:
            asked[row, answer] = True
    right = torch.zeros_like(asked)
    allowed = torch.ones(
        *tokens.shape, model.shape.vocab_size if any(p.allowed is not None for p in papers) else 1
    ).bool()
    for row, paper in enumerate(papers):
        if paper.allowed is not None:
            allowed[row, paper.answers[0]] = paper.allowed
    state = State.empty(model.shape, len(papers))
    for begin in range(0, tokens.shape[1] - 1, BLOCK):
        block = tokens[:, begin : min(begin + BLOCK, tokens.shape[1] - 1)]
        x, state = model.hidden(block, torch.zeros_like(block, dtype=torch.bool), state)
        after = slice(begin + 1, begin + 1 + block.shape[1])  # what each place of the block predicts
        places = asked[:, after]
        if places.any():  # the head costs as much as two layers: only where it is needed
            logits = model.head(x[places]).masked_fill(~allowed[:, after][places], -torch.inf)
            right[:, after][places] = logits.argmax(-1) == tokens[:, after][places]
    return [bool(right[row, answer].all()) for row, paper in enumerate(papers) for answer in paper.answers]


def exams(skill: Skill, vocabulary: Vocabulary, seed: int, cases: int) -> Iterator[Exam]:
    """Dialogues until they hold so many answers."""
    rng = Random(f"{seed}/{skill.name}")
    cases = round(cases * skill.share)
    while cases > 0:
        exam = skill.exam(rng, vocabulary)
        cases -= len(exam.answers)
        yield exam


def score(model: Gosling, vocabulary: Vocabulary, skill: Skill, seed: int, cases: int) -> float:
    """Percent of answers that are right in every token."""
    papers = sorted(exams(skill, vocabulary, seed, cases), key=lambda exam: len(exam.tokens))
    results: list[bool] = []
    for i in range(0, len(papers), ROWS):
        results += right_answers(model, papers[i : i + ROWS])
    return 100 * sum(results) / len(results)


def round_to_int8(model: Gosling) -> None:
    """The loss of symmetric int8 weights: every row of the big matrices on its own scale."""
    for name, weight in model.named_parameters():
        if name.endswith(".weight") and weight.dim() == 2 and not name.startswith("emb"):
            scale = weight.data.abs().amax(dim=1, keepdim=True) / 127
            weight.data = (weight.data / scale).round() * scale


@torch.inference_mode()
def complete(model: Gosling, vocabulary: Vocabulary, prompt: str, most: int = 80) -> str:
    """Greedy continuation of a prompt up to the blank line that closes the answer."""
    pending, written = vocabulary.encode(prompt), list[int]()
    state = State.empty(model.shape, 1)
    stop = vocabulary.ids[b"\n\n"]
    while len(written) < most:
        tokens = torch.tensor([pending])
        logits, state = model(tokens, torch.zeros_like(tokens, dtype=torch.bool), state)
        token = int(logits[0, -1].argmax())
        if token in (stop, END_OF_TEXT):
            break
        written.append(token)
        pending = [token]
    return vocabulary.decode(written)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--cases", type=int, default=200, help="answers a skill and seed; 35 percent of it where the distance is long"
    )
    parser.add_argument("--only", default="", help="skills whose name has this in it")
    parser.add_argument("--int8", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    vocabulary, model = Vocabulary.load(), load(args.weights).eval()
    rounded = load(args.weights).eval()
    round_to_int8(rounded)
    print("| skill | promised % | " + " | ".join(f"seed {i}" for i in range(args.seeds)) + " | mean | int8 |")
    print("|---|---|" + "---|" * (args.seeds + 2))
    began = time.perf_counter()
    for skill in SKILLS:
        if args.only not in skill.name:
            continue
        figures = [score(model, vocabulary, skill, s, args.cases) for s in range(args.seeds)]
        mean = sum(figures) / len(figures)
        int8 = "-"
        if args.int8:
            scores = [score(rounded, vocabulary, skill, s, args.cases) for s in range(args.seeds)]
            int8 = f"{sum(scores) / len(scores):.1f}"
        cells = [skill.name, str(skill.at_least or "-"), *(f"{x:.1f}" for x in figures)]
        print("| " + " | ".join([*cells, f"**{mean:.1f}**", int8]) + " |", flush=True)
    print(f"\n{args.cases} answers a seed and skill ({round(0.35 * args.cases)} with at most three other facts after")
    print(f"5,000 and 20,000 tokens), {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
