"""/v1/conversations: named chains of turns that `POST /v1/responses` goes on with."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request, Response

from ..errors import NotFound
from ..responses.items import Item
from ..responses.run import Runs
from ..responses.store import ResponseStore
from ..responses.turns import Conversation, Turn
from .item_schemas import stored
from .openapi import answers
from .responses import After, Limit, Order, known, page
from .responses_answers import ConversationObject, Deleted, ItemList, ItemObject
from .responses_schemas import ConversationBody, ConversationItems, ConversationUpdate
from .sse import json_answer

router = APIRouter(tags=["responses"])


@router.post("/v1/conversations", summary="Begin a conversation", responses=answers(ConversationObject))
async def create_conversation(request: Request, body: ConversationBody | None = None) -> Response:
    body = body or ConversationBody()
    first = _turn(stored(body.items), parent=None) if body.items else None
    id = f"conv_{uuid.uuid4().hex}"
    made = await _store(request).create_conversation(request.state.tenant, id, body.metadata or {}, first)
    return json_answer(_shape(made))


@router.get("/v1/conversations/{id}", summary="A conversation", responses=answers(ConversationObject))
async def get_conversation(id: str, request: Request) -> Response:
    found, _ = await _store(request).conversation(request.state.tenant, known(id))
    return json_answer(_shape(found))


@router.post("/v1/conversations/{id}", summary="Change its metadata", responses=answers(ConversationObject))
async def update_conversation(id: str, body: ConversationUpdate, request: Request) -> Response:
    changed = await _store(request).update_conversation(request.state.tenant, known(id), body.metadata)
    return json_answer(_shape(changed))


@router.delete("/v1/conversations/{id}", summary="Forget a conversation, not its responses", responses=answers(Deleted))
async def delete_conversation(id: str, request: Request) -> Response:
    await _store(request).delete_conversation(request.state.tenant, known(id))
    return json_answer({"id": id, "object": "conversation.deleted", "deleted": True})


@router.get("/v1/conversations/{id}/items", summary="Its items", responses=answers(ItemList))
async def list_conversation_items(
    id: str, request: Request, limit: Limit = 20, after: After = None, order: Order = "desc"
) -> Response:
    _, items = await _store(request).conversation(request.state.tenant, known(id))
    return json_answer(page(items, limit=limit, after=after, order=order))


@router.post("/v1/conversations/{id}/items", summary="Add items to it", responses=answers(ItemList))
async def add_conversation_items(id: str, body: ConversationItems, request: Request) -> Response:
    runs: Runs = request.app.state.responses
    tenant, items = request.state.tenant, stored(body.items)
    runs.reserve(tenant, known(id))
    try:
        found, _ = await runs.store.conversation(tenant, id)
        await runs.store.put(tenant, _turn(items, parent=found.head), conversation=id)
    finally:
        runs.release(tenant, id)
    return json_answer(page(items, limit=len(items), after=None, order="asc"))


@router.get("/v1/conversations/{id}/items/{item_id}", summary="One of its items", responses=answers(ItemObject))
async def get_conversation_item(id: str, item_id: str, request: Request) -> Response:
    _, items = await _store(request).conversation(request.state.tenant, known(id))
    item = next((item for item in items if item["id"] == item_id), None)
    if item is None:
        raise NotFound(f"the conversation has no item {item_id[:128]!r}")
    return json_answer(item)


def _turn(items: list[Item], *, parent: str | None) -> Turn:
    """Items that no response was made from."""
    return Turn(id=f"turn_{uuid.uuid4().hex}", parent=parent, input=items, output=[], body={}, visible=False)


def _store(request: Request) -> ResponseStore:
    store: ResponseStore = request.app.state.responses.store
    return store


def _shape(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": conversation.id,
        "object": "conversation",
        "created_at": conversation.created,
        "metadata": dict(conversation.metadata),
    }
