"""POST /v1/completions."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response

from ..answer import Answer
from ..generation import Delta, Finish, Generation
from ..served_model import ServedModel
from ..service import Service
from ..text.reasoning import Piece
from .completion_schemas import CompletionBody
from .logprobs import Entry, Listing, legacy_logprobs
from .openapi import Completion, answers
from .schemas import SessionHeader
from .sse import DeltaStream, json_answer, nobody, whole

router = APIRouter(tags=["completions"])
DEFAULT_MAX_TOKENS = 16


@router.post("/v1/completions", summary="Continue a text", responses=answers(Completion, streamed=True))
async def create_completion(body: CompletionBody, request: Request, session: SessionHeader = None) -> Response:
    body = body.in_session(session)
    service: Service = request.app.state.service
    model = service.model
    tuned_state = service.tuned_state(body.model, body.state)
    prompts = [await service.prompt(prompt, param="prompt") for prompt in body.prompts]
    grammar = body.constraint()
    sampling = body.sampling(
        max_tokens=service.completion_limit(body.max_tokens, default=DEFAULT_MAX_TOKENS, param="max_tokens"),
        vocab_size=model.vocab_size,
        end_token=model.tokenizer.eos_token_id,
        uncounted_ids=model.uncounted_ids,
        logprobs=body.logprobs if body.best_of in (None, body.choices) else body.logprobs or 0,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=await service.check(grammar),
    )
    answer_id = f"cmpl-{uuid.uuid4().hex}"
    tenant = request.state.tenant
    async with service.turn(answer_id, body.session_id, tenant=tenant, tuned_state=tuned_state) as turn:
        if turn is not None:
            turn.prompt_ids = prompts[0]
        generation = await service.generate(
            answer_id,
            prompts,
            [sampling if body.seed is not None else replace(sampling, seed=secrets.randbits(63)) for _ in prompts],
            lambda: Answer(model.tokenizer, body.stop_strings),
            choices=body.best_of or body.choices,
            tuned_state=tuned_state,
            tenant=tenant,
            arrival=request.state.arrival,
            cache=body.cache is not False,
            turn=turn,
            grammar=grammar,
        )
    answer = CompletionAnswer(body, model, generation)
    if body.stream:
        return DeltaStream(generation, answer.chunks, answer.last, grace_s=service.config.shutdown_grace)
    if not await whole(request, generation, answer.add):
        return nobody()
    return json_answer(answer.whole())


class CompletionAnswer:
    """Deltas of one request as chunks, or gathered into one body."""

    def __init__(self, body: CompletionBody, model: ServedModel, generation: Generation) -> None:
        self._body = body
        self._model = model
        self._generation = generation
        self._each = body.best_of or body.choices
        self._echoed = [""] * len(generation.prompts)
        if body.echo:
            self._echoed = [
                prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt) for prompt in body.prompts
            ]
        self._choices = [
            _Choice(index, Listing(model.tokenizer, len(self._echoed[index // self._each])))
            for index in range(generation.choices)
        ]
        self._head = {
            "id": generation.id,
            "object": "text_completion",
            "created": generation.created,
            "model": body.model,
            "system_fingerprint": model.system_fingerprint,
        }

    def chunks(self, deltas: list[Delta]) -> Iterator[dict[str, Any]]:
        """What a stream says of these deltas."""
        usage = {"usage": None} if self._body.include_usage else {}
        for delta in deltas:
            choice = self._choices[delta.choice]
            first = not choice.begun
            text, entries, token_ids = self._new(delta)
            if not (first or text or entries or token_ids or delta.finish):
                continue
            shown = self._shape(delta.choice, text, entries, delta.finish)
            if self._body.return_token_ids:
                shown["token_ids"] = token_ids
                if first:
                    shown["prompt_token_ids"] = self._generation.prompts[delta.choice // self._each]
            yield {**self._head, "choices": [shown], **usage}

    def last(self) -> Iterator[dict[str, Any]]:
        """The usage chunk, when it was asked for."""
        if self._body.include_usage:
            yield {**self._head, "choices": [], "usage": self._generation.usage.as_dict()}

    def add(self, delta: Delta) -> None:
        """Gather a delta of an answer that is sent whole."""
        choice = self._choices[delta.choice]
        text, entries, token_ids = self._new(delta)
        choice.texts.append(text)
        choice.entries += entries
        choice.token_ids += token_ids
        choice.drawn += len(delta.drawn)
        choice.logprob += sum(event.logprobs.logprob for event in delta.drawn if event.logprobs is not None)
        choice.finish = delta.finish

    def whole(self) -> dict[str, Any]:
        """The body, after the last delta."""
        shown: list[dict[str, Any]] = []
        for choice in self._best():
            one = self._shape(len(shown), "".join(choice.texts), choice.entries, choice.finish)
            if self._body.return_token_ids:
                one["token_ids"] = choice.token_ids
                one["prompt_token_ids"] = self._generation.prompts[choice.index // self._each]
            shown.append(one)
        return {**self._head, "choices": shown, "usage": self._generation.usage.as_dict()}

    def _new(self, delta: Delta) -> tuple[str, list[Entry], list[int]]:
        """Text, entries and, when asked for, token ids of a delta; an echoed prompt comes with the first one."""
        choice, number = self._choices[delta.choice], delta.choice // self._each
        text = "".join(piece.text for piece in delta.pieces if isinstance(piece, Piece))
        entries: list[Entry] = []
        if not choice.begun:
            choice.begun = True
            text = self._echoed[number] + text
            if self._body.echo and self._body.logprobs is not None:
                prompt = self._generation.prompts[number]
                entries += choice.listing.of_prompt(prompt, self._generation.prompt_logprobs[number])
        if self._body.logprobs is not None:
            entries += choice.listing.of_delta(delta, end_token=True)
        return text, entries, delta.token_ids if self._body.return_token_ids else []

    def _shape(self, index: int, text: str, entries: list[Entry], finish: Finish | None) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else legacy_logprobs(self._model.tokenizer, entries)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}

    def _best(self) -> Iterator[_Choice]:
        """The `n` choices of each prompt with the highest log-probability a token; all, in order, without best_of."""
        for start in range(0, len(self._choices), self._each):
            choices = self._choices[start : start + self._each]
            if self._each > self._body.choices:
                choices = sorted(choices, key=lambda choice: -choice.mean_logprob)[: self._body.choices]
            yield from choices


class _Choice:
    """What has been gathered of one choice."""

    def __init__(self, index: int, listing: Listing) -> None:
        self.index = index
        self.listing = listing
        self.begun = False
        self.texts: list[str] = []
        self.entries: list[Entry] = []
        self.token_ids: list[int] = []
        self.drawn = 0
        self.logprob = 0.0
        self.finish: Finish | None = None

    @property
    def mean_logprob(self) -> float:
        """Per token drawn; lowest for nothing at all."""
        return self.logprob / self.drawn if self.drawn else float("-inf")
