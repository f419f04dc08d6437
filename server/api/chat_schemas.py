"""Body of POST /v1/chat/completions: messages, tools, and what they are in `server/text` terms."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationInfo, model_validator

from ..answer_grammar import AnswerGrammar
from ..chat import Chat
from ..errors import InvalidRequest, UnsupportedParameter
from ..text import tools
from ..text.chat_template import Message, Prompt
from ..text.grammar import tool_grammar
from .format_schemas import FormattedBody, JsonObject, Name
from .schemas import PLAIN, WORD_OR_OBJECT, Body, Refused, ToolWord


def _text_parts_only(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value in {"image_url", "input_audio", "file", "video_url", "audio_url"}:
        raise UnsupportedParameter(f"content parts of type {value} are not supported: text only", param="messages")
    return value


class ContentPart(Body):
    """A piece of a message's content; `refusal` is what assistants may have said instead of text."""

    type: Annotated[Literal["text", "refusal"], BeforeValidator(_text_parts_only)]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> ContentPart:
        if (self.text if self.type == "text" else self.refusal) is None:
            raise ValueError(f"a content part of type {self.type} needs the field {self.type}")
        return self


class FunctionCall(Body):
    """Name and arguments (JSON as text) of a call the assistant made."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str


class MessageToolCall(Body):
    """One call in an assistant message of the history."""

    id: Annotated[str, Field(max_length=128)] | None = None
    type: Literal["function"] = "function"
    function: FunctionCall


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Content = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[ContentPart], Field(max_length=4096), Tag("parts")],
    Discriminator(_text_or_parts),
]


class ChatMessage(Body):
    """One turn. Roles may come in any order; null content is empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Annotated[str, Field(max_length=128)] | None = None
    tool_calls: Annotated[list[MessageToolCall], Field(max_length=128)] | None = None
    tool_call_id: Annotated[str, Field(max_length=128)] | None = None
    reasoning_content: str | None = None
    function_call: Refused = None

    @property
    def text(self) -> str:
        """The content as one string."""
        if isinstance(self.content, list):
            return "".join(part.text or part.refusal or "" for part in self.content)
        return self.content or ""

    def plain(self) -> Message:
        """The same in the terms of `server/text`."""
        calls = (
            tools.ToolCall(call.id or f"call_{number}", call.function.name, call.function.arguments)
            for number, call in enumerate(self.tool_calls or ())
        )
        return Message(
            role=self.role,
            content=self.text,
            name=self.name,
            tool_calls=tuple(calls),
            tool_call_id=self.tool_call_id,
            reasoning=self.reasoning_content,
        )


class FunctionTool(Body):
    """A function the model may call; `parameters` is a JSON schema."""

    name: Name
    description: str | None = None
    parameters: JsonObject | None = None
    strict: bool | None = None


def _functions_only(value: Any) -> Any:
    if value == "custom":
        raise UnsupportedParameter("tools of type custom are not supported: functions only", param="tools")
    return value


def _function_choice_only(value: Any) -> Any:
    if isinstance(value, str) and value in {"custom", "allowed_tools"}:
        raise UnsupportedParameter(f"a tool_choice of type {value} is not supported", param="tool_choice")
    return value


FunctionType = Annotated[Literal["function"], BeforeValidator(_functions_only)]


class Tool(Body):
    """One entry of `tools`."""

    type: FunctionType
    function: FunctionTool

    def plain(self) -> tools.Tool:
        """The same in the terms of `server/text`."""
        given = self.function
        return tools.Tool(given.name, given.description or "", given.parameters or {}, bool(given.strict))


class NamedFunction(Body):
    """The function a named tool choice asks for."""

    name: Name


class NamedTool(Body):
    """`tool_choice` that demands one function."""

    type: Annotated[Literal["function"], BeforeValidator(_function_choice_only)]
    function: NamedFunction


ToolChoice = Annotated[ToolWord | Annotated[NamedTool, Tag("object")], WORD_OR_OBJECT]


def _refuse_audio(value: Any) -> Any:
    if isinstance(value, list) and "audio" in value:
        raise UnsupportedParameter("audio output is not supported", param="modalities")
    return value


class ChatTurns(Body):
    """The part of a chat body that makes the prompt."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=65_536)
    tools: Annotated[list[Tool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: Annotated[JsonObject, Field(max_length=64)] | None = None

    @model_validator(mode="after")
    def _turns_agree(self) -> ChatTurns:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise InvalidRequest("two tools have the same name", param="tools")
        if self.forced_tools and not names:
            raise InvalidRequest("tool_choice demands a tool, and there are no tools", param="tool_choice")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise InvalidRequest(f"tool_choice: no tool is named {self.tool_choice.function.name}", param="tool_choice")
        if self.continue_final_message and self.messages[-1].role != "assistant":
            raise InvalidRequest("the final message is not the assistant's", param="continue_final_message")
        return self

    @property
    def forced_tools(self) -> bool:
        """Whether the answer must be a tool call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedTool)

    def chat(self) -> Chat:
        """The same in the terms of `server/text`."""
        choice = self.tool_choice or "auto"
        return Chat(
            messages=tuple(message.plain() for message in self.messages),
            tools=tuple(tool.plain() for tool in self.tools or ()),
            tool_choice=choice if isinstance(choice, str) else tools.NamedTool(choice.function.name),
            reasoning_effort=self.reasoning_effort,
            continue_final=bool(self.continue_final_message),
            parallel_calls=self.parallel_tool_calls is not False,
            options=self.chat_template_kwargs or {},
        )


class ChatBody(FormattedBody, ChatTurns):
    """Body of POST /v1/chat/completions."""

    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    modalities: Annotated[list[Literal["text"]], BeforeValidator(_refuse_audio), Field(max_length=2)] | None = None

    prediction: Refused = None
    audio: Refused = None
    functions: Refused = None
    function_call: Refused = None
    web_search_options: Refused = None
    moderation: Refused = None

    @model_validator(mode="after")
    def _chat_fields_agree(self) -> ChatBody:
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequest("top_logprobs is only for logprobs: true", param="top_logprobs")
        if self.forced_tools and self.shaped_by is not None:
            raise InvalidRequest(f"{self.shaped_by} and tool_choice cannot both shape the answer", param="tool_choice")
        return self

    @property
    def limit(self) -> tuple[str, int | None]:
        """Name and value of the field that limits the completion."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def constraint(self, prompt: Prompt = PLAIN) -> AnswerGrammar | None:
        """What the reply to `prompt` must match. Schemas of tools are checked even where none is demanded.

        Raises:
            InvalidRequest: a schema, regex or grammar that cannot be enforced.
        """
        chat = self.chat()
        calls = tool_grammar(chat.tools, chat.tool_choice, prompt, parallel=chat.parallel_calls)
        if calls is not None:
            return AnswerGrammar(calls, "tools")
        return super().constraint(prompt)
