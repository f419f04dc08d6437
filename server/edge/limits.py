"""What a client may cost before its request has even been read."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import Config


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of one connection. Times in seconds, sizes in bytes."""

    max_body_bytes: int
    header_timeout_s: float
    """From the connection, or a request's first byte on a kept one, to the end of its headers."""
    body_timeout_s: float
    """What a body may take beyond the time `min_body_rate` allows for its size."""
    idle_timeout_s: float
    """How long a kept connection may wait for its next request."""
    send_timeout_s: float
    """How long a client may leave what was sent to it unread."""
    max_connections: int
    min_body_rate: int = 16 * 2**10
    """Bytes a second."""
    max_head_bytes: int = 32 * 2**10
    max_headers: int = 100
    linger_timeout_s: float = 3.0
    """After an answer that came before the whole request: how long the rest is read and dropped, so that the answer
    is not lost to a reset."""
    linger_bytes: int = 4 * 2**20

    @classmethod
    def of(cls, config: Config) -> Limits:
        """The limits this server was started with."""
        return cls(
            max_body_bytes=config.max_body,
            header_timeout_s=config.header_timeout,
            body_timeout_s=config.body_timeout,
            idle_timeout_s=config.idle_timeout,
            send_timeout_s=config.send_timeout,
            max_connections=config.max_connections,
        )
