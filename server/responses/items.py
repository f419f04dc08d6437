"""Items of the Responses API: the shapes that are stored and sent, and the chat messages they stand for."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from ..errors import InvalidRequest
from ..text.chat_template import Message
from ..text.tools import ToolCall

Item = dict[str, Any]
"""One item, as JSON."""
Status = Literal["in_progress", "completed", "incomplete"]

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def new_id(kind: str) -> str:
    """An id no other item has, told by its prefix."""
    return f"{_PREFIXES[kind]}_{secrets.token_hex(16)}"


def output_text(text: str, logprobs: Sequence[dict[str, Any]] = ()) -> Item:
    """The text part of an assistant's message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(logprobs)}


def message(id: str, role: str, parts: Sequence[Item], status: Status = "completed") -> Item:
    """A message; parts are `input_text`, or `output_text` and `refusal` for the assistant's."""
    return {"type": "message", "id": id, "status": status, "role": role, "content": list(parts)}


def reasoning(id: str, parts: Sequence[Item], status: Status = "completed") -> Item:
    """Thoughts, as parts of type `reasoning_text`; no summary is ever made of them."""
    return {"type": "reasoning", "id": id, "status": status, "summary": [], "content": list(parts)}


def function_call(id: str, call_id: str, name: str, arguments: str, status: Status = "completed") -> Item:
    """A call; `arguments` is JSON as text, and a part of it while the call is in progress or was cut."""
    return {
        "type": "function_call",
        "id": id,
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }


def function_call_output(id: str, call_id: str, output: str) -> Item:
    """What a call returned."""
    return {"type": "function_call_output", "id": id, "status": "completed", "call_id": call_id, "output": output}


def text_of(item: Item) -> str:
    """A message's content as one string."""
    return "".join(part["text"] if "text" in part else part["refusal"] for part in item["content"])


def messages_of(items: Iterable[Item]) -> list[Message]:
    """The chat that the items of a conversation are.

    A call joins the assistant's message before it, as both were one reply; reasoning is no part of a history.

    Raises:
        InvalidRequest: the output of a call that was never made.
    """
    messages: list[Message] = []
    names: dict[str, str] = {}
    for item in items:
        match item["type"]:
            case "message":
                messages.append(Message(item["role"], text_of(item)))
            case "function_call":
                call = ToolCall(item["call_id"], item["name"], item["arguments"])
                names[call.id] = call.name
                said = messages.pop() if messages and messages[-1].role == "assistant" else Message("assistant", "")
                messages.append(Message("assistant", said.content, tool_calls=(*said.tool_calls, call)))
            case "function_call_output":
                call_id = item["call_id"]
                if call_id not in names:
                    raise InvalidRequest(f"there is no function call with the call_id {call_id!r}", param="input")
                messages.append(Message("tool", item["output"], name=names[call_id], tool_call_id=call_id))
    return messages
