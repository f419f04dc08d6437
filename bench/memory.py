"""Memory and start of a server, by how its weights are kept: python -m bench.memory --json bench/memory-rwkv7-0.1b.json

For each converted file of the seeded 0.1B checkpoint, and for the checkpoint with int8 made at load: seconds from the
start of `rookery serve` until /ready says 200, from a file in the page cache; and the memory of both processes when it
is ready, right after 32 sessions have had a turn of some 60 tokens each, at the same time, and some seconds later, when
it has given back what only work needs. In MB of 10^6 bytes: resident (`rss`), the same with what others map too counted
by parts (`pss`), and what is no copy of a file (`anonymous`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from time import sleep
from typing import Any

import httpx

from rookery.server.bench.machine import machine

from .cpu.child import ROOT
from .cpu.files import Files
from .cpu.servers import Server

SESSIONS, TOKENS = 32, 32
REST_S = 5
PROMPT = (
    "Please tell me about rooks, and about ravens too, at some length; I have the whole afternoon to listen to you."
)
FIELDS = {"rss": "Rss:", "pss": "Pss:", "anonymous": "Anonymous:"}
FORMS = ("float32", "bfloat16", "int8", "int4", "int8 made at load")


def memory(server: Server) -> dict[str, dict[str, float]]:
    """By process: the one that speaks HTTP, and the engine."""
    told = {}
    for name, pid in zip(("http", "engine"), server.processes(), strict=True):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        sizes = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
        told[name] = {field: round(sizes[key] * 1024 / 1e6, 1) for field, key in FIELDS.items()}
    told["together"] = {field: round(sum(part[field] for part in told.values()), 1) for field in FIELDS}
    return told


async def talk(url: str) -> None:
    """A turn in each session, all at once."""
    async with httpx.AsyncClient(base_url=url, timeout=600) as http:
        bodies = [
            {
                "model": "m",
                "session_id": f"s{i}",
                "max_tokens": TOKENS,
                "messages": [{"role": "user", "content": PROMPT}],
            }
            for i in range(SESSIONS)
        ]
        answers = await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for body in bodies))
        for answer in answers:
            answer.raise_for_status()


def measured(path: Path, flags: list[str], threads: int) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-m", "rookery.server", "serve", str(path), "--served-model-name", "m", *flags]
    with Server([*command, "--port", str(port)], f"http://127.0.0.1:{port}", "/ready", threads) as server:
        ready = memory(server)
        asyncio.run(talk(server.url))
        talked = memory(server)
        sleep(REST_S)
        return {
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "start_s": round(server.load_s, 2),
            "load_average": os.getloadavg()[0],
            "ready_mb": ready,
            "with_sessions_mb": talked,
            "resting_mb": memory(server),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="rwkv7-0.1b")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench-cpu", help="for checkpoints")
    parser.add_argument("--json", type=Path, help="write the report there")
    arguments = parser.parse_args()
    files = Files(arguments.work.resolve(), arguments.shape, None)
    found = {}
    for form in FORMS:
        at_load = form not in ("float32", "bfloat16", "int8", "int4")
        path = files.path("safetensors" if at_load else form)
        path.read_bytes()  # into the page cache
        flags = ["--quantize", "int8", "--device", "cpu"] if at_load else []
        found[form] = measured(path, flags, arguments.threads)
        together = found[form]["with_sessions_mb"]["together"]
        print(f"{form}: ready in {found[form]['start_s']} s; with {SESSIONS} sessions {together} MB", flush=True)
    report = {
        "benchmark": "memory and start of a server",
        "shape": arguments.shape,
        "sessions": SESSIONS,
        "machine": {**machine(), "threads": arguments.threads},
        "forms": found,
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
