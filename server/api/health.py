"""Whether the server lives, whether it is ready, what it counts, and what it is.

`/health` asks the HTTP process and is false only when the engine has failed for good. `/ready` asks the engine: its
phase, and when it last spoke.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from ... import __version__
from ..errors import StorageFailed
from .openapi import Liveness, Readiness, Responses, answers

router = APIRouter()

SILENT_LIMIT_S = 30.0
"""An engine that has not spoken for so long is not ready; a long step on a slow machine stays below it."""

_METRICS: Responses = {200: {"description": "Prometheus' text form.", "content": {"text/plain": {}}}}


def _answers(body: type[BaseModel]) -> Responses:
    """The same shape whether all is well or not."""
    return {**answers(body), 503: {"model": body, "description": "Not now."}}


@router.get("/health", summary="Whether the server lives", tags=["server"], responses=_answers(Liveness))
@router.head("/health", include_in_schema=False)
async def health(request: Request) -> Response:
    engine = request.app.state.engine
    if engine.status.phase == "failed":
        return JSONResponse({"status": "failed"}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/ready", summary="Whether requests are answered", tags=["server"], responses=_answers(Readiness))
@router.head("/ready", include_in_schema=False)
async def ready(request: Request) -> Response:
    engine = request.app.state.engine
    phase, progress = engine.status.phase, engine.status.progress
    silent_s = round(engine.silent_s, 1)
    loading = request.app.state.loading
    if phase == "ready" and loading is not None and not loading.done():
        phase, progress = "warming_up", None  # the engine is; tokenizer and template are not yet
    if phase == "ready" and silent_s <= SILENT_LIMIT_S:
        return JSONResponse({"status": "ready", "phase": phase, "progress": 1.0, "silent_s": silent_s})
    status = "unresponsive" if phase == "ready" else "failed" if phase == "failed" else "not_ready"
    body: dict[str, Any] = {"status": status, "phase": phase, "progress": progress}
    return JSONResponse(body, status_code=503, headers={"Retry-After": "1"})


@router.get("/metrics", summary="Prometheus metrics", tags=["server"], responses=_METRICS)
async def metrics(request: Request) -> Response:
    measured = request.app.state.metrics
    with suppress(StorageFailed):  # then what was last known of it
        turns, size_bytes = await request.app.state.responses.store.size()
        measured.responses.set(turns)
        measured.response_bytes.set(size_bytes)
    return Response(measured.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/version", summary="The version of this server", tags=["server"])
async def version() -> dict[str, str]:
    return {"version": __version__}
