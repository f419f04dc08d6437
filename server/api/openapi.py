"""What `openapi.json` says of answers: their shapes, the stream, and the one error body. Routes send plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Answer(BaseModel):
    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})


class ErrorDetail(_Answer):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    """The field at fault, as a dotted path."""
    code: str | None


class ErrorBody(_Answer):
    """Every error."""

    error: ErrorDetail


class CachedTokens(_Answer):
    """Of the prompt tokens."""

    cached_tokens: int


class ReasoningTokens(_Answer):
    """Of the completion tokens."""

    reasoning_tokens: int


class Usage(_Answer):
    """Token counts over all prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens
    completion_tokens_details: ReasoningTokens


class LegacyLogprobs(_Answer):
    """Lists of equal length, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TokenIdsOfChoice(BaseModel):
    """With `return_token_ids`."""

    prompt_token_ids: list[int] = []
    token_ids: list[int] = []


class CompletionChoice(TokenIdsOfChoice):
    """One continuation."""

    index: int
    text: str
    logprobs: LegacyLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(_Answer):
    """Answer of POST /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class PromptUsage(_Answer):
    """Token counts of an answer that is not drawn."""

    prompt_tokens: int
    total_tokens: int


class Embedding(_Answer):
    """One text as a vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Embeddings(_Answer):
    """Answer of POST /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: PromptUsage


class TopLogprob(_Answer):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """The token that came."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(_Answer):
    """One entry a token of the content."""

    content: list[TokenLogprob]
    refusal: None


class CalledFunction(_Answer):
    """Name and arguments, the latter JSON as text."""

    name: str
    arguments: str


class ToolCall(_Answer):
    """One call the model makes."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(_Answer):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = []


class ChatChoice(TokenIdsOfChoice):
    """One reply."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]


class ChatCompletion(_Answer):
    """Answer of POST /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Tokens(_Answer):
    """Answer of POST /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class PromptText(_Answer):
    """Answer of POST /detokenize and /apply_template."""

    prompt: str


class TokenizerInfo(_Answer):
    """Answer of GET /tokenizer_info."""

    tokenizer_class: str
    vocab_size: int
    eos_token_id: int | None
    eos_token: str | None
    bos_token: str | None
    fingerprint: str
    chat_template: str
    stop: list[str]


class Liveness(_Answer):
    """Answer of GET /health."""

    status: Literal["ok", "failed"]


class Readiness(_Answer):
    """Answer of GET /ready."""

    status: Literal["ready", "not_ready", "unresponsive", "failed"]
    phase: str
    progress: float | None
    silent_s: float = 0.0


Responses = dict[int | str, dict[str, Any]]

ERRORS: Responses = {
    "4XX": {"model": ErrorBody, "description": "What the client sent is wrong."},
    "5XX": {"model": ErrorBody, "description": "Not now, with `Retry-After`; or a step of the engine failed."},
}
"""Of every route."""


def answers(body: type[BaseModel], *, streamed: bool = False) -> Responses:
    """`responses` of a route that writes its answer itself."""
    content: dict[str, Any] = {"text/event-stream": {"schema": {}}} if streamed else {}
    return {200: {"model": body, "description": "The answer.", "content": content}}
