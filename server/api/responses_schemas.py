"""Bodies of /v1/responses and /v1/conversations: items, tools, formats, and what they are in `server/text` terms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ..chat import Chat
from ..errors import InvalidRequest, UnsupportedParameter
from ..responses import items
from ..responses.items import Item, messages_of, new_id
from ..service import Constraint
from ..text import tools
from ..text.chat_template import Message, Prompt
from ..text.grammar import response_grammar, tool_grammar
from ..text.schema_limits import check_schema
from .chat_schemas import FunctionTool, JsonObject, Name
from .schemas import PLAIN, Body, GenerationBody, Refused, StreamOptions

ID_PATTERN = r"^[A-Za-z0-9_-]{1,128}$"
Id = Annotated[str, Field(pattern=ID_PATTERN)]
"""An id this server may have given."""
ItemId = Annotated[str, Field(min_length=1, max_length=128)]
"""Any client's id of an item: it only has to be repeated."""
Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]
MAX_ITEMS = 65_536

_PARTS = ("input_text", "output_text", "refusal")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")
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


def _text_parts_only(value: Any) -> Any:
    if isinstance(value, str) and value not in _PARTS:
        raise UnsupportedParameter(f"content parts of type {value[:64]!r} are not supported: text only", param="input")
    return value


class Part(Body):
    """A piece of a message's content."""

    type: Annotated[Literal["input_text", "output_text", "refusal"], BeforeValidator(_text_parts_only)]
    text: str | None = None
    refusal: str | None = None

    @model_validator(mode="after")
    def _has_its_text(self) -> Part:
        if (self.refusal if self.type == "refusal" else self.text) is None:
            raise ValueError(f"a content part of type {self.type} has no text")
        return self

    @property
    def said(self) -> str:
        return self.text or self.refusal or ""


def _text_or_parts(value: Any) -> str:
    return "parts" if isinstance(value, list) else "text"


Parts = Annotated[list[Part], Field(max_length=4096)]
Content = Annotated[Annotated[str, Tag("text")] | Annotated[Parts, Tag("parts")], Discriminator(_text_or_parts)]


def _said(content: str | list[Part]) -> list[Part]:
    return [Part(type="input_text", text=content)] if isinstance(content, str) else content


class MessageItem(Body):
    """What somebody said; the `type` may be left out."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    id: ItemId | None = None

    def item(self) -> Item:
        """The item as it is stored: parts are named after who speaks."""
        parts: list[Item] = []
        for part in _said(self.content):
            if self.role != "assistant":
                parts.append({"type": "input_text", "text": part.said})
            elif part.type == "refusal":
                parts.append({"type": "refusal", "refusal": part.said})
            else:
                parts.append(items.output_text(part.said))
        return items.message(self.id or new_id("message"), self.role, parts)


class FunctionCallItem(Body):
    """A call the assistant made."""

    type: Literal["function_call"]
    call_id: ItemId
    name: Annotated[str, Field(min_length=1, max_length=128)]
    arguments: str
    id: ItemId | None = None

    def item(self) -> Item:
        """The item as it is stored."""
        return items.function_call(self.id or new_id(self.type), self.call_id, self.name, self.arguments)


class FunctionCallOutputItem(Body):
    """What a call returned."""

    type: Literal["function_call_output"]
    call_id: ItemId
    output: Content
    id: ItemId | None = None

    def item(self) -> Item:
        """The item as it is stored."""
        output = "".join(part.said for part in _said(self.output))
        return items.function_call_output(self.id or new_id(self.type), self.call_id, output)


class Thought(Body):
    """A piece of reasoning."""

    type: Literal["reasoning_text", "summary_text", "text"]
    text: str


class ReasoningItem(Body):
    """Thoughts of an earlier turn: taken, and left out of the prompt, as every turn's thoughts are."""

    type: Literal["reasoning"]
    summary: Annotated[list[Thought], Field(max_length=4096)] | None = None
    content: Annotated[list[Thought], Field(max_length=4096)] | None = None
    encrypted_content: str | None = None
    id: ItemId | None = None

    def item(self) -> Item:
        """The item as it is stored."""
        parts = [{"type": "reasoning_text", "text": thought.text} for thought in self.content or ()]
        return items.reasoning(self.id or new_id(self.type), parts)


def _item_type(value: Any) -> str | None:
    kind = value.get("type", "message") if isinstance(value, dict) else getattr(value, "type", None)
    if isinstance(kind, str) and kind not in _ITEMS:
        raise UnsupportedParameter(f"input items of type {kind[:64]!r} are not supported", param="input")
    return kind if isinstance(kind, str) else None


InputItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[FunctionCallOutputItem, Tag("function_call_output")]
    | Annotated[ReasoningItem, Tag("reasoning")],
    Discriminator(_item_type),
]


def _text_or_items(value: Any) -> str:
    return "items" if isinstance(value, list) else "text"


Input = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[InputItem], Field(max_length=MAX_ITEMS), Tag("items")],
    Discriminator(_text_or_items),
]


def stored(given: Sequence[MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem]) -> list[Item]:
    """The items as they are stored, each with an id that none of the others has."""
    seen: set[str] = set()
    result = []
    for one in given:
        item = one.item()
        if item["id"] in seen:
            item["id"] = new_id(item["type"])
        seen.add(item["id"])
        result.append(item)
    return result


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


def _word_or_object(value: Any) -> str:
    return "word" if isinstance(value, str) else "object"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")] | Annotated[NamedFunction, Tag("object")],
    Discriminator(_word_or_object),
]


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


ConversationField = Annotated[
    Annotated[Id, Tag("word")] | Annotated[NamedConversation, Tag("object")], Discriminator(_word_or_object)
]


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

    def shape(self, chat: Chat, prompt: Prompt = PLAIN) -> Constraint | None:
        """What the reply to `prompt` must match. Schemas of tools are checked even where none is demanded.

        Raises:
            InvalidRequest: a schema, regex or grammar that cannot be enforced.
        """
        for number, tool in enumerate(chat.tools):
            check_schema(tool.parameters, param=f"tools[{number}].parameters")
        calls = tool_grammar(chat.tools, chat.tool_choice, prompt, parallel=chat.parallel_calls)
        if calls is not None:
            return Constraint(calls, "tools")
        if self.format.type == "text":
            return self.constraint(prompt)
        if self.format.schema_ is not None:
            check_schema(self.format.schema_, param="text.format.schema")
        asked = {"type": self.format.type, "json_schema": {"schema": self.format.schema_}}
        return Constraint(response_grammar(asked, prompt) or "", "text.format")


class ConversationBody(Body):
    """Body of POST /v1/conversations."""

    items: Annotated[list[InputItem], Field(max_length=20)] | None = None
    metadata: Metadata | None = None


class ConversationUpdate(Body):
    """Body of POST /v1/conversations/{id}."""

    metadata: Metadata
