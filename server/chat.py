"""A chat request in the terms of `text/`: what the template renders, and how the reply to it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .answer import Answer
from .text.chat_template import ChatTemplate, Message, Prompt
from .text.reasoning import ReasoningSplitter
from .text.tokenizer import Tokenizer
from .text.tool_stream import ToolCallSplitter
from .text.tools import Tool, ToolChoice


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

    def render(self, template: ChatTemplate) -> Prompt:
        """The prompt for the next assistant turn.

        Raises:
            InvalidRequest: the template cannot write it.
        """
        return template.render(
            self.messages,
            tools=self.tools,
            tool_choice=self.tool_choice,
            reasoning_effort=self.reasoning_effort,
            continue_final=self.continue_final,
            options=self.options,
        )

    @property
    def characters(self) -> int:
        """A lower bound of the prompt's length, to refuse giants before they are rendered."""
        return sum(len(message.content) for message in self.messages)

    def answer(self, tokenizer: Tokenizer, prompt: Prompt, stop: Sequence[str]) -> Answer:
        """Reads one choice of the reply to `prompt`, up to one of `stop`."""
        splitter = None
        if prompt.dialect is not None:
            splitter = ToolCallSplitter(prompt.dialect, self.tools)
            splitter.push(prompt.opening)
        thinking = prompt.thinking == "open"
        return Answer(
            tokenizer,
            stop,
            reasoning=ReasoningSplitter(thinking, missing=prompt.missing),
            thinking=thinking,
            tools=splitter,
            strip_space=prompt.strip_leading_space,
            one_call=not self.parallel_calls,
        )
