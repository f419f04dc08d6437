"""Chat templates of Hugging Face folders, in jinja2's immutable sandbox. Templates come from the operator only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import InvalidRequest, StartupError
from .chat_template import Message, Prompt, Thinking, check_continued
from .dialogue import choose_dialect
from .tools import Tool, ToolChoice, ToolDialect, parse_arguments

MAX_SOURCE_CHARS = 256 * 1024
MAX_PROMPT_CHARS = 64 * 2**20
MAX_RENDER_S = 5.0
END_OF_TEXT = ("<|rwkv_tokenizer_end_of_text|>", "<|endoftext|>", "<s>")
"""Names templates give the token that begins a document; only as the first thing of a prompt does it mean that."""

_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
)
"""What a template's expressions can raise on messages they were not written for."""


def find_template(model_path: Path) -> JinjaTemplate | None:
    """The chat template of a Hugging Face folder: `chat_template.jinja`, else that of `tokenizer_config.json`.

    Raises:
        StartupError: there is one that cannot be used.
    """
    if not model_path.is_dir():
        return None
    file = model_path / "chat_template.jinja"
    if file.is_file():
        return JinjaTemplate.from_file(file)
    config = model_path / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        template = json.loads(config.read_text("utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        raise StartupError(f"{config.name} is no readable JSON object", "mend it or remove it") from None
    if isinstance(template, list):  # several by name: the one for plain chats
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return JinjaTemplate(template) if isinstance(template, str) else None


class JinjaTemplate:
    """A template as `transformers` would apply it: messages, tools, `add_generation_prompt` and the request's options.

    Texts go in as they are: what a user may forge is the template's affair.
    """

    name = "jinja"
    stop: tuple[str, ...] = ("\n\nUser:", "\n\nSystem:", "\nUser:")
    strip_leading_space = True

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARS:
            raise StartupError(
                f"the chat template has {len(source)} characters", f"use one of at most {MAX_SOURCE_CHARS}"
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise StartupError(
                f"the chat template does not compile: line {error.lineno}: {error.message}", "mend the Jinja source"
            ) from None
        self._lists_tools = "tools" in source

    @classmethod
    def from_file(cls, path: Path) -> JinjaTemplate:
        """Read a Jinja file.

        Raises:
            StartupError: it is unreadable or does not compile.
        """
        try:
            return cls(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise StartupError(f"cannot read the chat template {path}: {error}", "name a UTF-8 Jinja file") from None

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
        dialect = choose_dialect(options, "g1") if tools and tool_choice != "none" else None
        turns = list(messages)
        if dialect is not None and not self._lists_tools:
            turns.insert(0, Message("system", dialect.describe(tools, tool_choice != "auto")))
        variables = {
            **options,
            "messages": [_as_dict(message) for message in turns],
            "tools": [_tool_dict(tool) for tool in tools] if dialect is not None else None,
            "add_generation_prompt": not continue_final,
            "bos_token": "",
            "eos_token": "",
        }
        if reasoning_effort is not None:
            variables["reasoning_effort"] = reasoning_effort
        text = self._run(variables)
        if continue_final:
            text = _cut_after(text, messages[-1].content)
        return self._prompt(text, turns, dialect, continued=continue_final)

    def _run(self, variables: Mapping[str, Any]) -> str:
        parts: list[str] = []
        length, deadline = 0, perf_counter() + MAX_RENDER_S
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                length += len(part)
                if length > MAX_PROMPT_CHARS or perf_counter() > deadline:
                    raise InvalidRequest("the chat template makes too much of these messages", param="messages")
        except _TEMPLATE_FAULTS as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {str(error)[:200]}", param="messages"
            ) from None
        return "".join(parts)

    def _prompt(
        self, text: str, messages: Sequence[Message], dialect: ToolDialect | None, *, continued: bool
    ) -> Prompt:
        name = next((name for name in END_OF_TEXT if text.startswith(name)), "")
        text = text.removeprefix(name)
        boundaries, position = [], 0
        for message in messages:
            found = text.find(message.content, position) if message.content else -1
            if found >= 0:
                position = found + len(message.content)
                boundaries.append(position)
        thinking = _thinking(text)
        return Prompt(
            text,
            tuple(boundaries),
            thinking=thinking,
            strip_leading_space=not continued and thinking == "none" and text.endswith(":"),
            starts_document=bool(name),
            dialect=dialect,
        )


def _thinking(text: str) -> Thinking:
    """What the end of a prompt says of reasoning."""
    end = text.rstrip()
    if end.endswith(("<think", "<think>")):
        return "open"
    return "closed" if end.endswith(("</think", "</think>")) else "none"


def _cut_after(text: str, content: str) -> str:
    """Drop what the template writes after the message that is to be continued."""
    found = text.rfind(content.strip())
    if found < 0:
        raise InvalidRequest("this chat template cannot continue a message", param="continue_final_message")
    return text[:found] + content.lstrip()


def _as_dict(message: Message) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    if message.reasoning is not None:
        fields["reasoning_content"] = message.reasoning
    if message.tool_calls:
        fields["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": parse_arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return fields


def _tool_dict(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": function}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
