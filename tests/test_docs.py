"""The reference is made from the code: a stale page fails here."""

from __future__ import annotations

from pathlib import Path

from rookery.server.reference import reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"


def test_the_reference_says_what_the_code_says() -> None:
    assert PAGE.read_text() == reference(), "run `make docs`"


def test_every_setting_is_explained() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `--")]
    assert len(rows) > 20
    assert all(row.rstrip(" |").rsplit("|", 1)[1].strip() for row in rows)
