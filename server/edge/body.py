"""Request bodies, before a handler sees them: form, size and whether they are JSON that can be trusted to be handled.

A body is read whole, within the limit, and handed on as one message. What a strict parser refuses is refused here:
bad UTF-8, NaN and Infinity, lone surrogates, and nesting so deep that recursive code behind would fall over.
"""

from __future__ import annotations

from collections.abc import Callable

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import BodyTooLarge, InvalidRequest, NotReady, RookeryError, UnsupportedMediaType
from .answers import send_error

MAX_NESTING = 128
"""Levels of arrays and objects; a JSON schema nested forty deep stays below it."""


class BodyGuard:
    """Reads and checks bodies.

    Args:
        limit_bytes: largest body of JSON.
        file_bytes: tells the largest exported state; None is `limit_bytes` too.
        memory_bytes: bytes of bodies that are being read at the same time, over all connections; beyond it new ones
            are refused with 503.
    """

    def __init__(
        self, app: ASGIApp, limit_bytes: int, memory_bytes: int, file_bytes: Callable[[], int] | None = None
    ) -> None:
        self.app = app
        self._limit = limit_bytes
        self._file_bytes = file_bytes
        self._free = memory_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = self._file_bytes() if self._file_bytes is not None and _is_file(scope) else self._limit
        try:
            _check_headers(scope, limit)
            body = await self._read(receive, limit)
            if body is None:
                return  # the client left; there is nobody to answer
            if body and _is_file(scope):
                _check_media_type(scope, b"application/octet-stream")
            elif body:
                _check_media_type(scope, b"application/json")
                check_json(body)
        except RookeryError as error:
            await send_error(send, error)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive, limit: int) -> bytes | None:
        """The whole body; None when the client left before its end."""
        chunks: list[bytes] = []
        size = 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                chunk = message.get("body", b"")
                size += len(chunk)
                self._free -= len(chunk)
                if size > limit:
                    raise BodyTooLarge(f"the body is over the limit of {limit} bytes")
                if self._free + max(0, limit - self._limit) < 0:  # one large file must pass, however small the limit
                    raise NotReady("too many large requests are being read", code="overloaded", retry_after_s=1)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return b"".join(chunks)
        finally:
            self._free += size


def check_json(body: bytes) -> None:
    """Raise InvalidRequest unless `body` is strict JSON of bounded nesting."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        message = f"the body is not valid JSON: {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidRequest(message[:300], code="invalid_json") from None
    if body.count(b"[") + body.count(b"{") > MAX_NESTING and _deeper_than(value, MAX_NESTING):
        raise InvalidRequest(f"the body is nested deeper than {MAX_NESTING} levels", code="invalid_json")


def _deeper_than(value: object, levels: int) -> bool:
    """Whether arrays and objects nest deeper than `levels`; level by level, without recursion."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            child
            for node in layer
            if isinstance(node, (dict, list))
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not layer:
            return False
    return True


def _check_headers(scope: Scope, limit: int) -> None:
    encodings = [value for name, value in scope["headers"] if name == b"content-encoding"]
    if any(value.strip().lower() != b"identity" for value in encodings):
        raise UnsupportedMediaType("compressed bodies are not accepted; send it without Content-Encoding")
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise BodyTooLarge(f"the body is over the limit of {limit} bytes")


def _is_file(scope: Scope) -> bool:
    """Whether the body is an exported state: the one route that takes something else than JSON."""
    path: str = scope["path"]
    return scope["method"] == "PUT" and path.startswith("/v1/sessions/") and path.endswith("/state")


def _check_media_type(scope: Scope, expected: bytes) -> None:
    """This type only. It also keeps web pages out: a browser asks first before it sends it to another site."""
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    media = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if media != expected:
        what = "JSON" if expected == b"application/json" else "a state file"
        raise UnsupportedMediaType(f"the body must be {what}: send Content-Type: {expected.decode()}")


def _replay(body: bytes, receive: Receive) -> Receive:
    """`receive` as if nothing had been read: the body first, then what comes (the disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed
