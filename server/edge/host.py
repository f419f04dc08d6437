"""Against DNS rebinding: a web page must not reach a keyless server of the network that its reader sits in.

A page of evil.example can point its own name at 127.0.0.1, or at any address of that network; the browser then sends
its requests there, with `Host: evil.example`. A server without keys therefore answers only to what such a page cannot
have as its name: localhost, plain addresses, and the names it was told of. Keys make this needless: a page has none.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from ..errors import Forbidden
from ..logs import new_request_id
from .answers import send_error

_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/@\\]+)(:\d{1,5})?")


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine only."""
    name = _plain(host)
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") if address is None else address.is_loopback


def _plain(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


class HostGuard:
    """Refuses requests whose `Host` is a name that a foreign page could have, with 403.

    Args:
        names: those allowed besides localhost and addresses; `*` allows all.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self.app = app
        self._names = frozenset(map(_plain, names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
            match = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
            if match is None or not self._allows(match[1]):
                message = (
                    "without an API key this server answers to localhost, addresses and names it was told of only; "
                    "start it with --allowed-host NAME or with --api-key"
                )
                error = Forbidden(message, code="host_not_allowed")
                await send_error(send, error, close=True, request_id=new_request_id())
                return
        await self.app(scope, receive, send)

    def _allows(self, host: str) -> bool:
        name = _plain(host)
        return is_loopback(host) or _address(name) is not None or not self._names.isdisjoint((name, "*"))
