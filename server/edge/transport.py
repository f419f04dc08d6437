"""The transport as uvicorn's request cycle sees it: closing goes through the protocol, which knows how to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class ClosingTransport(asyncio.Transport):
    """Passes everything on but `close` and `is_closing`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None], is_closing: Callable[[], bool]) -> None:
        super().__init__()
        self._transport = transport
        self._close_gently = close
        self._is_closing = is_closing

    def close(self) -> None:
        self._close_gently()

    def is_closing(self) -> bool:
        return self._is_closing()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)

    def abort(self) -> None:
        self._transport.abort()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
