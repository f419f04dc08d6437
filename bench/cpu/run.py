"""Rookery, the official `rwkv` package and llama.cpp on this processor, in turn; see bench/README.md.

    python -m bench.cpu.run --shapes 0.1B,0.4B --rounds 3

Each engine runs in a process of its own, alone; every round goes through all of them before the next begins, and
medians over the rounds are reported. The reports (bench/peers-SHAPE.json) are written after every run, so that one
that is stopped keeps what it measured; --resume goes on from there. --minutes bounds each shape: when they are over, no
further run begins.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

import torch

from rookery.clients.bench import Load
from rookery.clients.bench import run as send
from rookery.server.bench.machine import machine
from rookery.server.model.synthetic import PRESETS

from .agreement import agreement
from .child import ROOT, Child, PeerFailed
from .entries import ENTRIES, Entry, Peers
from .files import Files
from .plot import draw
from .report import Report
from .servers import STREAMS, Serving, servings, start

SHAPES = {"0.1B": "rwkv7-0.1b", "0.4B": "rwkv7-0.4b", "1.5B": "rwkv7-1.5b"}


@dataclass(frozen=True, slots=True)
class Measured:
    """How it is measured; equal for every peer."""

    threads: int = 2
    streams: tuple[int, ...] = (1, 8, 32)
    decode_steps: int = 32
    decode_seconds: float = 4.0
    """After which no further step begins, from the fifth on."""
    prefill_tokens: int = 512
    requests: tuple[int, ...] = (2, 8, 32)
    """Over HTTP, for each number of clients."""
    prompt_tokens: int = 64
    output_tokens: int = 64


QUICK = Measured(
    streams=(1, 8),
    decode_steps=8,
    decode_seconds=1.0,
    prefill_tokens=128,
    requests=(1, 8),
    prompt_tokens=16,
    output_tokens=16,
)


def engine_run(entry: Entry, path: Path, python: str, how: Measured) -> dict[str, Any]:
    """One entry's figures without HTTP.

    Raises:
        PeerFailed: it ended.
    """
    settings = {"path": str(path), "kept": entry.kept, "threads": how.threads, "streams": STREAMS}
    with Child(python, entry.engine, settings) as child:
        decoded, asked = {}, {"steps": how.decode_steps, "seconds": how.decode_seconds}
        for streams in how.streams if entry.batched else how.streams[:1]:
            decoded[str(streams)] = child.ask("decode", streams=streams, **asked)["tok_s"]
        child.ask("prefill", tokens=16)
        prefilled = child.ask("prefill", tokens=how.prefill_tokens)["tok_s"]
        return {
            "load_s": child.ready["load_s"],
            "decode_tok_s": decoded,
            "prefill_tok_s": prefilled,
            "peak_rss_mb": child.ask("memory")["peak_rss_mb"],
            "about": child.ready["about"],
        }


def http_run(serving: Serving, peers: Peers, path: Path, how: Measured, round_: int) -> dict[str, Any]:
    """One server's figures at each number of clients, the client on the same cores.

    Every request has a connection of its own: llama-server ends it after a streamed answer, though it promises not to.

    Raises:
        PeerFailed: it did not start, or a request failed.
    """
    loads = {}
    with start(serving, peers, path, how.threads) as server:
        about = (how.prompt_tokens, how.output_tokens, None, None)
        first = Load(server.url, 1, 1, 8, 4, text=not serving.together, keep_alive=False)
        asyncio.run(send(first))  # first calls allocate
        for clients, requests in zip(how.streams, how.requests, strict=True):
            if clients > 8 and not serving.together:
                continue  # one at a time, whatever the clients: only the queue grows
            before = server.cpu_s()
            seed = 100 * round_ + clients
            load = Load(server.url, clients, requests, *about, seed=seed, text=not serving.together, keep_alive=False)
            told = asyncio.run(send(load))
            if told["failed"]:
                raise PeerFailed(f"{told['failed']} of {requests} requests failed: {told['errors'][:1]}")
            front, behind = (after - start for after, start in zip(server.cpu_s(), before, strict=True))
            tokens = told["tokens_per_s"] * told["wall_s"]
            loads[str(clients)] = {
                "tok_s": told["tokens_per_s"],
                "ttft_p50_ms": told["ttft_ms"]["p50"],
                "itl_p50_ms": told["itl_ms"]["p50"],
                "itl_p99_ms": told["itl_ms"]["p99"],
                "cpu_ms_per_token": 1000 * (front + behind) / tokens,
                "front_cpu_ms_per_token": 1000 * front / tokens if behind else None,
            }
        return {"load_s": server.load_s, "clients": loads, **server.memory_mb()}


class Run:
    """Everything that is asked for, for one shape."""

    def __init__(self, shape: str, arguments: argparse.Namespace, how: Measured) -> None:
        self._how = how
        self._arguments = arguments
        self._peers = Peers(arguments.peers.resolve())
        self._files = Files(arguments.work.resolve(), shape, self._peers.python)
        self._entries = tuple(entry for entry in ENTRIES if re.search(arguments.only, entry.name))
        head = {
            "benchmark": "engines and servers on a processor, in turn",
            "shape": shape,
            "weights": "seeded random, the same in every file",
            "settings": {**asdict(how), "streams": list(how.streams), "requests": list(how.requests)},
            "machine": {**machine(), "threads": how.threads},
            "peers": self._peers.about,
        }
        self.path = arguments.out / f"peers-{shape}.json"
        self.report = Report(self.path, head, resume=arguments.resume)
        self._shape = shape
        self._began = time.perf_counter()

    def run(self) -> None:
        if self._peers.python is None:
            self._say(f"llama.cpp is not installed in {self._peers.folder}: left out")
        elif self.report.agreement is None and "agreement" in self._arguments.parts:
            self._agree()
        for round_ in range(max(self._arguments.rounds, self._arguments.http_rounds)):
            if "engine" in self._arguments.parts and round_ < self._arguments.rounds:
                for entry in self._entries:
                    if self._in_time(entry.name):
                        self._engine(entry, round_)
            if "http" in self._arguments.parts and round_ < self._arguments.http_rounds:
                for serving in servings(self._entries):
                    if self._in_time(f"{serving.name} over HTTP"):
                        self._http(serving, round_)
        self._conclude()

    def _in_time(self, name: str) -> bool:
        """Whether a further run may begin."""
        within = time.perf_counter() - self._began < 60 * float(self._arguments.minutes)
        if not within:
            self._say(f"{name}: left out, the time is over")
        return within

    def _agree(self) -> None:
        try:
            told = agreement(self._files, self._peers, sys.executable, self._how.threads)
        except PeerFailed as error:
            self.report.fail("agreement", "float32", str(error))
            self._say(f"agreement could not be checked: {error}")
            return
        self.report.agreement = told
        self.report.save()
        verdict = "computes the same as Rookery" if told["agrees"] else "DOES NOT AGREE: the comparison is void"
        self._say(f"llama.cpp {verdict} ({told['same_greedy_tokens']} greedy tokens)")

    def _engine(self, entry: Entry, round_: int) -> None:
        python = self._peers.interpreter(entry)
        if python is None or len(self.report.runs["engine"].get(entry.name, ())) > round_:
            return
        try:
            run = engine_run(entry, self._files.path(entry.file), python, self._how)
        except PeerFailed as error:
            self.report.fail("engine", entry.name, str(error))
            self._say(f"{entry.name} FAILED: {error}")
            return
        self.report.add("engine", entry.name, run)
        decoded = " / ".join(f"{value:.1f}" for value in run["decode_tok_s"].values())
        self._say(
            f"engine {round_ + 1}: {entry.name}: decode {decoded}, prefill {run['prefill_tok_s']:.0f} tok/s,"
            f" {run['peak_rss_mb']:.0f} MB, loaded in {run['load_s']:.1f} s"
        )

    def _http(self, serving: Serving, round_: int) -> None:
        if len(self.report.runs["http"].get(serving.name, ())) > round_:
            return
        missing = self._peers.python is None or (serving.server == "llama-server" and not self._peers.llama_server)
        if serving.entry.engine == "llama" and missing:
            self._say(f"{serving.server} is not installed: left out")
            return
        try:
            run = http_run(serving, self._peers, self._files.path(serving.entry.file), self._how, round_)
        except PeerFailed as error:
            self.report.fail("http", serving.name, str(error))
            self._say(f"{serving.name} over HTTP FAILED: {error}")
            return
        self.report.add("http", serving.name, run)
        clients = run["clients"].values()
        rates, waits = ([f"{load[key]:.4g}" for load in clients] for key in ("tok_s", "ttft_p50_ms"))
        self._say(
            f"HTTP {round_ + 1}: {serving.name}: {' / '.join(rates)} tok/s, TTFT p50 {' / '.join(waits)} ms,"
            f" {run['peak_rss_mb']:.0f} MB, ready in {run['load_s']:.1f} s"
        )

    def _conclude(self) -> None:
        self.report.save()
        self.path.with_suffix(".svg").write_text(draw(json.loads(self.path.read_text())))
        for line in self.report.ratio_lines():
            self._say(line)
        self._say(f"written to {self.path}")

    def _say(self, text: str) -> None:
        print(f"[{self._shape} {time.perf_counter() - self._began:5.0f} s] {text}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.1B", help="with commas: 0.1B, 0.4B, 1.5B")
    parser.add_argument("--quick", action="store_true", help="small loads, one round: shows that everything runs")
    parser.add_argument("--rounds", type=int, default=3, help="of the engines")
    parser.add_argument("--http-rounds", type=int, default=2, help="of the servers")
    parser.add_argument("--minutes", type=float, default=inf, help="for each shape; later runs are left out")
    parser.add_argument("--threads", type=int, default=2, help="of every peer")
    parser.add_argument("--parts", default="agreement,engine,http")
    parser.add_argument("--only", default="", help="a regular expression for names such as 'llama.cpp Q8_0'")
    parser.add_argument("--resume", action="store_true", help="keep the runs that the reports hold")
    parser.add_argument("--peers", type=Path, default=ROOT / "build/peers", help="where install-peers installed")
    parser.add_argument("--work", type=Path, default=ROOT / "build/bench-cpu", help="for checkpoints; 11 GB for 1.5B")
    parser.add_argument("--out", type=Path, help="for the reports: bench/, and the work folder with --quick")
    arguments = parser.parse_args()
    arguments.parts = arguments.parts.split(",")
    unknown = [name for name in arguments.shapes.split(",") if SHAPES.get(name, name) not in PRESETS]
    if unknown:
        parser.error(f"there is no shape {unknown[0]}")
    how = Measured(threads=arguments.threads)
    if arguments.quick:
        how, arguments.rounds, arguments.http_rounds = replace(QUICK, threads=arguments.threads), 1, 1
    torch.set_num_threads(arguments.threads)
    arguments.out = arguments.out or (arguments.work / "quick" if arguments.quick else ROOT / "bench")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.shapes.split(","):
        Run(SHAPES.get(name, name), arguments, how).run()


if __name__ == "__main__":
    main()
