"""The built-in templates that write a chat as turns under headings: `world`, `g1` and `raven-chat`.

Strings and rules are those of the models' own prompts (ChatRWKV's API_DEMO_CHAT and v2/chat.py, RWKV-LM's
RWKV7-G1x-templates.txt). A prompt ends right after the assistant's colon, and the reply begins with a space.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import InvalidRequest, UnsupportedParameter
from .chat_template import Message, Prompt, Thinking, check_continued
from .cleaning import clean, guard, normal_newlines
from .reasoning import strip_reasoning
from .tools import DIALECTS, Tool, ToolChoice, ToolDialect

Role = Literal["system", "user", "assistant", "observation", "tool_output"]

ROLES: dict[str, Role | Literal["tool"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}


@dataclass(frozen=True, slots=True)
class Headings:
    """How turns are written: a heading, a gap, the text, a separator."""

    names: Mapping[Role, str]
    gap: str = " "
    separator: str = "\n\n"

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in self.names.values() if name)


COLONS = Headings(
    {
        "system": "System:",
        "user": "User:",
        "assistant": "Assistant:",
        "observation": "Observation:",
        "tool_output": "Tool Output:",
    }
)
BOB_AND_ALICE = Headings(
    {"system": "", "user": "Bob:", "assistant": "Alice:", "observation": "Observation:", "tool_output": "Tool Output:"}
)
MARKDOWN = Headings(
    {
        "system": "### System",
        "user": "### User",
        "assistant": "### Assistant",
        "observation": "### Tool Output",
        "tool_output": "### Tool Output",
    },
    gap="\n",
    separator="\n",
)
"""For the `fenced` tool dialect, which replaces the template's own headings."""

THINK_WORDS = {"low": "(think a bit)", "medium": "(think)", "high": "(think a lot)", "xhigh": "(think a lot)"}
"""What G1 models (September 2025 and later) were trained to obey, after the user's text."""
EFFORTS = ("none", "minimal", *THINK_WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogueTemplate:
    """Turns under headings. `thinks` adds the G1 conventions: `<think` left open when reasoning is asked for, the
    empty `<think>\\n</think` otherwise. The default is not to think: a client that never heard of reasoning wants an
    answer within its token limit."""

    name: str
    headings: Headings
    stop: tuple[str, ...]
    default_dialect: str = "g1"
    thinks: bool = False
    strip_leading_space: bool = field(default=True, init=False)

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
        """See `ChatTemplate.render`."""
        check_continued(messages, continue_final)
        effort = read_effort(reasoning_effort, options, thinks=self.thinks)
        dialect = choose_dialect(options, self.default_dialect) if tools and tool_choice != "none" else None
        writer = _Writer(
            headings=MARKDOWN if dialect and dialect.headings else self.headings,
            history_dialect=dialect or choose_dialect(options, self.default_dialect),
            raw=bool(options.get("raw", False)),
        )
        turns = list(messages[:-1] if continue_final else messages)
        if dialect is not None:
            turns = _with_tools(turns, dialect.describe(tools, tool_choice != "auto"))
        word = THINK_WORDS.get(effort or "", "") if not continue_final else ""
        writer.write(turns, think_word=word)
        if continue_final:
            thinking = writer.begin_reply(messages[-1])
            return writer.prompt(thinking=thinking, dialect=dialect)
        demanded = dialect is not None and tool_choice != "auto"
        return self._answer(writer, dialect, thinks_now=bool(word), demanded=demanded)

    def _answer(self, writer: _Writer, dialect: ToolDialect | None, *, thinks_now: bool, demanded: bool) -> Prompt:
        """End the prompt where the reply begins."""
        writer.add(writer.headings.names["assistant"])
        gap = writer.headings.gap
        if thinks_now:
            writer.add(gap + "<think")
            return writer.prompt(thinking="open", dialect=dialect)
        if demanded and dialect is not None and dialect.opening:
            writer.add(dialect.opening)
            return writer.prompt(thinking="none", dialect=dialect, opening=dialect.opening)
        if self.thinks and not demanded:
            writer.add(gap + "<think>\n</think")
            return writer.prompt(thinking="closed", dialect=dialect)
        if gap == "\n":
            writer.add(gap)
        return writer.prompt(thinking="none", dialect=dialect, strip_leading_space=gap == " ")


def read_effort(effort: str | None, options: Mapping[str, Any], *, thinks: bool) -> str | None:
    """The reasoning effort asked for, by OpenAI's field or by the `enable_thinking` other servers know.

    Raises:
        InvalidRequest: no such effort.
        UnsupportedParameter: reasoning asked of a template that has none.
    """
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequest(f"reasoning_effort must be one of {', '.join(EFFORTS)}", param="reasoning_effort")
    if effort is None and "enable_thinking" in options:
        effort = "medium" if options["enable_thinking"] else "none"
    if effort in THINK_WORDS and not thinks:
        raise UnsupportedParameter(
            "this model's chat template has no reasoning; leave reasoning_effort out", param="reasoning_effort"
        )
    return effort


def choose_dialect(options: Mapping[str, Any], default: str) -> ToolDialect:
    """The tool dialect of a request.

    Raises:
        InvalidRequest: no such dialect.
    """
    name = options.get("tool_dialect", default)
    if not isinstance(name, str) or name not in DIALECTS:
        raise InvalidRequest(
            f"tool_dialect must be one of {', '.join(DIALECTS)}", param="chat_template_kwargs.tool_dialect"
        )
    return DIALECTS[name]


def _with_tools(messages: Sequence[Message], description: str) -> list[Message]:
    """The messages with the tools' description at the end of the opening system text."""
    head = list(_leading_system(messages))
    return [*head, Message("system", description), *messages[len(head) :]]


def _leading_system(messages: Sequence[Message]) -> Iterator[Message]:
    for message in messages:
        if ROLES.get(message.role) != "system":
            return
        yield message


class _Writer:
    """Builds the prompt text and notes where messages end."""

    def __init__(self, *, headings: Headings, history_dialect: ToolDialect, raw: bool) -> None:
        self.headings = headings
        self._dialect = history_dialect
        self._raw = raw
        self._parts: list[str] = []
        self._length = 0
        self._boundaries: list[int] = []

    def add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    def prompt(
        self,
        *,
        thinking: Thinking,
        dialect: ToolDialect | None,
        opening: str = "",
        strip_leading_space: bool = False,
    ) -> Prompt:
        return Prompt(
            text="".join(self._parts),
            boundaries=tuple(self._boundaries),
            thinking=thinking,
            strip_leading_space=strip_leading_space,
            dialect=dialect,
            opening=opening,
        )

    def write(self, messages: Sequence[Message], *, think_word: str) -> None:
        """All turns; the system texts at the beginning share one."""
        head = list(_leading_system(messages))
        if head:
            texts = [text for text in (self._given(message.content) for message in head) if text]
            if texts and not self.headings.names["system"]:
                self.add("\n")
            if texts:
                self._turn("system", "\n".join(texts))
        last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
        for i, message in enumerate(messages[len(head) :], len(head)):
            role = ROLES.get(message.role)
            if role is None:
                raise InvalidRequest(f"a message's role must be one of {', '.join(ROLES)}", param=f"messages.{i}.role")
            if role == "assistant":
                self._turn("assistant", self._reply(message))
            elif role == "tool":
                self._turn(self._dialect.result_role, self._given(self._dialect.write_result(message.content)))
            else:
                self._turn(role, self._given(message.content), word=think_word if i == last_user else "")

    def begin_reply(self, message: Message) -> Thinking:
        """The assistant's unfinished message, as far as it goes: its end stays exactly as it was sent."""
        text = normal_newlines(message.content) if not self._raw else message.content
        if message.reasoning and text:
            text = f"<think>{message.reasoning.strip()}</think>\n{text.lstrip()}"
        elif message.reasoning:
            text = f"<think>{message.reasoning}"
        else:
            text = text if self._raw else text.lstrip()
        self.add(self.headings.names["assistant"] + (self.headings.gap + text if text else ""))
        return "open" if text.startswith("<think") and "</think" not in text else "none"

    def _turn(self, role: Role, text: str, *, word: str = "") -> None:
        """A message; `word` follows its text in this prompt only, so what later prompts share ends before it."""
        heading = self.headings.names[role]
        gap = self.headings.gap if heading else ""
        self.add(heading + (gap + text if text else ""))
        if word:
            self._boundaries.append(self._length)
            self.add((" " if text else gap) + word)
        self.add(self.headings.separator)
        if not word:
            self._boundaries.append(self._length)

    def _given(self, text: str) -> str:
        if self._raw:
            return text
        text = clean(text, self.headings.all)
        return _escape_headings(text, self.headings) if self.headings.separator == "\n" else text

    def _reply(self, message: Message) -> str:
        text = strip_reasoning(message.content)
        if not self._raw:
            text = guard(text, self.headings.all)
            if self.headings.separator == "\n":
                text = _escape_headings(text, self.headings)
        if message.tool_calls:
            calls = self._dialect.write_calls(message.tool_calls)
            text = f"{text}\n{calls}" if text else calls
        return text


def _escape_headings(text: str, headings: Headings) -> str:
    """Where one newline ends a turn, a line of a message that looks like a heading is indented by a space."""
    lines = text.split("\n")
    return "\n".join(f" {line}" if line.startswith(headings.all) else line for line in lines)


def dialogue_template(name: str, *, version: str) -> DialogueTemplate:
    """`world`, `g1` or `raven-chat`, as the model's version was trained.

    RWKV-4 answers in single paragraphs, so there a blank line ends the reply. Tools are written the way RWKV Runner
    does for versions 5 and 6, and the G1 way otherwise.
    """
    dialect = "runner" if version[0] in "56" else "g1"
    if name == "raven-chat":
        return DialogueTemplate(
            name=name, headings=BOB_AND_ALICE, stop=("\n\n", "\nBob:", "\nAlice:"), default_dialect=dialect
        )
    stop: tuple[str, ...] = ("\n\nUser:", "\n\nSystem:", "\nUser:", "\n### User", "\n### System")
    if version == "4":
        stop = ("\n\n", "\nUser:")
    return DialogueTemplate(name=name, headings=COLONS, stop=stop, default_dialect=dialect, thinks=name == "g1")
