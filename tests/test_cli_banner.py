"""What `rookery serve` shows at a terminal, and that its curl line works."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from rookery.server.banner import DEMO, Screen, command
from rookery.server.config import Config
from rookery.server.resolve import ResolvedModel

from .fake_engine import BYTE_MODEL
from .server_process import launched, write_tiny
from .terminal import terminal


def banner(config: Config, *, demo: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    Screen(console, config, ResolvedModel(Path("m.pth"), "m", "file m.pth", demo=demo), 4711).show(BYTE_MODEL)
    return out.getvalue()


def test_at_a_terminal_it_shows_what_is_served_and_how_to_ask(tmp_path: Path) -> None:
    arguments = ["serve", str(write_tiny(tmp_path)), "--port", "0", "--device", "cpu", "--max-batch", "2"]
    arguments += ["--max-completion-tokens", "8"]  # random weights never end an answer
    with terminal(arguments) as screen:
        screen.expect(r"Rookery \d+\.")
        screen.expect(r"model +tiny \(file")
        screen.expect(r"RWKV-7, [\d.]+k parameters, float32 on cpu")
        screen.expect(r"chats +[\d.]+ KiB each, at any length; 2 at once")
        screen.expect(r"API +http://127\.0\.0\.1:\d+/v1 \(no key needed\)")
        curl = screen.expect(r"\n(curl .*)\n")[1]
        command = [*shlex.split(curl), "--silent", "--max-time", "60"]
        answer = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        assert answer["choices"][0]["message"]["role"] == "assistant"
        screen.type("\x03")
        assert screen.wait() == 0


def test_without_a_terminal_there_are_log_lines_alone(tmp_path: Path) -> None:
    model = str(write_tiny(tmp_path))
    with launched(tmp_path, "serve", model, "--port", "0", "--device", "cpu", "--log-format", "json") as server:
        server.wait_ready()
        assert server.stop() == 0
        lines = [json.loads(line) for line in server.log.splitlines()]
    assert any(line["message"].startswith("ready: RWKV-7") for line in lines)


def test_the_built_in_model_is_called_what_it_is() -> None:
    config = Config(served_model_name=("gosling",))
    assert DEMO[:40] in banner(config, demo=True)
    assert DEMO[:40] not in banner(config)


@pytest.mark.parametrize(("host", "url"), [("0.0.0.0", "http://127.0.0.1:4711"), ("::", "http://[::1]:4711")])
def test_what_others_can_reach_is_said(host: str, url: str) -> None:
    text = banner(Config(served_model_name=("m",), host=host, api_key=("secret",)))
    assert f"{url}/v1 (with an API key, reachable from other machines)" in text
    assert "Bearer $ROOKERY_API_KEY" in text and "secret" not in text


def test_the_command_is_named_as_it_can_be_called_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / ".venv/bin/rookery"
    program.parent.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setattr("sys.executable", str(program.with_name("python")))
    monkeypatch.chdir(tmp_path)
    assert command() == "python -m rookery.server"
    program.touch(mode=0o755)
    assert command() == "rookery"
    monkeypatch.setenv("PATH", "/nowhere")
    assert command() == ".venv/bin/rookery"
    monkeypatch.chdir(program.parent.parent)
    assert command() == "bin/rookery"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command() == str(program)


def test_a_name_with_quotes_stays_one_argument() -> None:
    text = banner(Config(served_model_name=("it's",)))
    line = re.search(r"^curl .*$", text, re.MULTILINE)
    assert line is not None
    assert json.loads(shlex.split(line[0])[-1])["model"] == "it's"
