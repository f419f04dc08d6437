"""Pages that speak of the code: a stale one fails here."""

from __future__ import annotations

import re
from pathlib import Path

from rookery.server.api.schemas import GenerationBody
from rookery.server.reference import reference

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference.md"
OPENAI = (
    "model", "n", "stream", "stream_options", "stop", "seed", "user", "temperature", "top_p", "presence_penalty",
    "frequency_penalty", "logit_bias",
)  # fmt: skip


def test_the_reference_says_what_the_code_says() -> None:
    assert PAGE.read_text() == reference(), "run `make docs`"


def test_every_setting_is_explained() -> None:
    rows = [line for line in reference().splitlines() if line.startswith("| `--")]
    assert len(rows) > 20
    assert all(row.rstrip(" |").rsplit("|", 1)[1].strip() for row in rows)


def test_the_fields_that_are_explained_exist() -> None:
    page = (PAGE.parent / "api.md").read_text()
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(named) > 12 and set(named) <= set(GenerationBody.model_fields)
    ours = set(GenerationBody.model_fields) - set(OPENAI)
    assert ours <= set(named), ours - set(named)
