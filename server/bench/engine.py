"""One measurement in a process of its own, so that its peak memory is its own too.

`python -m rookery.server.bench.engine '{"peer": "rookery", …}'` prints one JSON object. The parent (`compare.py`)
runs these in turn, A B A B, and takes medians.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TypedDict

import torch

from rookery.kernels.cpu.threads import set_threads

from ..engine.engine import Engine
from ..engine.request import Request, SamplingParams
from ..model.load import load_model
from .machine import peak_rss_mb


class Job(TypedDict):
    """What to measure: peer "rookery" or "official", a checkpoint file, dtype, loads."""

    peer: str
    path: str
    dtype: str
    threads: int
    streams: list[int]
    decode_tokens: int
    prefill_tokens: int


def measure_rookery(job: Job) -> dict[str, Any]:
    """Decode tokens/s at each number of streams and prefill tokens/s, through `Engine.step`."""
    start = time.perf_counter()
    quantize = job["dtype"] if job["dtype"].startswith("int") else "none"
    dtype = job["dtype"] if quantize == "none" else "auto"
    model, info = load_model(Path(job["path"]), dtype=dtype, quantize=quantize)
    load_s = time.perf_counter() - start
    engine = Engine(model, max_batch=max(job["streams"]), max_queue=64, prefill_budget=job["prefill_tokens"])

    def submit(number: int, prompt_tokens: int, max_tokens: int) -> None:
        prompt = tuple(1 + (7 * i + 13 * number) % (info.vocab_size - 1) for i in range(prompt_tokens))
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
        engine.submit(Request(id=f"bench-{number}-{time.perf_counter_ns()}", prompt_ids=prompt, sampling=params))

    def drain() -> None:
        while engine.busy:
            engine.step()

    submit(0, 32, 4)
    drain()  # warm-up: first calls allocate and choose kernels
    decode = {}
    for streams in job["streams"]:
        for number in range(streams):
            submit(number, 1, job["decode_tokens"] + 1)
        engine.step()  # the one-token prompts; every further step is one decode step of all streams
        start = time.perf_counter()
        steps = 0
        while engine.busy:
            engine.step()
            steps += 1
        decode[str(streams)] = streams * steps / (time.perf_counter() - start)
    start = time.perf_counter()
    submit(0, job["prefill_tokens"], 1)
    drain()
    prefill = job["prefill_tokens"] / (time.perf_counter() - start)
    return {"load_s": load_s, "decode_tok_s": decode, "prefill_tok_s": prefill, "peak_rss_mb": peak_rss_mb()}


def measure_official(job: Job) -> dict[str, Any]:
    """The same for the `rwkv` package, which has no batch: one stream."""
    os.environ.update(RWKV_JIT_ON="1", RWKV_CUDA_ON="0", RWKV_V7_ON="1")
    from rwkv.model import RWKV

    start = time.perf_counter()
    strategy = {"float32": "cpu fp32", "bfloat16": "cpu bf16"}[job["dtype"]]
    model = RWKV(model=job["path"].removesuffix(".pth"), strategy=strategy)
    load_s = time.perf_counter() - start
    logits, state = model.forward([1, 2, 3, 4], None)
    token = int(torch.argmax(logits))
    start = time.perf_counter()
    for _ in range(job["decode_tokens"]):
        logits, state = model.forward([token], state)
        token = int(torch.argmax(logits))
    decode = job["decode_tokens"] / (time.perf_counter() - start)
    prompt = [1 + (7 * i) % 65000 for i in range(job["prefill_tokens"])]
    start = time.perf_counter()
    state = None
    for at in range(0, len(prompt), 256):  # the package's own default chunk
        logits, state = model.forward(prompt[at : at + 256], state)
    prefill = job["prefill_tokens"] / (time.perf_counter() - start)
    return {"load_s": load_s, "decode_tok_s": {"1": decode}, "prefill_tok_s": prefill, "peak_rss_mb": peak_rss_mb()}


def main() -> None:
    """Measure the job given as the only argument."""
    job: Job = json.loads(sys.argv[1])
    torch.set_num_threads(job["threads"])
    set_threads(job["threads"])
    with torch.inference_mode():
        result = measure_rookery(job) if job["peer"] == "rookery" else measure_official(job)
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
