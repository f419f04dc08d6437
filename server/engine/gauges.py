"""What the engine tells of itself: `EngineStats`, gathered from the parts that count."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from .request import EngineStats
from .reuse import PrefixReuse
from .scheduler import Scheduler

if TYPE_CHECKING:
    from .sessions import Sessions


def gauges(
    steps: EngineStats, scheduler: Scheduler, reuse: PrefixReuse | None, sessions: Sessions | None
) -> EngineStats:
    """As of now.

    Args:
        steps: how many there were, and of the last one what the engine knows.
        reuse, sessions: None where the engine has none.
    """
    memory = reuse.cache.memory if reuse is not None else None
    disk = reuse.cache.disk if reuse is not None else None
    keeper = sessions.keeper if sessions is not None else None
    return dataclasses.replace(
        steps,
        running=scheduler.running,
        waiting=scheduler.waiting,
        slots_used=scheduler.max_batch - scheduler.slots_free,
        slots_free=scheduler.slots_free,
        cache_bytes=memory.used_bytes if memory is not None else 0,
        cache_evictions=memory.evictions if memory is not None else 0,
        cache_hits=memory.hits if memory is not None else 0,
        disk_bytes=disk.used_bytes if disk is not None else 0,
        disk_evictions=disk.evictions if disk is not None else 0,
        disk_hits=disk.hits if disk is not None else 0,
        disk_skipped=disk.skipped if disk is not None else 0,
        disk_damaged=disk.damaged if disk is not None else 0,
        sessions=keeper.stored if keeper is not None else 0,
        session_bytes=keeper.stored_bytes if keeper is not None else 0,
        session_memory_bytes=keeper.hot.used_bytes if keeper is not None else 0,
        session_evictions=keeper.hot.evictions if keeper is not None else 0,
        sessions_damaged=keeper.damaged if keeper is not None else 0,
    )
