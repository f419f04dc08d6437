"""Shared by all tests: where the fixtures are."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BESIDE, INSIDE = ROOT.parent / "shared" / "fixtures", ROOT / "shared" / "fixtures"
SHARED = INSIDE if INSIDE.is_dir() else BESIDE
"""Inside the checkout where only that is taken along, as to a machine with a GPU."""


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder of real and random small checkpoints with golden outputs; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the fixtures folder is not beside this checkout (../shared/fixtures)")
    return SHARED
