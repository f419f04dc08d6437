"""/v1/sessions: what the states of a key's conversations are, and what can be done with them as a whole."""

from __future__ import annotations

import re
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from ..engine.questions import (
    DeleteSession,
    ExportSession,
    ForkSession,
    ImportSession,
    ListSessions,
    Question,
    SessionView,
    ShowSession,
    Told,
)
from ..errors import InvalidRequest, NotFound
from ..service import Service
from .openapi import answers
from .schemas import Body, SessionId
from .sse import json_answer

router = APIRouter(tags=["sessions"])
STATE_MEDIA_TYPE = "application/octet-stream"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")


class Session(BaseModel):
    """What is known of a session."""

    id: str
    object: Literal["session"]
    created: int
    updated: int
    tokens: int
    turns: int
    bytes: int
    state: str | None
    forked_from: str | None


class SessionList(BaseModel):
    """A page of sessions, by id."""

    object: Literal["list"]
    data: list[Session]
    first_id: str | None
    last_id: str | None
    has_more: bool


class SessionDeleted(BaseModel):
    """Answer of DELETE /v1/sessions/{id}."""

    id: str
    object: Literal["session.deleted"]
    deleted: Literal[True]


class ForkBody(Body):
    """Body of POST /v1/sessions/{id}/fork."""

    id: SessionId | None = Field(None, description="Name of the new session; default: one is made.")


@router.get("/v1/sessions", summary="List sessions", responses=answers(SessionList))
async def list_sessions(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str, Query(max_length=128)] = "",
) -> Response:
    told = await _ask(request, ListSessions(tenant=request.state.tenant, limit=limit + 1, after=after))
    shown = [_shape(view) for view in told.sessions[:limit]]
    return json_answer(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(told.sessions) > limit,
        }
    )


@router.get("/v1/sessions/{id}", summary="Show a session", responses=answers(Session))
async def show_session(id: str, request: Request) -> Response:
    told = await _ask(request, ShowSession(tenant=request.state.tenant, session=_known(id)))
    return json_answer(_shape(told.sessions[0]))


@router.delete("/v1/sessions/{id}", summary="Delete a session", responses=answers(SessionDeleted))
async def delete_session(id: str, request: Request) -> Response:
    await _ask(request, DeleteSession(tenant=request.state.tenant, session=_known(id)))
    return json_answer({"id": id, "object": "session.deleted", "deleted": True})


@router.post("/v1/sessions/{id}/fork", summary="Copy a session", responses=answers(Session))
async def fork_session(id: str, request: Request, body: ForkBody | None = None) -> Response:
    new = body.id if body is not None and body.id is not None else f"sess_{uuid.uuid4().hex}"
    told = await _ask(request, ForkSession(tenant=request.state.tenant, session=_known(id), new=new))
    return json_answer(_shape(told.sessions[0]))


@router.get("/v1/sessions/{id}/state", summary="Export a session's state")
async def export_session(id: str, request: Request) -> Response:
    """A safetensors file that says which model it belongs to."""
    told = await _ask(request, ExportSession(tenant=request.state.tenant, session=_known(id)))
    return Response(told.data, media_type=STATE_MEDIA_TYPE)


@router.put("/v1/sessions/{id}/state", summary="Import a state as a session", responses=answers(Session))
async def import_session(id: str, request: Request) -> Response:
    """The body is an exported file; it replaces the session of that name, if there is one."""
    if not _ID.fullmatch(id):
        raise InvalidRequest("a session's id is 1 to 128 letters, digits or . _ : - after the first", param="id")
    data = await request.body()
    told = await _ask(request, ImportSession(tenant=request.state.tenant, session=id, data=data))
    return json_answer(_shape(told.sessions[0]))


async def _ask(request: Request, question: Question) -> Told:
    service: Service = request.app.state.service
    return await service.engine.ask(question)


def _known(id: str) -> str:
    """An id that a session could have; of any other there is none."""
    if not _ID.fullmatch(id):
        raise NotFound("there is no such session", param="session_id")
    return id


def _shape(view: SessionView) -> dict[str, Any]:
    return {
        "id": view.id,
        "object": "session",
        "created": int(view.created),
        "updated": int(view.updated),
        "tokens": view.tokens,
        "turns": view.turns,
        "bytes": view.bytes,
        "state": view.tuned_state,
        "forked_from": view.parent,
    }
