"""Items that clients send, to /v1/responses and /v1/conversations, and what is stored of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from ..errors import UnsupportedParameter
from ..responses import items
from ..responses.items import Item, new_id
from .schemas import Body

ItemId = Annotated[str, Field(min_length=1, max_length=128)]
"""Any client's id of an item: it only has to be repeated."""
MAX_ITEMS = 65_536

_PARTS = ("input_text", "output_text", "refusal")
_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


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
