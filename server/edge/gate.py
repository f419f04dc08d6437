"""The gate that SIGTERM closes: what is under way goes on, what comes after is refused at once."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import NotReady
from .answers import send_error


class Gate:
    """Open until `closed` is set."""

    def __init__(self) -> None:
        self.closed = False


class GateKeeper:
    """Answers 503 and closes the connection once the gate is closed; only `/health` still answers."""

    def __init__(self, app: ASGIApp, gate: Gate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.gate.closed and scope["path"] != "/health":
            await send_error(send, NotReady("the server is shutting down", retry_after_s=5), close=True)
            return
        await self.app(scope, receive, send)
