"""What goes into the engine and what comes out: plain data, standard library only.

Both processes use these types; `messages.py` says how they travel. Token ids only: text, templates, stop strings
and API names stay on the HTTP side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "error", "cancelled"]
SamplingOrder = Literal["temperature_first", "top_p_first"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How one request's tokens are drawn. Ranges are checked where requests enter (`api/schemas.py`).

    The order of operations on a row of logits is: `logit_bias`, bans (`token_limit`, stop tokens before `min_tokens`,
    grammar), penalties, then temperature and the truncations in `sampling_order`, then the draw.
    """

    max_tokens: int
    """Completion tokens at most, per choice; 0 only scores the prompt."""
    min_tokens: int = 0
    """Stop tokens are banned before so many completion tokens."""
    temperature: float = 1.0
    """0 is greedy: the lowest id among equal maxima."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    typical_p: float = 1.0
    sampling_order: SamplingOrder = "temperature_first"
    """`top_p_first` truncates the untempered probabilities, as ChatRWKV's `sample_logits` does."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_decay: float = 1.0
    """Each step multiplies every token's count by this (the reference code uses 0.996)."""
    uncounted_ids: tuple[int, ...] = ()
    """Drawing one of these adds nothing to its count, so only `presence_penalty` bears on it."""
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    """Key of the counter-based random numbers: draw = f(seed, choice, index of the token)."""
    stop_token_ids: tuple[int, ...] = ()
    """Sampling one of these ends the choice; it is reported but not part of the text. Holds the end token too."""
    token_limit: int | None = None
    """Ids at or above it have no text and are never drawn."""
    logprobs: int | None = None
    """None: none. k: log-probability of each chosen token and of the k likeliest, from the raw logits."""
    prompt_logprobs: int | None = None
    """The same for every prompt token, from the token before it."""
    grammar: str | None = None
    """A serialised llguidance grammar that the completion must match."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt and its choices. Choices share the prefill: its state is copied, never computed twice."""

    id: str
    prompt_ids: tuple[int, ...]
    """At least one token."""
    sampling: SamplingParams
    choices: int = 1
    tenant: str = ""
    """Digest of the API key: queueing is fair between tenants, and caches never cross them."""
    tuned_state: str | None = None
    """Name of a tuned initial state; None starts from zero."""
    cache: bool = True
    """Whether stored states are used for this request, and its own are stored for others."""
    session: bool = False
    """Whether it writes a turn of a session: its id is then the turn's name."""
    boundaries: tuple[int, ...] = ()
    """So many tokens of the prompt are sure to begin a later one too, as the messages before do; ascending."""
    embed: bool = False
    """The answer is the model's output at the last token of the prompt; with `max_tokens` 0."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, from raw logits (before penalties, bias and temperature)."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, log-probability), likeliest first."""


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """What one step did for one choice of one request. Exactly one event of each choice has a `finish`."""

    request_id: str
    choice: int
    token_id: int | None
    """The token drawn; None when the choice ended without one (error, cancel, max_tokens 0)."""
    finish: FinishReason | None = None
    logprobs: TokenLogprobs | None = None
    error: str | None = None
    """One sentence for the client, with finish "error"."""
    refused: bool = False
    """What the request asks for is at fault, not the engine."""
    cached_tokens: int = 0
    """Prompt tokens taken from a stored state; on the first event of a choice."""
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    """On the first event of choice 0 when asked for; the first entry is None."""
    embedding: bytes | None = None
    """Of a request to embed: [width] float32, little-endian."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What the HTTP side must know of the model that was loaded."""

    model_path: str
    version: str
    """"4", "5.0", "5.1", "5.2", "6" or "7"."""
    parameters: int
    layers: int
    width: int
    vocab_size: int
    """Rows of the embedding; more than the tokenizer has entries, often."""
    state_bytes: int
    """Memory of one session, whatever its length."""
    weight_bytes: int
    dtype: str
    device: str
    fingerprint: str
    """Hex digest of the weights: states belong to it."""
    tuned_states: tuple[str, ...] = ()
    max_batch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Gauges and counters of the engine, as of its last step."""

    running: int = 0
    waiting: int = 0
    slots_used: int = 0
    slots_free: int = 0
    steps: int = 0
    step_seconds: float = 0.0
    """Duration of the last step."""
    batch_rows: int = 0
    """Rows of the last step."""
    cache_bytes: int = 0
    """Stored states in host memory."""
    cache_evictions: int = 0
    """States dropped from host memory to make room, since the start."""
    cache_hits: int = 0
    """States in host memory that prompts started from, since the start."""
    disk_bytes: int = 0
    """Stored states on disk."""
    disk_evictions: int = 0
    """States dropped from disk to make room, since the start."""
    disk_hits: int = 0
    """States read from disk for prompts to start from, since the start."""
    disk_skipped: int = 0
    """States that were not written to disk, for want of time or space, since the start."""
    disk_damaged: int = 0
    """Files of stored states found missing or damaged, since the start."""
    sessions: int = 0
    """That are stored, of this model."""
    session_bytes: int = 0
    """Size of their states."""
    session_memory_bytes: int = 0
    """States of sessions used last, in host memory beside the store."""
    session_evictions: int = 0
    """Of those, dropped to make room, since the start."""
    sessions_damaged: int = 0
    """Stored states found missing or damaged, since the start."""
