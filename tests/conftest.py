"""Shared by all tests: where the fixtures are."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real and random small checkpoints with golden outputs; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the fixtures folder is not beside this checkout (../shared/fixtures)")
    return SHARED
