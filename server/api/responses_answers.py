"""What `openapi.json` says of the answers of /v1/responses and /v1/conversations. Routes send plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Object = dict[str, Any]


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})


class InputDetails(_Answer):
    """Of the input tokens."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(_Answer):
    """Of the output tokens."""

    reasoning_tokens: int


class ResponseUsage(_Answer):
    """Token counts; input is the whole context."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(_Answer):
    """Why a response has failed."""

    code: str
    message: str


class IncompleteDetails(_Answer):
    """Why a response is incomplete."""

    reason: Literal["max_output_tokens"]


class ResponseObject(_Answer):
    """A response: what it was asked with, and its output items."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseFailure | None
    incomplete_details: IncompleteDetails | None
    output: list[Object]
    usage: ResponseUsage | None
    model: str
    background: Literal[False]
    conversation: Object | None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Object
    safety_identifier: str | None
    service_tier: Literal["default"]
    store: bool
    temperature: float
    text: Object
    tool_choice: Literal["none", "auto", "required"] | Object
    tools: list[Object]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    user: str | None


class InputTokensObject(_Answer):
    """What a response would read."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class ItemObject(BaseModel):
    """A message, a call, the output of one, or thoughts."""

    model_config = ConfigDict(extra="allow")

    id: str
    type: str


class ItemList(_Answer):
    """One page of items."""

    object: Literal["list"]
    data: list[Object]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ConversationObject(_Answer):
    """A conversation."""

    id: str
    object: Literal["conversation"]
    created_at: int
    metadata: dict[str, str]


class Deleted(_Answer):
    """What was forgotten."""

    id: str
    object: Literal["response", "conversation.deleted"]
    deleted: Literal[True]
