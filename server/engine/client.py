"""The engine as the HTTP side sees it: submit a request, read its events, know whether the engine is well.

Nothing here imports torch: the model lives in another process.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..config import Config
from ..errors import NotReady, StartupError
from .request import EngineInfo, EngineStats, Request
from .stream import EventStream

Phase = Literal["loading", "warming_up", "ready", "restarting", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """Where the engine is in its life."""

    phase: Phase
    progress: float | None = None
    """Share of the checkpoint that is loaded, 0 to 1."""
    error: StartupError | None = None
    """Why it failed, or why the last attempt to restart did."""


class EngineClient:
    """One engine process, started, watched and spoken to.

    Attributes:
        info: what was loaded; None until the engine has been ready once.
        stats: gauges as of the engine's last step or heartbeat.
        status: phase, progress and error.
    """

    def __init__(self, config: Config, model_path: Path) -> None:
        self.config = config
        self.model_path = model_path
        self.info: EngineInfo | None = None
        self.stats = EngineStats()
        self.status = EngineStatus("loading")

    @property
    def silent_s(self) -> float:
        """Seconds since the engine last spoke. It does so every second, between steps at least."""
        return 0.0

    async def start(self) -> None:
        """Start the engine process; returns at once, `ready()` waits for the model."""
        raise NotReady("the engine process is not built yet")

    async def ready(self) -> EngineInfo:
        """Wait until requests are taken.

        Raises:
            StartupError: the model could not be loaded.
            NotReady: `close` was called.
        """
        raise NotReady("the engine process is not built yet")

    async def submit(self, request: Request) -> EventStream:
        """Queue a request; returns when the engine has taken it.

        Raises:
            NotReady: no engine to take it (loading, restarting, stopping).
            QueueFull: as many wait as may.
            InvalidRequest: the engine refuses it (more choices than slots, a token id outside the vocabulary …).
            EngineError: the engine died before it answered.
        """
        raise NotReady("the engine process is not built yet")

    async def close(self, grace_s: float) -> None:
        """Refuse new requests, give running ones `grace_s` seconds, end the rest with an error, stop the process."""
