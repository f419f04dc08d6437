"""Builds the native library, if there is a C compiler; the install goes on without one, and torch serves instead.

Everything else about the project stands in pyproject.toml.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup

SOURCES = Path("rookery/kernels/cpu")

digest = runpy.run_path(str(SOURCES / "sources.py"))["digest"]

native = Extension(
    "rookery.kernels.cpu._native",  # loaded by ctypes, so it needs no function of Python's
    sources=[str(SOURCES / f"{name}.c") for name in ("amx", "team", "tier_avx2", "tier_avx512", "tier_portable")],
    depends=[str(path) for path in sorted(SOURCES.glob("*.h"))],
    define_macros=[("SOURCES", f"{digest(SOURCES)}u")],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-pthread", "-Wno-psabi"],
    extra_link_args=["-pthread", "-lm"],
    optional=True,
)

setup(ext_modules=[native] if sys.platform != "win32" else [])
