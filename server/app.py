"""`create_app`: lifespan, routes, error handlers, layers; no logic.

The layers of a request, outermost first: context (id, log line, metrics), CORS, gate (closed by SIGTERM), keys, body,
routes. `request.app.state` holds `config`, `engine`, `metrics`, `gate`, `service`, `loading`, `responses`,
`demo` and `started`;
`request.state` holds `request_id`, `arrival` and `tenant`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from .. import __version__
from .api import (
    chat,
    completions,
    conversations,
    docs,
    embeddings,
    health,
    models,
    responses,
    sessions,
    tokens,
)
from .api.auth import KeyGuard, read_keys
from .api.openapi import ERRORS
from .api.page import page_router
from .config import Config
from .edge.answers import error_headers
from .edge.body import BodyGuard
from .edge.context import RequestContext
from .edge.cors import Cors
from .edge.gate import Gate, GateKeeper
from .engine.client import EngineClient
from .engine.request import EngineInfo
from .errors import InvalidRequest, MethodNotAllowed, NotFound, NotReady, RookeryError, StartupError
from .metrics import Metrics
from .responses.run import Runs
from .responses.store import ResponseStore
from .served_model import ServedModel
from .service import Service

BODIES_AT_ONCE = 16
"""Full-size bodies that may be in memory while they are read."""
_STATE_HEADER_BYTES = 64 * 2**10


_FAULTS = {
    ("model_attributes_type", None): "must be an object",
    ("dict_type", None): "must be an object",
    ("list_type", None): "must be an array",
    ("string_too_short", 1): "must not be empty",
    ("too_short", 1): "must not be empty",
}
"""pydantic's faults, by their type and limit, whose own words speak of Python."""
_BODY_FAULTS = {"model_attributes_type": "the body must be a JSON object", "missing": "the request has no body"}


def create_app(config: Config, engine: EngineClient, *, demo: bool = False) -> FastAPI:
    """The ASGI application over one engine.

    Args:
        config: `served_model_name` holds at least one name.
        demo: the model is the built-in one.

    Raises:
        StartupError: the API keys cannot be read.
    """
    app = FastAPI(
        title="Rookery",
        version=__version__,
        description="RWKV language models over the OpenAI API.",
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
        responses=ERRORS,
        redirect_slashes=False,  # a redirect would be built from the Host header
    )
    app.state.config = config
    app.state.engine = engine
    app.state.demo = demo
    app.state.loading = None
    app.state.started = int(time.time())
    app.state.gate = Gate()
    app.state.metrics = Metrics(
        lambda: engine.stats, lambda: engine.info, model_name=(*config.served_model_name, "default")[0]
    )
    app.state.service = Service(config, engine, app.state.metrics)
    store = ResponseStore(
        config.data_dir and config.data_dir / "responses.sqlite",
        max_turns=config.max_responses,
        max_bytes=config.response_storage,
        ttl_s=config.response_ttl or None,
        forgotten=app.state.metrics.response_evictions.inc,
    )
    app.state.responses = Runs(store)
    for part in (chat, completions, responses, conversations, embeddings, sessions, tokens, models, health, docs):
        app.include_router(part.router)
    app.include_router(page_router())
    app.add_exception_handler(RookeryError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    # the last one added is the outermost
    app.add_middleware(
        BodyGuard,
        limit_bytes=config.max_body,
        memory_bytes=BODIES_AT_ONCE * config.max_body,
        file_bytes=lambda: _largest_state(engine.info),
    )
    app.add_middleware(KeyGuard, digests=read_keys(config))
    app.add_middleware(GateKeeper, gate=app.state.gate)
    if config.cors_origin:
        app.add_middleware(
            Cors,
            allow_origins=list(config.cors_origin),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(RequestContext, metrics=app.state.metrics)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the engine; `state.loading` is done when requests are answered, with StartupError when they never will."""
    await app.state.engine.start()
    app.state.loading = asyncio.create_task(_load(app))
    try:
        yield
    finally:
        app.state.loading.cancel()
        with suppress(asyncio.CancelledError, NotReady, StartupError):
            await app.state.loading
        await app.state.engine.close(0.0)
        await app.state.responses.store.close()


def _largest_state(info: EngineInfo | None) -> int:
    """Bytes that an exported state of this model may have: tensors of float32 at most, and a header."""
    return _STATE_HEADER_BYTES + (0 if info is None else info.state_bytes + 4 * 2 * info.layers * info.width)


async def _load(app: FastAPI) -> ServedModel:
    """Everything that must be there before requests are answered."""
    await app.state.responses.store.claim()
    model: ServedModel = await app.state.service.load()
    return model


def _respond(error: RookeryError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error_headers(error))


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RookeryError)
    return _respond(error)


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """FastAPI's 422 as OpenAI's 400: the first fault, its field as a dotted path, nothing of the input repeated."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    param = _field(fault["loc"], error.body, missing=fault["type"] == "missing")
    message = _FAULTS.get((fault["type"], fault.get("ctx", {}).get("min_length")), "")
    message = message or str(fault["msg"]).removeprefix("Value error, ")[:500]
    if param is None:
        message = _BODY_FAULTS.get(fault["type"], message)
    code = "missing_required_parameter" if fault["type"] == "missing" else None
    return _respond(InvalidRequest(f"{param}: {message}" if param else message, param=param, code=code))


def _field(location: tuple[int | str, ...], body: Any, *, missing: bool) -> str | None:
    """`messages.0.content` from pydantic's location, which also names the branches of unions it tried."""
    parts: list[str] = []
    where, rest = location[:1], list(location[1:])
    if where != ("body",):
        return ".".join(map(str, rest)) or None
    for index, part in enumerate(rest):
        if isinstance(body, dict) and part in body:
            body = body[part]
        elif isinstance(body, list) and isinstance(part, int) and part < len(body):
            body = body[part]
        elif not (missing and index == len(rest) - 1):
            continue
        parts.append(str(part))
    return ".".join(parts)[:200] or None


async def _answer_http(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allow = ", ".join(sorted(_methods(request)))
        answer = _respond(MethodNotAllowed(f"this route takes {allow}, not {request.method[:20]}"))
        answer.headers["allow"] = allow
        return answer
    if error.status_code == 404:
        return _respond(NotFound("there is no such route; GET /docs lists them"))
    refusal = InvalidRequest(str(error.detail)[:500])
    refusal.status = error.status_code
    return _respond(refusal)


def _methods(request: Request) -> set[str]:
    """Methods that some route of this path takes."""
    return {
        method
        for method in ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
