"""POST /v1/responses, and the responses it has stored: GET, DELETE, cancel, input_items."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Request, Response

from ..errors import InvalidRequest, NotFound, RookeryError, UnsupportedParameter
from ..generation import Delta
from ..responses.items import Item
from ..responses.output import Event
from ..responses.run import Run, Runs
from ..responses.turns import Json
from ..service import Service
from ..text.reasoning import Piece as TextPiece
from ..text.tokenizer import Tokenizer
from .item_schemas import ItemId
from .logprobs import Entry, Listing, chat_logprobs
from .openapi import answers
from .responses_answers import Deleted, InputTokensObject, ItemList, ResponseObject
from .responses_schemas import ID_PATTERN, ResponseBody
from .sse import GenerationStream, json_answer, nobody, whole

router = APIRouter(tags=["responses"])

_PARAMS = {"messages": "input", "reasoning_effort": "reasoning.effort"}
"""Fields as the chat path names them, and what they are called here."""


@router.post(
    "/v1/responses",
    summary="Answer, going on from an earlier response or a conversation",
    responses=answers(ResponseObject, streamed=True),
)
async def create_response(body: ResponseBody, request: Request) -> Response:
    service: Service = request.app.state.service
    runs: Runs = request.app.state.responses
    tenant: str = request.state.tenant
    conversation = body.conversation_id
    if conversation is not None:
        runs.reserve(tenant, conversation)
    try:
        run = await _start(body, request, service, runs, tenant)
    except BaseException:  # a cancel too: the conversation must be free for its next writer
        runs.release(tenant, conversation)
        raise
    runs.add(run)
    if body.stream:
        return GenerationStream(_stream(run), run.close, grace_s=service.config.shutdown_grace)
    try:
        if not await whole(request, run.generation, run.add):
            return nobody()
        return json_answer(await run.complete())
    except RookeryError as error:
        if not run.cancelled:
            raise
        return json_answer(await run.ended(error))
    finally:
        run.close()


@router.post(
    "/v1/responses/input_tokens", summary="Count what a response would read", responses=answers(InputTokensObject)
)
async def count_input_tokens(body: ResponseBody, request: Request) -> Response:
    service: Service = request.app.state.service
    service.tuned_state(body.model, body.state)
    _, history = await _continued(body, _runs(request), request.state.tenant)
    with _named_as_here():
        _, prompt_ids = await service.render(body.chat([*history, *body.items()]))
    return json_answer({"object": "response.input_tokens", "input_tokens": len(prompt_ids)})


@router.get("/v1/responses/{id}", summary="A stored response", responses=answers(ResponseObject))
async def get_response(id: str, request: Request, stream: bool = False) -> Response:
    if stream:
        raise UnsupportedParameter("a stored response is not streamed again", param="stream")
    return json_answer(await _runs(request).get(request.state.tenant, known(id)))


@router.delete("/v1/responses/{id}", summary="Forget a stored response", responses=answers(Deleted))
async def delete_response(id: str, request: Request) -> Response:
    await _runs(request).delete(request.state.tenant, known(id))
    return json_answer({"id": id, "object": "response", "deleted": True})


@router.post("/v1/responses/{id}/cancel", summary="End a response in progress", responses=answers(ResponseObject))
async def cancel_response(id: str, request: Request) -> Response:
    return json_answer(await _runs(request).cancel(request.state.tenant, known(id)))


Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[ItemId | None, Query()]
Order = Literal["asc", "desc"]


@router.get("/v1/responses/{id}/input_items", summary="The items a response was made from", responses=answers(ItemList))
async def list_input_items(
    id: str, request: Request, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> Response:
    items = await _runs(request).store.context(request.state.tenant, known(id))
    return json_answer(page(items, limit=limit, after=after, order=order))


def known(id: str) -> str:
    """An id from a path, when it can be one of ours.

    Raises:
        NotFound: it cannot.
    """
    if not re.fullmatch(ID_PATTERN, id):
        raise NotFound("there is nothing of this id")
    return id


def page(items: Sequence[Item], *, limit: int, after: str | None, order: Order) -> Json:
    """One page of a list of items, given oldest first.

    Raises:
        InvalidRequest: `after` is none of them.
    """
    ordered = items if order == "asc" else items[::-1]
    start = 0
    if after is not None:
        ids = [item["id"] for item in ordered]
        if after not in ids:
            raise InvalidRequest("after is the id of none of the items", param="after")
        start = ids.index(after) + 1
    shown = ordered[start : start + limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": start + limit < len(ordered),
    }


def _runs(request: Request) -> Runs:
    runs: Runs = request.app.state.responses
    return runs


async def _start(body: ResponseBody, request: Request, service: Service, runs: Runs, tenant: str) -> Run:
    """Admit a response: its generation is in the engine when this returns."""
    model = service.model
    tuned_state = service.tuned_state(body.model, body.state)
    max_tokens = service.completion_limit(body.max_output_tokens, param="max_output_tokens")
    parent, history = await _continued(body, runs, tenant)
    items = body.items()
    with _named_as_here():
        chat = body.chat([*history, *items])
        prompt, prompt_ids = await service.render(chat)
    stop = (*body.stop_strings, *(() if body.ignore_eos else model.template.stop))
    grammar = body.shape(chat, prompt)
    sampling = body.sampling(
        max_tokens=max_tokens,
        vocab_size=model.vocab_size,
        end_token=model.tokenizer.eos_token_id,
        uncounted_ids=model.uncounted_ids,
        logprobs=body.logprobs,
        grammar=await service.check(grammar),
    )
    generation = await service.generate(
        f"resp_{uuid.uuid4().hex}",
        [prompt_ids],
        [sampling],
        lambda: chat.answer(model.tokenizer, prompt, stop),
        choices=1,
        tuned_state=tuned_state,
        tenant=tenant,
        arrival=request.state.arrival,
        cache=body.cache is not False,
        boundaries=service.boundaries(prompt, prompt_ids),
        grammar=grammar,
    )
    return Run(
        runs,
        generation,
        _settings(body),
        tenant=tenant,
        input=items,
        parent=parent,
        conversation=body.conversation_id,
        store=body.store is not False,
        logprobs=None if body.logprobs is None else _TextLogprobs(model.tokenizer),
    )


async def _continued(body: ResponseBody, runs: Runs, tenant: str) -> tuple[str | None, list[Item]]:
    """The turn that a response goes on from, and all items up to its end."""
    if body.previous_response_id is not None:
        return body.previous_response_id, await runs.store.history(tenant, body.previous_response_id)
    if body.conversation_id is None:
        return None, []
    try:
        found, history = await runs.store.conversation(tenant, body.conversation_id)
    except NotFound as error:
        error.param = "conversation"
        raise
    return found.head, history


@contextmanager
def _named_as_here() -> Iterator[None]:
    """Errors of the chat path name the fields of this route."""
    try:
        yield
    except InvalidRequest as error:
        error.param = _PARAMS.get(error.param or "", error.param)
        raise


async def _stream(run: Run) -> AsyncGenerator[bytes]:
    yield _written(run.begin())
    try:
        async for deltas in run.generation.deltas():
            data = _written(run.read(deltas))
            if data:
                yield data
    except RookeryError as error:
        yield _written(await run.failure(error))
    else:
        yield _written(await run.last())


def _written(events: Iterator[Event] | Sequence[Event]) -> bytes:
    """Server-sent events, each named after its type."""
    return b"".join(b"event: %b\ndata: %b\n\n" % (event["type"].encode(), orjson.dumps(event)) for event in events)


class _TextLogprobs:
    """Lists the tokens of a response's text with the text they belong to; not those of thoughts, tags and calls."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._listing = Listing(tokenizer)
        self._waiting: list[Entry] = []

    def __call__(self, delta: Delta, continued: bool) -> list[Json]:
        entries = self._waiting = [*self._waiting, *self._listing.of_delta(delta, end_token=False)]
        text = sum(
            len(piece.text) for piece in delta.pieces if isinstance(piece, TextPiece) and piece.kind == "content"
        )
        if text or delta.pieces or not continued:
            self._waiting = []
        if not text:
            return []
        if not continued:  # a tag or blank lines before the text came with it
            ends = [*(entry.offset for entry in entries[1:]), delta.characters]
            entries = [entry for entry, end in zip(entries, ends, strict=True) if end > delta.characters - text]
        return chat_logprobs(self._tokenizer, entries)


def _settings(body: ResponseBody) -> Json:
    """What the response object repeats of the request, with the defaults that were used."""
    choice = body.tool_choice or "auto"
    return {
        "model": body.model,
        "background": False,
        "conversation": None if body.conversation_id is None else {"id": body.conversation_id},
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": body.max_tool_calls,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "prompt_cache_key": body.prompt_cache_key,
        "reasoning": {"effort": body.effort, "summary": None},
        "safety_identifier": body.safety_identifier,
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "text": {"format": body.format.model_dump(by_alias=True, exclude_none=True), "verbosity": "medium"},
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "truncation": "disabled",
        "user": body.user,
    }
