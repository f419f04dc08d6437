"""What the next turn of a long chat costs beside that of a short one: python -m bench.long_chat --json FILE

Two chats of one server, with 100 and 100,000 tokens behind them, get turns of the same words in turn: as sessions, to
which a request brings its new message only, and sent in full by a client that keeps nothing on the server. Measured is
the time from sending a request to the first words of the reply. `tokenize_ms` is a part of it: what the route /tokenize
takes for the messages of the long chat. Memory is that of the server's processes together, over the turns of the
sessions.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from rookery.server.bench.compare import write_checkpoint
from rookery.server.bench.machine import machine

from .cpu.servers import Server

LIMIT = 1.2
"""What the project asks of itself: the long chat's time over the short one's, as sessions."""
TALK = "the rook sat on the oak and saw the river go by, and then it flew home"
ASK = "and where does the rook sit now?"


class Client:
    """One client of a server, over a connection of its own."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        served = http.get("/v1/models").json()["data"][0]
        self.model: str = served["id"]
        self.state_bytes: int = served["meta"]["state_bytes"]

    def tokens(self, messages: list[dict[str, str]]) -> int:
        """How many a chat has."""
        answer = self._http.post("/tokenize", json={"model": self.model, "messages": messages})
        answer.raise_for_status()
        return int(answer.json()["count"])

    def turn(self, messages: list[dict[str, str]], **fields: object) -> tuple[float, str]:
        """Milliseconds to the first words of the reply, and the reply."""
        body = {
            "model": self.model, "messages": messages, "max_tokens": 8, "temperature": 0, "stream": True,
            "ignore_eos": True, **fields,
        }  # fmt: skip
        data = json.dumps(body).encode()
        sent, first, reply = time.perf_counter(), 0.0, []
        headers = {"Content-Type": "application/json"}
        with self._http.stream("POST", "/v1/chat/completions", content=data, headers=headers) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                choices = json.loads(line[6:])["choices"]
                words = choices[0]["delta"].get("content") if choices else None
                if words:
                    first = first or time.perf_counter() - sent
                    reply.append(words)
        return first * 1e3, "".join(reply)


def history(client: Client, tokens: int) -> list[dict[str, str]]:
    """Messages of a chat of about so many tokens, which the other side spoke last in."""
    pair = [{"role": "user", "content": TALK}, {"role": "assistant", "content": TALK}]
    return pair * max(1, round(tokens / client.tokens(pair)))


def of_sessions(client: Client, lengths: list[int], turns: int, pids: list[int]) -> dict[str, Any]:
    """Turns of sessions of so many tokens, in turn; memory from the first fifth of them on."""
    for length in lengths:
        client.turn([*history(client, length), {"role": "user", "content": ASK}], session_id=f"chat-{length}")
    times: dict[int, list[float]] = {length: [] for length in lengths}
    processes, memory = [psutil.Process(pid) for pid in pids], []
    for number in range(turns):
        for length in lengths if number % 2 else reversed(lengths):
            times[length].append(client.turn([{"role": "user", "content": ASK}], session_id=f"chat-{length}")[0])
        memory.append(sum(process.memory_info().rss for process in processes))
    return {**summary(times), "rss_growth_bytes": memory[-1] - memory[turns // 5]}


def of_chats_sent_in_full(client: Client, lengths: list[int], turns: int) -> dict[str, Any]:
    """Turns of chats that their client sends in full, in turn."""
    chats = {length: history(client, length) for length in lengths}
    times: dict[int, list[float]] = {length: [] for length in lengths}
    for number in range(turns + 1):
        for length, messages in chats.items():
            messages.append({"role": "user", "content": ASK})
            took, reply = client.turn(messages)
            messages.append({"role": "assistant", "content": reply})
            if number:  # the first time the chat is new to the server
                times[length].append(took)
    longest = chats[max(lengths)]
    tokenizing = []
    for _ in range(9):
        sent = time.perf_counter()
        client.tokens(longest)
        tokenizing.append((time.perf_counter() - sent) * 1e3)
    return {**summary(times), "tokenize_ms": round(statistics.median(tokenizing), 2)}


def summary(times: dict[int, list[float]]) -> dict[str, Any]:
    """Medians, and the longest chat's over the shortest one's."""
    medians = {length: statistics.median(taken) for length, taken in times.items()}
    return {
        "ttft_p50_ms": {str(length): round(value, 2) for length, value in medians.items()},
        "ratio": round(medians[max(medians)] / medians[min(medians)], 3),
    }


def measure(command: list[str], lengths: list[int], turns: int, threads: int) -> dict[str, Any]:
    with socket.socket() as free, tempfile.TemporaryDirectory() as data:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [*command, "--port", str(port), "--data-dir", data]
        server = Server(command, f"http://127.0.0.1:{port}", "/ready", threads)
        try:
            with httpx.Client(base_url=server.url, timeout=3600) as http:
                client = Client(http)
                return {
                    "model": client.model,
                    "state_bytes": client.state_bytes,
                    "sessions": of_sessions(client, lengths, turns, server.processes()),
                    "sent_in_full": of_chats_sent_in_full(client, lengths, turns),
                }
        finally:
            server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--preset", help="a published shape with seeded random weights; default: Gosling")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, nargs="+", default=[100, 100_000])
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        serve = [sys.executable, "-m", "rookery.server", "serve"]
        if args.preset is not None:
            write_checkpoint(args.preset, Path(work) / f"{args.preset}.pth")
            serve += [str(Path(work) / f"{args.preset}.pth"), "--dtype", args.dtype]
        figures = measure([*serve, "--device", "cpu"], args.tokens, args.turns, args.threads)
    report = {
        "benchmark": "long_chat", "machine": machine(), "tokens": args.tokens, "turns": args.turns,
        "threads": args.threads, **figures, "limit": LIMIT,
    }  # fmt: skip
    print(json.dumps(figures, indent=1))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    sessions = figures["sessions"]
    return int(sessions["ratio"] > LIMIT or sessions["rss_growth_bytes"] > len(args.tokens) * figures["state_bytes"])


if __name__ == "__main__":
    sys.exit(main())
