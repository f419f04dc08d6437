"""API keys: one layer in front of every route, closed by default.

It decides on `scope["path"]`, the path as it will be routed, and never on a URL built from the Host header. Keys are
held as SHA-256 digests; a key is compared with all of them, each in constant time. What goes on from here is a digest
of another kind, the tenant: it names whose request this is and cannot be used as a key.
"""

from __future__ import annotations

import hmac
from collections.abc import Collection
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from ..config import Config
from ..edge.answers import send_error
from ..errors import StartupError, Unauthorized

OPEN_PATHS = frozenset({"/", "/health", "/ready"})
"""Without a key: whether the server lives, and the static page."""
OPEN_FOLDER = "/web/"
"""The page's own files, which hold nothing of anybody."""

_MAX_KEY_BYTES = 1024


def read_keys(config: Config) -> frozenset[bytes]:
    """Digests of the configured keys; empty when none are.

    Raises:
        StartupError: the key file cannot be read or holds no key, or a key could never be sent.
    """
    keys = list(config.api_key)
    if config.api_key_file is not None:
        try:
            lines = config.api_key_file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "not text"
            raise StartupError(
                f"the key file {config.api_key_file} cannot be read: {cause}", "give --api-key-file a text file"
            ) from error
        from_file = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not from_file:
            raise StartupError(f"the key file {config.api_key_file} holds no key", "write one key a line")
        keys += from_file
    for key in keys:
        if not key.isascii() or not key.isprintable() or " " in key or not 0 < len(key) <= _MAX_KEY_BYTES:
            raise StartupError(
                "an API key is empty, too long, or has characters that a header cannot carry",
                "use printable ASCII without spaces",
                exit_code=2,
            )
    return frozenset(sha256(key.encode()).digest() for key in keys)


def tenant_of(key: bytes) -> str:
    """Whose request this is: stable for a key, useless as one."""
    return sha256(b"rookery tenant\0" + key).hexdigest()[:32]


class KeyGuard:
    """Lets a request pass when its key is known or its path is open; sets `scope["state"]["tenant"]`."""

    def __init__(self, app: ASGIApp, digests: Collection[bytes]) -> None:
        self.app = app
        self._digests = tuple(digests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["tenant"] = ""
        if self._digests:
            key = _bearer(scope)
            if key is not None and self._known(key):
                state["tenant"] = tenant_of(key)
            elif scope["path"] not in OPEN_PATHS and not scope["path"].startswith(OPEN_FOLDER):
                message = (
                    "this server needs an API key: send it as `Authorization: Bearer KEY`"
                    if key is None
                    else "the API key is not known to this server"
                )
                await send_error(send, Unauthorized(message))
                return
        await self.app(scope, receive, send)

    def _known(self, key: bytes) -> bool:
        presented = sha256(key).digest()
        found = False
        for digest in self._digests:  # all of them, whatever was found: the time must not tell
            found |= hmac.compare_digest(presented, digest)
        return found


def _bearer(scope: Scope) -> bytes | None:
    """The key of the one Authorization header, or None."""
    values: list[bytes] = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not 0 < len(key) <= _MAX_KEY_BYTES:
        return None
    return key
