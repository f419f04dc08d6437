"""The outermost layer of a request: its id, its access log line, its place in the metrics, and the last resort."""

from __future__ import annotations

import logging
import re
from time import perf_counter

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import EngineError
from ..logs import new_request_id, request_id
from ..metrics import Metrics
from .answers import send_error

log = logging.getLogger("rookery.access")
_POLLED = frozenset({"/health", "/ready", "/metrics"})
"""Asked every few seconds by whoever watches the server; not worth a line each."""
_SANE_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")


class RequestContext:
    """Puts `request_id` and `arrival` (`perf_counter`) into `scope["state"]` and `x-request-id` on every answer.

    `scope["state"]["write"]` is the server's own `send`, past every layer above: for parts of a body whose head has
    left, which no layer looks at and a stream sends by the thousand.

    A client's own id is taken when it is plain. An exception that no handler answered becomes a 500 without details,
    and is logged once with its traceback.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        arrival = perf_counter()
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        name = given.decode() if _SANE_ID.fullmatch(given) else new_request_id()
        scope.setdefault("state", {}).update(request_id=name, arrival=arrival, write=send)
        token = request_id.set(name)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:  # the boundary: whatever went wrong costs this request and no other
            log.exception("%s %s failed", scope["method"], _printable(scope["path"]))
            if status:
                raise  # the head has left; the server cuts the connection, so that the client sees the break
            await send_error(
                send_with_id, EngineError("the server failed to handle this request", code="internal_error")
            )
        finally:
            duration = perf_counter() - arrival
            self.metrics.answered(_endpoint(scope), status or 499, duration)
            level = logging.DEBUG if scope["path"] in _POLLED and status in (200, 503) else logging.INFO
            log.log(
                level, "%s %s %d %.1f ms", scope["method"], _printable(scope["path"]), status or 499, duration * 1e3
            )
            request_id.reset(token)


def _endpoint(scope: Scope) -> str:
    """The route's path with its placeholders, so that the label's values are few."""
    return str(getattr(scope.get("route"), "path", "other"))


def _printable(path: str) -> str:
    """A path as it may stand in a log line: no line ends, no terminal controls, not long."""
    return path[:200].encode("ascii", "backslashreplace").decode().translate({c: f"\\x{c:02x}" for c in range(32)})
