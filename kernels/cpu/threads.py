"""How many threads compute on a processor: what `set_threads` said, else one for each core."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_chosen: int | None = None


def set_threads(count: int) -> None:
    """Choose for this process; for what is made from now on."""
    global _chosen
    _chosen = count


def threads() -> int:
    """How many to compute with."""
    return _chosen or _cores()


@cache
def _cores() -> int:
    """Cores that this process may use, those that share one counted once, for they compute no faster together.

    `OMP_NUM_THREADS`, where it is set, is the answer, as it is for other libraries.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    files = {cpu: Path(_SIBLINGS.format(cpu)) for cpu in usable}
    return len({file.read_text() if file.is_file() else str(cpu) for cpu, file in files.items()})
