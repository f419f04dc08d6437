"""Bodies of /v1/responses and /v1/conversations: tools, formats, and what they are in `server/text` terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, Tag, model_validator

from ..answer_grammar import AnswerGrammar
from ..chat import Chat
from ..errors import InvalidRequest, UnsupportedParameter
from ..responses.items import Item, messages_of
from ..text import tools
from ..text.chat_template import Message, Prompt
from ..text.grammar import response_grammar, tool_grammar
from ..text.schema_limits import check_arguments, check_schema
from .chat_schemas import FunctionTool
from .format_schemas import JsonObject, Name
from .item_schemas import Input, InputItem, MessageItem, stored
from .schemas import PLAIN, WORD_OR_OBJECT, Body, GenerationBody, Refused, StreamOptions, ToolWord

ID_PATTERN = r"^[A-Za-z0-9_-]{1,128}$"
Id = Annotated[str, Field(pattern=ID_PATTERN)]
"""An id this server may have given."""
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
_INCLUDABLE = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


def _functions_only(value: Any) -> Any:
    if isinstance(value, str) and value != "function":
        raise UnsupportedParameter(f"tools of type {value[:64]!r} are not supported: functions only", param="tools")
    return value


def _function_choice_only(value: Any) -> Any:
    if isinstance(value, str) and value != "function":
        raise UnsupportedParameter(f"a tool_choice of type {value[:64]!r} is not supported", param="tool_choice")
    return value


class ResponseTool(FunctionTool):
    """One entry of `tools`."""

    type: Annotated[Literal["function"], BeforeValidator(_functions_only)]

    def plain(self) -> tools.Tool:
        """The same in the terms of `server/text`."""
        return tools.Tool(self.name, self.description or "", self.parameters or {}, bool(self.strict))


class NamedFunction(Body):
    """`tool_choice` that demands one function."""

    type: Annotated[Literal["function"], BeforeValidator(_function_choice_only)]
    name: Name


ToolChoice = Annotated[ToolWord | Annotated[NamedFunction, Tag("object")], WORD_OR_OBJECT]


class TextFormat(Body):
    """`text.format`: free text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = None
    description: str | None = None
    schema_: JsonObject | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> TextFormat:
        if self.type == "json_schema" and (self.schema_ is None or self.name is None):
            raise ValueError("a format of type json_schema needs the fields name and schema")
        return self


def _only(served: str, *, param: str) -> BeforeValidator:
    """Refuses the other words that OpenAI knows for a field, naming it."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value != served:
            raise UnsupportedParameter(f"{param} can only be {served!r}", param=param)
        return value

    return BeforeValidator(check)


class TextConfig(Body):
    """`text`: the format of the answer."""

    format: TextFormat | None = None
    verbosity: Annotated[Literal["medium"], _only("medium", param="text.verbosity")] | None = None


class ReasoningConfig(Body):
    """`reasoning`: how much. Thoughts are sent as they are, so there is no summary to choose."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Annotated[Literal["auto"], _only("auto", param="reasoning.summary")] | None = None
    generate_summary: Annotated[Literal["auto"], _only("auto", param="reasoning.generate_summary")] | None = None


class ResponseStreamOptions(StreamOptions):
    """`stream_options`: no event is padded, whatever is asked."""

    include_obfuscation: bool | None = None


class NamedConversation(Body):
    """`conversation` as an object."""

    id: Id


ConversationField = Annotated[Annotated[Id, Tag("word")] | Annotated[NamedConversation, Tag("object")], WORD_OR_OBJECT]


class ResponseBody(GenerationBody):
    """Body of POST /v1/responses."""

    input: Input
    instructions: str | None = None
    previous_response_id: Id | None = None
    conversation: ConversationField | None = None
    store: bool | None = None
    metadata: Metadata | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    max_tool_calls: Annotated[int, Field(ge=1, le=2**31)] | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=128)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    include: Annotated[list[_INCLUDABLE], Field(max_length=16)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Annotated[Literal["disabled"], _only("disabled", param="truncation")] | None = None
    chat_template_kwargs: Annotated[JsonObject, Field(max_length=64)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=1024)] | None = None
    safety_identifier: Annotated[str, Field(max_length=1024)] | None = None
    stream_options: ResponseStreamOptions | None = None

    background: Refused = None
    prompt: Refused = None
    context_management: Refused = None
    moderation: Refused = None
    n: Refused = None
    response_format: Refused = None
    return_token_ids: Refused = None
    session_id: Refused = None

    @model_validator(mode="after")
    def _response_fields_agree(self) -> ResponseBody:
        if self.previous_response_id is not None and self.conversation is not None:
            raise InvalidRequest("give either previous_response_id or conversation", param="conversation")
        names = [tool.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise InvalidRequest("two tools have the same name", param="tools")
        if self.forced_tools and not names:
            raise InvalidRequest("tool_choice demands a tool, and there are no tools", param="tool_choice")
        if isinstance(self.tool_choice, NamedFunction) and self.tool_choice.name not in names:
            raise InvalidRequest(f"tool_choice: no tool is named {self.tool_choice.name}", param="tool_choice")
        asked = [
            name
            for name, given in (
                ("grammar", self.grammar),
                ("regex", self.regex),
                ("text.format", self.format.type != "text"),
                ("tool_choice", self.forced_tools),
            )
            if given
        ]
        if len(asked) > 1:
            raise InvalidRequest(f"{asked[0]} and {asked[1]} cannot both shape the answer", param=asked[1])
        return self

    @property
    def forced_tools(self) -> bool:
        """Whether the answer must be a tool call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, NamedFunction)

    @property
    def format(self) -> TextFormat:
        """What the text of the answer is."""
        return (self.text and self.text.format) or TextFormat(type="text", schema=None)

    @property
    def effort(self) -> str | None:
        return self.reasoning.effort if self.reasoning else None

    @property
    def conversation_id(self) -> str | None:
        named = self.conversation
        return named.id if isinstance(named, NamedConversation) else named

    @property
    def logprobs(self) -> int | None:
        """How many likely tokens are listed with each token of the text; None for no log-probabilities."""
        if self.top_logprobs or "message.output_text.logprobs" in (self.include or ()):
            return self.top_logprobs or 0
        return None

    def items(self) -> list[Item]:
        """The input as items."""
        return stored([MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input)

    def chat(self, conversation: Sequence[Item]) -> Chat:
        """The chat of all items so far, this turn's input included.

        Raises:
            InvalidRequest: there is nothing to answer, or the output of a call that was never made.
        """
        messages = messages_of(conversation)
        if not messages:
            raise InvalidRequest("there is nothing to answer", param="input")
        if self.instructions:
            messages.insert(0, Message("system", self.instructions))
        choice = self.tool_choice or "auto"
        return Chat(
            messages=messages,
            tools=tuple(tool.plain() for tool in self.tools or ()),
            tool_choice=choice if isinstance(choice, str) else tools.NamedTool(choice.name),
            reasoning_effort=self.effort,
            parallel_calls=self.parallel_tool_calls is not False,
            options=self.chat_template_kwargs or {},
        )

    def shape(self, chat: Chat, prompt: Prompt = PLAIN) -> AnswerGrammar | None:
        """What the reply to `prompt` must match. Schemas of tools are checked even where none is demanded.

        Raises:
            InvalidRequest: a schema, regex or grammar that cannot be enforced.
        """
        for number, tool in enumerate(chat.tools):
            check_arguments(tool.parameters, param=f"tools.{number}.parameters")
        calls = tool_grammar(chat.tools, chat.tool_choice, prompt, parallel=chat.parallel_calls)
        if calls is not None:
            return AnswerGrammar(calls, "tools")
        if self.format.type == "text":
            return self.constraint(prompt)
        if self.format.schema_ is not None:
            check_schema(self.format.schema_, param="text.format.schema")
        asked = {"type": self.format.type, "json_schema": {"schema": self.format.schema_}}
        return AnswerGrammar(response_grammar(asked, prompt) or "", "text.format")


class ConversationBody(Body):
    """Body of POST /v1/conversations."""

    items: Annotated[list[InputItem], Field(max_length=20)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    """Body of POST /v1/conversations/{id}."""

    metadata: Metadata


class ConversationItems(Body):
    """Body of POST /v1/conversations/{id}/items."""

    items: Annotated[list[InputItem], Field(min_length=1, max_length=20)]
