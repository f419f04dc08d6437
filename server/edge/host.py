"""Against DNS rebinding: a web page must not reach a keyless server on the operator's own machine.

A page of evil.example can point its own name at 127.0.0.1; the browser then sends its requests here, with
`Host: evil.example`. A server that listens on a loopback address without keys therefore answers to loopback names only.
Decided here and not for other binds: whoever listens on a network address is told to set a key.
"""

from __future__ import annotations

import ipaddress
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Forbidden
from ..logs import new_request_id
from .answers import send_error

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\\]+)(:\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class HostGuard:
    """Refuses requests whose `Host` is not a loopback name with 403."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
            if match is None or not is_loopback(match[1]):
                message = "without an API key this server answers to localhost only; start it with --api-key"
                error = Forbidden(message, code="host_not_allowed")
                await send_error(send, error, close=True, request_id=new_request_id())
                return
        await self.app(scope, receive, send)
