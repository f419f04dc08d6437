"""POST /v1/chat/completions."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from ..generation import Delta, Finish, Generation
from ..served_model import ServedModel
from ..service import Service
from ..text.reasoning import Piece
from ..text.tools import ToolCallDelta
from .chat_schemas import ChatBody
from .logprobs import Entry, Listing, chat_logprobs
from .openapi import ChatCompletion, answers
from .schemas import SessionHeader
from .sse import DeltaStream, json_answer, nobody, whole

router = APIRouter(tags=["chat"])


@router.post("/v1/chat/completions", summary="Answer a chat", responses=answers(ChatCompletion, streamed=True))
async def create_chat_completion(body: ChatBody, request: Request, session: SessionHeader = None) -> Response:
    body = body.in_session(session)
    service: Service = request.app.state.service
    model = service.model
    tuned_state = service.tuned_state(body.model, body.state)
    limit_name, limit = body.limit
    max_tokens = service.completion_limit(limit, param=limit_name)
    answer_id = f"chatcmpl-{uuid.uuid4().hex}"
    tenant = request.state.tenant
    async with service.turn(answer_id, body.session_id, tenant=tenant, tuned_state=tuned_state) as turn:
        chat = replace(body.chat(), continues=turn is not None and turn.continues)
        prompt, prompt_ids = await service.render(chat)
        if turn is not None:
            turn.prompt_ids = prompt_ids
            turn.told = None if chat.continue_final else partial(service.remembered, chat)
        stop = (*body.stop_strings, *(() if body.ignore_eos else model.template.stop))
        grammar = body.constraint(prompt)
        sampling = body.sampling(
            max_tokens=max_tokens,
            vocab_size=model.vocab_size,
            end_token=model.tokenizer.eos_token_id,
            uncounted_ids=model.uncounted_ids,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            grammar=await service.check(grammar),
        )
        generation = await service.generate(
            answer_id,
            [prompt_ids],
            [sampling],
            lambda: chat.answer(model.tokenizer, prompt, stop),
            choices=body.choices,
            tuned_state=tuned_state,
            tenant=tenant,
            arrival=request.state.arrival,
            cache=body.cache is not False,
            boundaries=service.boundaries(prompt, prompt_ids),
            turn=turn,
            grammar=grammar,
        )
    answer = ChatAnswer(body, model, generation)
    if body.stream:
        return DeltaStream(generation, answer.chunks, answer.last, grace_s=service.config.shutdown_grace)
    if not await whole(request, generation, answer.add):
        return nobody()
    return json_answer(answer.whole())


class ChatAnswer:
    """Deltas of one request as chunks, or gathered into one body."""

    def __init__(self, body: ChatBody, model: ServedModel, generation: Generation) -> None:
        self._body = body
        self._model = model
        self._generation = generation
        self._choices = [_Choice(index, Listing(model.tokenizer)) for index in range(generation.choices)]
        self._head = {
            "id": generation.id,
            "created": generation.created,
            "model": body.model,
            "system_fingerprint": model.system_fingerprint,
        }

    def chunks(self, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
        """What a stream says of these deltas: the role alone first, then what is new, the finish reason alone last."""
        for delta in deltas:
            choice = self._choices[delta.choice]
            if not choice.begun:
                choice.begun = True
                prompt_ids = self._generation.prompts[0] if self._body.return_token_ids else None
                opening = None if self._body.forced_tools else ""  # as OpenAI's: nothing will be said
                yield self._chunk(choice, {"role": "assistant", "content": opening}, prompt_token_ids=prompt_ids)
            new = _message(delta.pieces, streamed=True)
            entries = self._entries(choice, delta)
            token_ids = delta.token_ids if self._body.return_token_ids else None
            choice.called = choice.called or "tool_calls" in new
            if new or entries or token_ids:
                yield self._chunk(choice, new, entries=entries, token_ids=token_ids)
            if delta.finish is not None:
                yield self._chunk(choice, {}, finish=_finish(delta.finish, choice.called))

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage chunk, when it was asked for."""
        if self._body.include_usage:
            yield {
                **self._head,
                "object": "chat.completion.chunk",
                "choices": [],
                "usage": self._generation.usage.as_dict(),
            }

    def add(self, delta: Delta) -> None:
        """Gather a delta of an answer that is sent whole."""
        choice = self._choices[delta.choice]
        choice.pieces += delta.pieces
        choice.entries += self._entries(choice, delta)
        choice.token_ids += delta.token_ids
        choice.finish = delta.finish

    def whole(self) -> dict[str, Any]:
        """The body, after the last delta."""
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._shape(choice) for choice in self._choices],
            "usage": self._generation.usage.as_dict(),
        }

    def _entries(self, choice: _Choice, delta: Delta) -> list[Entry]:
        return choice.listing.of_delta(delta, end_token=False) if self._body.logprobs else []

    def _logprobs(self, entries: list[Entry]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        return {"content": chat_logprobs(self._model.tokenizer, entries), "refusal": None}

    def _chunk(
        self,
        choice: _Choice,
        delta: dict[str, Any],
        *,
        entries: list[Entry] | None = None,
        finish: str | None = None,
        **extra: object,
    ) -> dict[str, Any]:
        shown = {
            "index": choice.index,
            "delta": delta,
            "logprobs": self._logprobs(entries) if entries else None,
            "finish_reason": finish,
            **{name: value for name, value in extra.items() if value is not None},
        }
        chunk: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": [shown]}
        if self._body.include_usage:
            chunk["usage"] = None
        return chunk

    def _shape(self, choice: _Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": None, "refusal": None, **_message(choice.pieces, streamed=False)}
        called = "tool_calls" in message
        if not called:
            message["content"] = message["content"] or ""
        shown = {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice.entries),
            "finish_reason": _finish(choice.finish, called),
        }
        if self._body.return_token_ids:
            shown |= {"prompt_token_ids": self._generation.prompts[0], "token_ids": choice.token_ids}
        return shown


@dataclass(slots=True)
class _Choice:
    """What has been gathered of one choice."""

    index: int
    listing: Listing
    begun: bool = False
    called: bool = False
    pieces: list[Piece | ToolCallDelta] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    finish: Finish | None = None


def _finish(finish: Finish | None, called: bool) -> str | None:
    """A choice that called tools and was not cut short ended for that."""
    return "tool_calls" if called and finish == "stop" else finish


def _message(pieces: list[Piece | ToolCallDelta], *, streamed: bool) -> dict[str, Any]:
    """The fields of a message, or of a chunk's delta, that these pieces make; only those that have something."""
    calls: dict[int, dict[str, Any]] = {}
    arguments: dict[int, list[str]] = {}
    for piece in pieces:
        if isinstance(piece, Piece):
            continue
        call = calls.setdefault(piece.index, {"function": {}})
        if piece.id is not None:
            call |= {"id": piece.id, "type": "function"}
        if piece.name is not None:
            call["function"]["name"] = piece.name
        arguments.setdefault(piece.index, []).append(piece.arguments)
    for index, call in calls.items():
        call["function"]["arguments"] = "".join(arguments[index])
    message: dict[str, Any] = {}
    for kind, name in (("reasoning", "reasoning_content"), ("content", "content")):
        text = "".join(piece.text for piece in pieces if isinstance(piece, Piece) and piece.kind == kind)
        if text:
            message[name] = text
    if calls:
        message["tool_calls"] = [{"index": index, **call} if streamed else call for index, call in calls.items()]
    return message
