"""Log lines: one a record, in both forms, with the id of the request."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from rookery.server.logs import configure_logging, request_id


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Puts the root logger back as pytest had it."""
    root, ours = logging.getLogger(), logging.getLogger("rookery")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])
    logging.captureWarnings(False)


def test_json_lines_carry_the_request_and_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("json")
    token = request_id.set("req_1")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("rookery.x").exception("it %s", "failed")
    finally:
        request_id.reset(token)
    logging.getLogger("rookery.x").info("after")
    failed, after = map(json.loads, capsys.readouterr().err.splitlines())
    assert (failed["level"], failed["message"], failed["request_id"]) == ("error", "it failed", "req_1")
    assert "ValueError" in failed["traceback"] and failed["time"].endswith("Z")
    assert after["message"] == "after" and "request_id" not in after


def test_text_lines_carry_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("text")
    token = request_id.set("req_2")
    logging.getLogger("rookery.x").info("hello")
    request_id.reset(token)
    logging.getLogger("library").info("too much detail")
    (line,) = capsys.readouterr().err.splitlines()
    assert "INFO" in line and line.endswith("rookery.x hello [req_2]")
