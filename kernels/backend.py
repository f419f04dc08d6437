"""Which form of the operators runs: Triton on CUDA devices, torch elsewhere. Decided once, at an operator's first call.

`ROOKERY_KERNELS=torch` or `=triton` overrides it for every device. Triton on a CPU means its interpreter: exact enough
for tests, thousands of times slower than torch.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache

VARIABLE = "ROOKERY_KERNELS"


@cache
def uses_triton(device_type: str) -> bool:
    """Whether operators on this type of device ("cpu", "cuda") run as Triton kernels.

    Raises:
        ValueError: the override is neither "torch" nor "triton".
        RuntimeError: Triton is asked for and cannot run here.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "torch", "triton"):
        raise ValueError(f"{VARIABLE}={wanted!r} is not known; choose torch or triton")
    installed = importlib.util.find_spec("triton") is not None
    if wanted == "triton":
        if not installed:
            raise RuntimeError(f"{VARIABLE}=triton, but the package triton is not installed")
        if device_type == "cpu":
            _interpret()
        return True
    return wanted == "" and installed and device_type == "cuda"


def _interpret() -> None:
    """Make Triton run its kernels in Python; it decides that while it is imported."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return
    if "triton" in sys.modules:
        raise RuntimeError("triton was imported before its interpreter was asked for; set TRITON_INTERPRET=1 at start")
    os.environ["TRITON_INTERPRET"] = "1"
