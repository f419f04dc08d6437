"""Error answers from below the routes: over ASGI, and as bytes where there is no ASGI request yet."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from starlette.types import Send

from ..errors import RookeryError
from ..logs import new_request_id


def error_headers(error: RookeryError) -> dict[str, str]:
    """Headers that belong to an error: when to come back, how to authenticate."""
    headers = {}
    if error.status in (429, 503):
        headers["retry-after"] = str(error.retry_after_s or 1)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


async def send_error(send: Send, error: RookeryError, *, close: bool = False, request_id: str | None = None) -> None:
    """Answer an ASGI request with OpenAI's error body; `close` ends the connection after it.

    `request_id` is for layers outside the one that gives every answer its id.
    """
    body = orjson.dumps(error.body())
    headers = error_headers(error) | {"content-type": "application/json", "content-length": str(len(body))}
    if close:
        headers["connection"] = "close"
    if request_id is not None:
        headers["x-request-id"] = request_id
    start: dict[str, Any] = {
        "type": "http.response.start",
        "status": error.status,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body, "more_body": False})


def raw_error(error: RookeryError) -> bytes:
    """The same as a whole HTTP/1.1 response that closes the connection."""
    body = orjson.dumps(error.body())
    headers = error_headers(error) | {"content-type": "application/json", "content-length": str(len(body))}
    headers["x-request-id"] = new_request_id()
    lines = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", "connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
