"""A chat request in the terms of `text/`: what the template renders, and how the reply to it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .answer import Answer
from .errors import UnsupportedParameter
from .text.chat_template import ChatTemplate, Message, Prompt
from .text.reasoning import ReasoningSplitter
from .text.tokenizer import Tokenizer
from .text.tool_stream import ToolCallSplitter
from .text.tools import Tool, ToolChoice

_REPLY = "Understood, and out"
"""Stands for the reply that a session ends with: what a template writes behind it is what continues the session."""
_EARLIER = (Message("user", "Ready"), Message("assistant", _REPLY))


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """Messages and what else shapes the prompt (as in `ChatTemplate.render`) and how the reply is read."""

    messages: Sequence[Message]
    tools: Sequence[Tool] = ()
    tool_choice: ToolChoice = "auto"
    reasoning_effort: str | None = None
    continue_final: bool = False
    parallel_calls: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    continues: bool = False
    """The messages follow a reply that a session holds already."""

    def render(self, template: ChatTemplate) -> Prompt:
        """The prompt for the next assistant turn.

        Raises:
            InvalidRequest: the template cannot write it.
        """
        return self._render(template, self.messages, self.continue_final, self.reasoning_effort)

    def remember(self, template: ChatTemplate, reply: str) -> Prompt | None:
        """The turn as later prompts have it: the messages and the reply's content, without its reasoning, up to what
        the template writes behind a reply. None where the template does not tell where messages end."""
        prompt = self._render(template, [*self.messages, Message("assistant", reply)], False, None)
        earlier = template.render(_EARLIER, options=self.options)
        if not prompt.boundaries or not earlier.boundaries:
            return None
        separator = earlier.text[: earlier.boundaries[-1]].partition(_REPLY)[2]
        return replace(prompt, text=prompt.text[: prompt.boundaries[-1]].removesuffix(separator))

    def _render(
        self, template: ChatTemplate, messages: Sequence[Message], continue_final: bool, effort: str | None
    ) -> Prompt:
        before = _EARLIER if self.continues else ()
        prompt = template.render(
            [*before, *messages],
            tools=self.tools,
            tool_choice=self.tool_choice,
            reasoning_effort=effort,
            continue_final=continue_final,
            options=self.options,
        )
        if not self.continues:
            return prompt
        at = prompt.text.find(_REPLY) + len(_REPLY)
        if at < len(_REPLY):
            raise UnsupportedParameter("this model's chat template cannot continue a session", param="session_id")
        return replace(
            prompt,
            text=prompt.text[at:],
            boundaries=tuple(offset - at for offset in prompt.boundaries if offset > at),
            starts_document=False,
        )

    @property
    def characters(self) -> int:
        """A lower bound of the prompt's length, to refuse giants before they are rendered."""
        return sum(len(message.content) for message in self.messages)

    def answer(self, tokenizer: Tokenizer, prompt: Prompt, stop: Sequence[str]) -> Answer:
        """Reads one choice of the reply to `prompt`, up to one of `stop`."""
        splitter = None
        if prompt.dialect is not None:
            demanded = self.tool_choice not in ("none", "auto")
            splitter = ToolCallSplitter(prompt.dialect, self.tools, only_calls=demanded)
            splitter.push(prompt.opening)
        thinking = prompt.thinking == "open"
        return Answer(
            tokenizer,
            stop,
            reasoning=ReasoningSplitter(thinking, missing=prompt.missing),
            thinking=thinking,
            tools=splitter,
            strip_space=prompt.strip_leading_space,
            strip_end=True,
            one_call=not self.parallel_calls,
        )
