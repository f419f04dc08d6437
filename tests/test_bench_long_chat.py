"""Turns of long and short chats through a real server: what they leave behind in its memory."""

from __future__ import annotations

from pathlib import Path

import httpx
import psutil
import pytest

from bench.long_chat import Client, of_chats_sent_in_full, of_sessions
from rookery.server.model.synthetic import Plan

from .checkpoints import save_checkpoint
from .server_process import server_process

PLAN = Plan(version="7", layers=4, width=256, vocab_size=256, ffn_width=256, ranks=(16, 16, 16, 16))
"""Its states are large beside what else a process takes and gives back: 280 kB."""


def write(folder: Path) -> Path:
    return save_checkpoint(folder / "model.pth", PLAN)


@pytest.mark.timeout(600)
def test_many_turns_leave_less_than_a_state_a_session_behind(tmp_path: Path) -> None:
    flags = ("--data-dir", str(tmp_path / "data"))
    with (
        server_process(tmp_path, *flags, write=write) as server,
        httpx.Client(base_url=server.url, timeout=300) as http,
    ):
        client, pid = Client(http), server.process.pid
        pids = [pid, *(child.pid for child in psutil.Process(pid).children())]
        figures = of_sessions(client, [100, 2000], 25, pids)
        assert client.state_bytes > 250_000
        assert figures["rss_growth_bytes"] < 2 * client.state_bytes
        figures = of_chats_sent_in_full(client, [100, 400], 2)
        assert set(figures["ttft_p50_ms"]) == {"100", "400"} and figures["ratio"] > 0
