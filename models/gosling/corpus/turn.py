"""One exchange of a dialogue."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user says and what the model should answer.

    Attributes:
        user: text after `User: `.
        answer: text after `Assistant:` and `lead`; begins with a blank unless `lead` is given.
        lead: what the prompt already holds after `Assistant:`, as the tool dialect demands.
        system: text of the `System: ` turn, for exchanges that begin a dialogue.
    """

    user: str
    answer: str
    lead: str = ""
    system: str = ""


def reply(user: str, answer: str) -> Turn:
    return Turn(user, " " + answer)
