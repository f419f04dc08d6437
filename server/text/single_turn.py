"""Formats of question and answer: `raven-instruct` (RWKV-4 Raven) and `pile` (RWKV-4 Pile).

Source: RWKV-LM README and ChatRWKV v2/chat.py. Earlier turns of a chat are written as earlier blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import InvalidRequest, UnsupportedParameter
from .chat_template import Message, Prompt, check_continued
from .cleaning import clean, guard, normal_newlines
from .dialogue import ROLES, read_effort
from .tools import Tool, ToolChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockTemplate:
    """Each user message, with the system texts before it, is one block; the answer follows its last heading."""

    name: str
    introduction: str
    question: str
    """What comes before the user's text; the text is followed by `answer`."""
    answer: str
    headings: tuple[str, ...]
    stop: tuple[str, ...]
    strip_leading_space: bool = field(default=False, init=False)

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
        if tools and tool_choice != "none":
            raise UnsupportedParameter(f"the chat template {self.name} cannot call tools", param="tools")
        check_continued(messages, continue_final)
        read_effort(reasoning_effort, options, thinks=False)
        raw = bool(options.get("raw", False))
        text = self.introduction
        boundaries: list[int] = []
        asked: list[str] = []
        for i, message in enumerate(messages):
            role = ROLES.get(message.role)
            if role is None:
                raise InvalidRequest(f"a message's role must be one of {', '.join(ROLES)}", param=f"messages.{i}.role")
            if role != "assistant":
                asked.append(message.content if raw else clean(message.content, self.headings))
                continue
            text += self._ask(asked)
            asked = []
            if continue_final and i == len(messages) - 1:
                return Prompt(text + normal_newlines(message.content).lstrip(), tuple(boundaries))
            text += (message.content if raw else guard(message.content, self.headings)) + "\n\n"
            boundaries.append(len(text))
        return Prompt(text + self._ask(asked), tuple(boundaries))

    def _ask(self, texts: Sequence[str]) -> str:
        return self.question + "\n".join(text for text in texts if text) + self.answer


SINGLE_TURN_TEMPLATES: dict[str, BlockTemplate] = {
    template.name: template
    for template in (
        BlockTemplate(
            name="raven-instruct",
            introduction=(
                "\nBelow is an instruction that describes a task. "
                "Write a response that appropriately completes the request.\n\n"
            ),
            question="# Instruction:\n",
            answer="\n\n# Response:\n",
            headings=("# Instruction:", "# Input:", "# Response:"),
            stop=("\n\n# Instruction:", "\n# Instruction:", "\n# Input:"),
        ),
        BlockTemplate(
            name="pile",
            introduction="\n",
            question="Q & A\n\nQuestion:\n",
            answer="\n\nDetailed Expert Answer:\n",
            headings=("Q & A", "Question:", "Detailed Expert Answer:"),
            stop=("\n\nQ & A", "\n\nQuestion:", "\nQuestion:"),
        ),
    )
}
