"""The machine a number was measured on, without which it is none."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from rookery import __version__


def machine() -> dict[str, object]:
    """Processor, cores, memory and versions, as committed beside every result."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    about = {name.strip(): value.strip() for name, value in fields.items()}
    flags = set(about.get("flags", "").split())
    return {
        "cpu": about.get("model name", platform.processor()),
        "family_model_stepping": [about.get(key) for key in ("cpu family", "model", "stepping")],
        "features": sorted(flags & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rookery": __version__,
    }


def peak_rss_mb() -> float:
    """Largest resident size this process ever had, in MB (10^6 bytes); `getrusage` would count whoever started it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6
