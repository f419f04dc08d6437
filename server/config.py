"""Every setting of `rookery serve`: its default and unit, read once from flags, `ROOKERY_…` variables or a TOML file.

The dataclass is the single source: cyclopts makes the flags, the environment names and the help of it, and
`docs/reference.md` is generated from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["none", "int8", "int4"]

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_bytes(text: str) -> int:
    """`2GiB`, `500MB` or a plain number, in bytes.

    Raises:
        ValueError: the text is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _to_bytes(type_: object, tokens: object) -> int:
    return parse_bytes(tokens[0].value)  # type: ignore[index]


Port = Annotated[int, Parameter(validator=Number(gte=0, lte=65535))]
Count = Annotated[int, Parameter(validator=Number(gte=1))]
Bytes = Annotated[int, Parameter(converter=_to_bytes, accepts_keys=False, n_tokens=1)]
Seconds = Annotated[float, Parameter(validator=Number(gt=0))]


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one server. "auto" values are resolved by the engine, which logs what it chose."""

    host: str = "127.0.0.1"
    """Address to listen on. Beyond the loopback address, set an API key too."""
    port: Port = 8000
    """TCP port; 0 takes a free one."""
    served_model_name: tuple[str, ...] = ()
    """Name(s) clients may use for the model; the first is the one reported. Default: the file's or folder's name."""
    device: Device = "auto"
    """Where the model runs."""
    dtype: Dtype = "auto"
    """Type of the weights; auto is float32 on a CPU and bfloat16 on a GPU. WKV is computed in float32."""
    quantize: Quantize = "none"
    """Matrices of 8 or 4 bits, made at load: less memory and faster decoding on a CPU, at some loss of exactness."""
    slot_dtype: Literal["float32", "float16"] = "float32"
    """Type of running sequences' WKV states between steps; float16 halves them (docs/precision.md). Not for RWKV-4 nor
    the native CPU library, which have float32."""
    exact: bool = False
    """Results of a request are the same bits alone and in any batch, from stored states and without. The native CPU
    library always gives that; torch and GPUs do with this flag, one token at a time: slow (docs/precision.md)."""
    threads: Count | None = None
    """Threads to compute on, on a CPU; default: one for each core, or `OMP_NUM_THREADS`."""
    max_batch: Count = 64
    """Sequences that run at the same time (state slots)."""
    max_queue: Count = 256
    """Requests that may wait for a slot; one more gets a 429."""
    prefill_budget: Count = 8192
    """Prompt tokens computed in one step at most, over all rows."""
    step_target: Seconds = 0.25
    """Seconds a step may take that computes prompts: they are cut so small that running streams wait no longer."""
    max_prompt_tokens: Count = 1_048_576
    """Longest prompt, in tokens; the state does not grow with it, the time does."""
    max_completion_tokens: Count = 32_768
    """Longest completion, in tokens, and what a chat gets that asks for no limit."""
    cache_memory: Bytes = 2 * 2**30
    """Host memory for stored states: prompts that begin as earlier ones did start from there; 0 is off."""
    cache_disk: Bytes = 10 * 2**30
    """Disk space in --data-dir for the same: what is there survives a restart; 0 is off."""
    data_dir: Path | None = None
    """Folder that sessions are kept in, safe against crashes; without it they live in memory, as long as the engine."""
    state_dtype: Literal["float32", "float16"] = "float32"
    """Type of WKV states in the folder; float16 halves them, at an error of about 1e-4 in what follows a restore."""
    session_memory: Bytes = 2 * 2**30
    """Host memory for sessions, for example 2GiB. With --data-dir: for those used last, whose files then need not be
    read. Without: for all, and beyond it new ones are refused."""
    session_ttl: Annotated[float, Parameter(validator=Number(gte=0))] = 0.0
    """Seconds after which a session that nobody used is deleted; 0 keeps all."""
    max_sessions: Count = 10_000
    """Sessions that one API key may have."""
    max_responses: Count = 16_384
    """Stored responses (`/v1/responses`, turns of conversations) of one API key; then those unused longest go."""
    response_storage: Bytes = 256 * 2**20
    """What their items may take, of one API key, for example 1GiB; likewise."""
    response_ttl: Annotated[float, Parameter(validator=Number(gte=0))] = 30 * 86_400.0
    """Seconds after its last use until a stored response that no other continues is forgotten; 0 keeps all."""
    request_timeout: Seconds = 3600.0
    """Seconds a request may take from arrival to its last token."""
    tokenizer: Path | None = None
    """World vocabulary .txt or tokenizer.json; default: beside the model, else by vocabulary size."""
    chat_template: str | None = None
    """Built-in template name (world, g1, raven-chat, raven-instruct, pile) or a Jinja file."""
    state: tuple[str, ...] = ()
    """NAME=FILE of a tuned initial state, served as the model `<name>:NAME`; repeatable."""
    api_key: tuple[str, ...] = ()
    """Key(s) clients must send as `Authorization: Bearer …`; none: no key is asked for."""
    api_key_file: Path | None = None
    """File with one API key a line."""
    allowed_host: tuple[str, ...] = ()
    """Host name(s) a server without keys answers to, beside localhost and plain addresses; `*` is any name."""
    cors_origin: tuple[str, ...] = ()
    """Origin(s) of web pages that may call the server; none: no other page may."""
    max_body: Bytes = 8 * 2**20
    """Largest request body, for example 8MiB. An imported state may have the model's size of one instead."""
    max_connections: Count = 2048
    """Connections held at the same time; one more gets a 503."""
    header_timeout: Seconds = 10.0
    """Seconds a client may take to send the headers of a request."""
    body_timeout: Seconds = 15.0
    """Seconds a request body may take beyond its size at 16 KiB a second."""
    idle_timeout: Seconds = 60.0
    """Seconds a kept connection may wait for its next request."""
    send_timeout: Seconds = 30.0
    """Seconds a client may leave an answer unread before its connection is cut."""
    shutdown_grace: Seconds = 20.0
    """Seconds running requests get to finish after SIGTERM."""
    log_format: Literal["text", "json"] = "text"
    """How log lines are written."""
