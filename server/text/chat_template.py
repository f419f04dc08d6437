"""Messages to one prompt text: the interface of every chat template, and which one a model gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ..errors import InvalidRequest, StartupError
from .tools import Tool, ToolCall, ToolChoice, ToolDialect

Thinking = Literal["none", "open", "closed"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a chat. Content parts are joined, and null content is "", before it comes here."""

    role: str
    """system, developer, user, assistant, tool or function."""
    content: str
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None
    """Reasoning an assistant message carries apart from its content: used to continue it, dropped from history."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered chat: what is encoded, and what the reader of the reply must know of its end."""

    text: str
    boundaries: tuple[int, ...] = ()
    """Character offsets where a message (with the blank line after it) ends: good places for checkpoints. After a
    message that asks for reasoning only while it is the newest, what its later forms share with it."""
    thinking: Thinking = "none"
    """`open`: the reply goes on with reasoning. `closed`: an empty reasoning was written for the model."""
    strip_leading_space: bool = False
    """The reply begins with one space that belongs to the format (`Assistant:` ends without it): drop it."""
    starts_document: bool = False
    """The template wrote the end-of-text token first: prepend the tokenizer's `eos_token_id`."""
    dialect: ToolDialect | None = None
    """How tools are called in the reply; None when none may be."""
    opening: str = ""
    """The end of `text` that already belongs to the reply: give it to the tool-call splitter first."""

    @property
    def missing(self) -> str:
        """What the reply must begin with to complete a tag that was left open, since greedy tokens join its `>`."""
        return ">" if self.text.endswith(("<think", "</think")) else ""


class ChatTemplate(Protocol):
    """Turns messages into a prompt. Immutable."""

    @property
    def name(self) -> str: ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that show the model has begun another's turn. They end the visible reply, never open reasoning."""
        ...

    @property
    def strip_leading_space(self) -> bool:
        """Whether replies begin with a space that belongs to the format; `Prompt` has it for one reply."""
        ...

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = "auto",
        reasoning_effort: str | None = None,
        continue_final: bool = False,
        options: Mapping[str, Any] = {},
    ) -> Prompt:
        """The prompt for the next assistant turn.

        Args:
            messages: in any order of roles.
            tools: listed for the model unless `tool_choice` is "none".
            reasoning_effort: none, minimal, low, medium, high or xhigh; None is the template's default.
            continue_final: the last message is the assistant's and is to be continued, not answered.
            options: the request's `chat_template_kwargs`: `raw` (texts as they are), `enable_thinking`,
                `tool_dialect` (g1, runner, fenced); unknown ones are ignored by built-in templates.

        Raises:
            InvalidRequest: a role or option that does not exist, or a combination the template cannot write.
        """
        ...


def check_continued(messages: Sequence[Message], continue_final: bool) -> None:
    """Whether there is something to continue, where that is asked for.

    Raises:
        InvalidRequest: the last message is not the assistant's.
    """
    if continue_final and (not messages or messages[-1].role != "assistant"):
        raise InvalidRequest("only an assistant message that is last can be continued", param="continue_final_message")


def load_template(choice: str | None, *, model_path: Path, version: str, vocab_size: int) -> ChatTemplate:
    """The template asked for, else the one that fits the model.

    Args:
        choice: a built-in name, or the path of a Jinja file; None chooses: the Jinja template of an HF folder; for the
            World vocabulary `g1` when the file's name says that it is a G0 or G1 model, else `world`; for the 20B
            vocabulary `raven-chat` when the name says Raven, else `pile`.
        version: of the model: "4" … "7".
        vocab_size: rows of the model's embedding.

    Raises:
        StartupError: no such template, or one that does not compile.
    """
    from .dialogue import dialogue_template
    from .jinja_template import JinjaTemplate, find_template
    from .single_turn import SINGLE_TURN_TEMPLATES
    from .tokenizer import PILE_VOCAB_SIZES

    if choice is None:
        found = find_template(model_path)
        if found is not None:
            return found
        name = model_path.name.lower()
        if vocab_size in PILE_VOCAB_SIZES:
            choice = "raven-chat" if "raven" in name else "pile"
        else:
            choice = "g1" if version == "7" and _is_g1(name) else "world"
    if choice in SINGLE_TURN_TEMPLATES:
        return SINGLE_TURN_TEMPLATES[choice]
    if choice in BUILT_IN:
        return dialogue_template(choice, version=version)
    path = Path(choice)
    if not path.is_file():
        raise StartupError(
            f"no chat template {choice!r}",
            f"use one of {', '.join(BUILT_IN)}, or the path of a Jinja file",
            exit_code=2,
        )
    return JinjaTemplate.from_file(path)


BUILT_IN = ("world", "g1", "raven-chat", "raven-instruct", "pile")


def _is_g1(name: str) -> bool:
    """`rwkv7-g1a-0.4b…`, `RWKV7-G0-…`: a part of the name that is g and 0 or 1."""
    parts = name.replace("_", "-").split("-")
    return any(part[:2] in ("g0", "g1") and len(part) <= 4 for part in parts)
