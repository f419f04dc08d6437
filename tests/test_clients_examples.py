"""Every example, run as its reader would, against a real server with a tiny model: random weights speak nonsense, but
what the examples promise of structure, tools and streams must hold."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from .server_process import MODEL, ServerProcess, server_process

EXAMPLES = Path(__file__).resolve().parent.parent / "clients/examples"
PEERS = Path(sys.prefix) / "clients"
"""Made by tests/clients/install.sh."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), "--api-key", "sk-example") as running:
        yield running


def run(server: ServerProcess, command: Sequence[str | Path]) -> str:
    """Its output; it must succeed."""
    settings = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "sk-example", "MODEL": MODEL}
    settings["PYTHONIOENCODING"] = "utf-8"  # nonsense has any letters
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, timeout=150)
    assert done.returncode == 0, done.stderr.decode("utf-8", "replace")
    return done.stdout.decode("utf-8", "replace")


def test_curl(server: ServerProcess) -> None:
    whole, stream = run(server, ["sh", EXAMPLES / "chat.sh"]).split("\n", 1)
    assert json.loads(whole)["choices"][0]["message"]["role"] == "assistant"
    assert "chat.completion.chunk" in stream and stream.rstrip().endswith("data: [DONE]")


def test_python_sdk(server: ServerProcess) -> None:
    out = run(server, [sys.executable, EXAMPLES / "chat.py"])
    assert out.index("> Hello! My name is Ada.") < out.index("> What is my name?")
    assert len(re.findall(r"\((\d+) prompt tokens, (\d+) of them from a stored state\)", out)) == 2


def test_tools(server: ServerProcess) -> None:
    out = run(server, [sys.executable, EXAMPLES / "tools.py"])
    assert re.search(r"temperature\(\{.*\}\) = [\d.]+ degrees (celsius|fahrenheit)", out, re.DOTALL)


def test_structured_output(server: ServerProcess) -> None:
    out = run(server, [sys.executable, EXAMPLES / "structured.py"])
    assert re.fullmatch(r"(glad|sad|angry|calm), [1-5] stars(, urgent)?\n", out)


def test_sessions(server: ServerProcess) -> None:
    out = run(server, [sys.executable, EXAMPLES / "sessions.py"])
    counts = re.findall(r"\((\d+) tokens of context, (\d+) of them in the state\)", out)
    held = [int(cached) for _, cached in counts]
    assert len(held) == 4 and held[3] == held[2] > held[1] > held[0]  # loaded and forked where it was
    assert len(set(re.findall(r"(\d+) bytes", out))) == 1  # of two and of three turns


def test_responses(server: ServerProcess) -> None:
    out = run(server, [sys.executable, EXAMPLES / "responses.py"])
    counts = re.findall(r"\((\d+) tokens of context, (\d+) of them from a stored state\)", out)
    assert len(counts) == 2 and all(0 < int(cached) < int(context) for context, cached in counts)
    assert "> What is my name?" in out


@pytest.mark.peers
def test_node_sdk(server: ServerProcess, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "chat.mjs", tmp_path)  # node looks for packages beside the program
    (tmp_path / "node_modules").symlink_to(PEERS / "node_modules")
    assert re.search(r"\(\d+ tokens\)", run(server, ["node", tmp_path / "chat.mjs"]))


@pytest.mark.peers
def test_langchain(server: ServerProcess) -> None:
    assert run(server, [PEERS / "bin/python", EXAMPLES / "langchain_chat.py"]).count("\n") >= 3


def test_every_example_has_a_test() -> None:
    source = Path(__file__).read_text()
    for example in EXAMPLES.iterdir():
        assert f'"{example.name}"' in source or example.is_dir(), example.name
