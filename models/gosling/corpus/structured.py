# ruff: noqa: E501 - a wording, or a list of words, stays on its line
"""JSON: echo, fill a given schema, extract fields, call a tool in the G1 dialect. Always compact JSON."""

import json
from dataclasses import dataclass
from random import Random

from . import values
from .turn import Turn, reply
from .values import Value
from .wording import Split, choose, roughen, say

FIELDS: dict[str, Value] = {
    "name": values.person,
    "city": values.place,
    "age": values.age,
    "colour": values.colour,
    "food": values.food,
    "animal": values.animal,
    "job": values.job,
    "code": values.code,
    "date": values.date,
    "drink": values.drink,
    "team": values.place,
    "count": values.number,
    "friend": values.person,
    "sport": values.sport,
}
NUMBERS = {"age", "code", "count"}

ECHO = [
    "[|Please |Now ][repeat|echo|copy|return|print][| this| the| exactly this] JSON[:|] {x}",
    "[Repeat|Echo|Copy|Return|Print] [exactly|only|just]: {x}",
    "[Give me|Send me|Say] this JSON [back|again]: {x}",
    "{x} [Repeat that JSON|Say that JSON again|Copy this JSON].",
]
EXTRACT = [
    "[|Please |Now ]extract [|the ]{keys} as JSON[:| from:| from this:] {text}",
    "[Extract|Find|Get|Take] [|the ]{keys} [from|in] [this|the] text [as|in] JSON: {text}",
    "{text} [Extract|Give me|Return|Write] [|the ]{keys} as JSON.",
    "[Write|Return|Give me] JSON with {keys}[:| for:| from:] {text}",
    "[Which|What] {keys}? [Answer in JSON|JSON only|Reply as JSON]: {text}",
]
FILL = [
    "[|Please |Now ]fill [|in ]this schema[:|] {schema} [with|from][:|] {text}",
    "[Use|Follow] this schema: {schema} [Text|Data|Input]: {text}",
    "{text} [Fill|Complete|Answer with|Use] [|the |this ]schema[:|] {schema}",
    "[Answer|Reply|Respond] [with|in] JSON [of the form|like|that matches][:|] {schema} {text}",
    "Schema: {schema} [Text|Data|Input]: {text}",
]
SENTENCES = {
    "name": ["[the person|this person|the guest] is [called|named] {x}", "the name is {x}", "it is about {x}"],
    "city": ["[lives|is living|is] in {x}", "the city is {x}", "the place is {x}"],
    "age": ["is {x} years old", "the age is {x}", "aged {x}"],
    "colour": ["likes the colour {x}", "the colour is {x}", "wears {x}"],
    "food": ["likes to eat {x}", "the food is {x}", "eats {x}"],
    "animal": ["has a {x}", "the animal is a {x}", "owns a {x}"],
    "job": ["works as a {x}", "the job is {x}", "is a {x} by trade"],
    "code": ["the code is {x}", "has the code {x}", "uses code {x}"],
    "date": ["comes on {x}", "the date is {x}", "arrives on {x}"],
    "drink": ["drinks {x}", "the drink is {x}", "wants {x} to drink"],
    "team": ["plays for {x}", "the team is {x}", "is in the team {x}"],
    "count": ["orders {x} of them", "the count is {x}", "needs {x} pieces"],
    "friend": ["has a friend called {x}", "the friend is {x}", "is a friend of {x}"],
    "sport": ["likes {x} as a sport", "the sport is {x}", "does {x}"],
}  # fmt: skip

Record = dict[str, str | int]


def dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def record(rng: Random, split: Split, count: int) -> Record:
    drawn: Record = {}
    for key in rng.sample(list(FIELDS), count):
        text = FIELDS[key](rng, split)
        drawn[key] = int(text) if key in NUMBERS else text
    return drawn


def described(rng: Random, split: Split, facts: Record) -> str:
    """The record in words, in another order."""
    keys = list(facts)
    rng.shuffle(keys)
    clauses = [choose(rng, SENTENCES[key], "train").format(x=facts[key]) for key in keys]
    if rng.random() < 0.5:
        return ", ".join(clauses) + "."
    clauses = [c[:1].upper() + c[1:] for c in clauses]
    return ". ".join(clauses) + "."


def listed(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]


def echo(rng: Random, split: Split) -> Turn:
    x: object = record(rng, split, rng.randint(1, 4))
    kind = rng.random()
    if kind < 0.15:
        x = [values.number(rng, split) for _ in range(rng.randint(1, 5))]
    elif kind < 0.3:
        x = [values.word(rng, split) for _ in range(rng.randint(1, 5))]
    elif kind < 0.4:
        x = {values.word(rng, split): values.word(rng, split) for _ in range(rng.randint(1, 3))}
    return reply(say(rng, ECHO, split, x=dumps(x)), dumps(x))


def extract(rng: Random, split: Split) -> Turn:
    """Some of the fields that the text has, in the order asked for."""
    facts = record(rng, split, rng.randint(1, 4))
    wanted = rng.sample(list(facts), rng.randint(1, len(facts)))
    text = described(rng, split, facts)
    question = say(rng, EXTRACT, split, keys=listed(wanted), text=text)
    return reply(question, dumps({key: facts[key] for key in wanted}))


def fill(rng: Random, split: Split) -> Turn:
    """All fields of a schema, in its order."""
    facts = record(rng, split, rng.randint(1, 4))
    types = {key: "number" if key in NUMBERS else "string" for key in facts}
    question = say(rng, FILL, split, schema=dumps(types), text=described(rng, split, facts))
    return reply(question, dumps(facts))


@dataclass(frozen=True, slots=True)
class Tool:
    name: str
    arguments: tuple[tuple[str, Value], ...]
    asks: tuple[str, ...]

    def signature(self) -> str:
        types = (f"{a}: {'number' if v is values.number else 'string'}" for a, v in self.arguments)
        return f"- {self.name}({', '.join(types)})"


TOOLS = (
    Tool("get_weather", (("city", values.place),),
         ("[what|how] is the weather in {city}?", "[will it rain|is it cold|is it warm] in {city}?", "weather in {city}[|, please]")),
    Tool("send_mail", (("to", values.person), ("text", values.word)),
         ("[send|write] [|a mail to ]{to} [the word|saying] {text}", "mail {text} to {to}[|, please]", "tell {to} by mail: {text}")),
    Tool("set_alarm", (("time", values.clock),),
         ("wake me at {time}[|, please]", "set [an|the] alarm [for|at] {time}", "[I must|I have to] get up at {time}")),
    Tool("play_song", (("title", values.word),),
         ("play [|the song ]{title}[|, please]", "[I want|I would like] to hear {title}", "put on {title}")),
    Tool("find_train", (("start", values.place), ("goal", values.place)),
         ("[find a|is there a|I need a] train from {start} to {goal}", "how do I get from {start} to {goal} by train?")),
    Tool("order_food", (("dish", values.food), ("count", values.number)),
         ("order {count} [times|portions of] {dish}", "[I want|we want|bring us] {count} {dish}[|, please]")),
    Tool("call_person", (("name", values.person),),
         ("[call|phone|ring] {name}[|, please| now]", "[I want|I need] to [speak|talk] to {name} on the phone")),
    Tool("add_note", (("text", values.word),),
         ("[write down|note down|make a note]: {text}", "add a note saying {text}")),
    Tool("book_room", (("name", values.person), ("date", values.date)),
         ("book a room for {name} on {date}", "[I need|please get me] a room on {date} in the name of {name}")),
    Tool("translate", (("word", values.word), ("language", values.language)),
         ("[translate|what is] {word} [to|in] {language}", "say {word} in {language}")),
)  # fmt: skip


def tool_call(rng: Random, split: Split) -> Turn:
    """The prompt ends with an open code fence; the answer is the call and the closing fence."""
    offered = rng.sample(TOOLS, rng.randint(1, 4))
    tool = rng.choice(offered)
    slots = {argument: value(rng, split) for argument, value in tool.arguments}
    arguments = {a: int(slots[a]) if v is values.number else slots[a] for a, v in tool.arguments}
    # Few wordings a tool: all are trained, their values are not.
    wording = choose(rng, tool.asks, "train")
    wording = roughen(rng, wording) if split == "train" else wording
    system = "\n".join(["Tools:", *(t.signature() for t in offered)])
    call = dumps({"name": tool.name, "arguments": arguments})
    return Turn(
        user=wording.format(**slots),
        lead=" ```json",
        answer=f"\n{call}\n```",
        system=system + "\nReturn only a JSON function call.",
    )


ALIASES = {
    "city": ("city", "location", "place"),
    "text": ("text", "message", "content"),
    "time": ("time", "at"),
    "date": ("date", "day"),
    "name": ("name", "person"),
    "count": ("count", "quantity", "number"),
}
DESCRIPTIONS = ("", "", "A tool.", "Use it when asked.", "Does what its name says.", "One of the tools at hand.")


@dataclass(frozen=True, slots=True)
class Offer:
    """A tool as a client describes it: its own names for the arguments, with or without a description."""

    tool: Tool
    names: tuple[str, ...]
    description: str

    @classmethod
    def draw(cls, rng: Random, tool: Tool) -> "Offer":
        names = tuple(rng.choice(ALIASES.get(a, (a,))) for a, _ in tool.arguments)
        return cls(tool, names, rng.choice(DESCRIPTIONS))

    def listed(self) -> str:
        arguments = {
            name: {"type": "integer" if value is values.number else "string"}
            for name, (_, value) in zip(self.names, self.tool.arguments, strict=True)
        }
        return dumps({"name": self.tool.name, "description": self.description, "arguments": arguments})

    def asked(self, rng: Random, split: Split) -> tuple[str, str]:
        """A request that needs the tool, and the call."""
        slots = {argument: value(rng, split) for argument, value in self.tool.arguments}
        arguments = {
            name: int(slots[a]) if value is values.number else slots[a]
            for name, (a, value) in zip(self.names, self.tool.arguments, strict=True)
        }
        wording = choose(rng, self.tool.asks, "train")
        wording = roughen(rng, wording) if split == "train" else wording
        return wording.format(**slots), dumps({"name": self.tool.name, "arguments": arguments})


def served_tools(rng: Random) -> list[Offer]:
    return [Offer.draw(rng, tool) for tool in rng.sample(TOOLS, rng.randint(1, 3))]


def served_system(offers: list[Offer], demanded: bool) -> str:
    """The system turn that Rookery's server writes for the tools of a request."""
    entries = ",\n".join(offer.listed() for offer in offers)
    when = "Return" if demanded else "If a tool helps, return"
    return f"Tools:\n[\n{entries}\n]\n{when} only a JSON function call."


def served_call(rng: Random, split: Split, offers: list[Offer], *, opened: bool) -> Turn:
    """A call; the prompt holds the open fence where the client demanded one, else the model writes it."""
    user, call = rng.choice(offers).asked(rng, split)
    fence = " ```json"
    return Turn(user, ("" if opened else fence) + f"\n{call}\n```", lead=fence if opened else "")


def tool_result(rng: Random, split: Split) -> Turn:
    """What the tool returned comes as a user turn, and is told to the user."""
    facts = record(rng, split, rng.randint(1, 3))
    told = ", ".join(f"{key} {value}" for key, value in facts.items())
    return reply(f"Function output:\n{dumps(facts)}", f"The function says: {told}.")


def any_structured(rng: Random, split: Split) -> Turn:
    """JSON inside a dialogue; tool calls need their own system turn and are not among these."""
    return rng.choice((echo, extract, fill))(rng, split)
