"""Bodies of OpenAI requests: what every generating route shares.

Types are strict (no "1" for 1, no 1.5 for a count), every number and list has bounds, fields this server has never
heard of are ignored, and known fields that it does not serve are refused when they would change the answer.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self, cast

from fastapi import Header
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from ..answer_grammar import AnswerGrammar
from ..engine.request import SamplingOrder, SamplingParams
from ..errors import InvalidRequest, UnsupportedParameter
from ..text.chat_template import Prompt
from ..text.grammar import lark_grammar, regex_grammar

PLAIN = Prompt("")
"""Nothing of a format before the completion."""
MAX_CHOICES = 128
"""Choices of one prompt (`n`, `best_of`)."""
MAX_PROMPTS = 256
"""Prompts of one completions request."""
REFERENCE_DECAY = 0.996
"""What the RWKV reference code multiplies token counts by at each step."""


def _refuse(value: Any, info: ValidationInfo) -> None:
    """Accept only what says nothing: null, "", [], {} or false."""
    if value:
        raise UnsupportedParameter(f"{info.field_name} is not supported by this server", param=info.field_name)


Refused = Annotated[None, BeforeValidator(_refuse), WithJsonSchema({"enum": [None, "", [], {}, False]})]
"""A field that is known and not served: refused, not quietly dropped."""

_FOREIGN = {
    "guided_json": "response_format",
    "guided_regex": "regex",
    "guided_choice": "regex",
    "guided_grammar": "grammar",
    "structured_outputs": "response_format, regex or grammar",
    "json_schema": "response_format",
    "ebnf": "grammar",
    "allowed_token_ids": "logit_bias or grammar",
    "bad_words": "logit_bias or grammar",
    "prompt_logprobs": "echo and logprobs of /v1/completions",
    "include_stop_str_in_output": None,
    "use_beam_search": None,
}
"""Fields by which other servers (vLLM, SGLang, llama.cpp) take what changes an answer, and how it is asked for here:
without the constraint that it believes to have set, a client would get free text."""

Unit = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopText = Annotated[str, Field(min_length=1, max_length=512)]
SessionId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$")]
SessionHeader = Annotated[
    SessionId | None, Header(alias="x-session-id", description="`session_id` for a body that has none.")
]
BiasKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,9})$")]
Bias = Annotated[float, Field(ge=-100, le=100)]


def _one_or_many(value: Any) -> str:
    return "many" if isinstance(value, list) else "one"


def _word_or_object(value: Any) -> str:
    return "object" if isinstance(value, dict) else "word"


WORD_OR_OBJECT = Discriminator(_word_or_object)
"""Which branch of a field is meant that takes both."""
ToolWord = Annotated[Literal["none", "auto", "required"], Tag("word")]
"""`tool_choice` without a name."""


Stop = Annotated[
    Annotated[StopText, Tag("one")] | Annotated[list[StopText], Field(max_length=16), Tag("many")],
    Discriminator(_one_or_many),
]


class Body(BaseModel):
    """A JSON object of a request."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)


class StreamOptions(Body):
    """`stream_options`: whether a last chunk with the usage is sent."""

    include_usage: bool | None = None


class GenerationBody(Body):
    """What completions and chat have in common. A null stands for the default, as OpenAI has it."""

    model: str = Field(min_length=1, max_length=512)
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    user: Annotated[str, Field(max_length=4096)] | None = None

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**20)] | None = None
    min_p: Unit | None = None
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    sampling_order: SamplingOrder | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    penalty_decay: Unit | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=10)] | None = None
    logit_bias: Annotated[dict[BiasKey, Bias], Field(max_length=1024)] | None = None

    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=128)] | None = None
    ignore_eos: bool | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=2**16)] | None = None
    regex: Annotated[str, Field(min_length=1, max_length=2**14)] | None = None
    state: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    cache: bool | None = None
    return_token_ids: bool | None = None
    session_id: SessionId | None = None

    @model_validator(mode="before")
    @classmethod
    def _no_foreign_fields(cls, given: Any) -> Any:
        for name in _FOREIGN.keys() & given.keys() if isinstance(given, dict) else ():
            if given[name]:
                mend = f"; use {_FOREIGN[name]}" if _FOREIGN[name] else ""
                raise UnsupportedParameter(f"{name} is not a field of this server{mend}", param=name)
        return given

    @model_validator(mode="after")
    def _fields_agree(self) -> GenerationBody:
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options is only for stream: true", param="stream_options")
        if self.grammar is not None and self.regex is not None:
            raise InvalidRequest("give either grammar or regex", param="regex")
        self.fits_session()
        return self

    def fits_session(self) -> None:
        """Whether a session can go on with this.

        Raises:
            InvalidRequest: it cannot.
        """
        if self.session_id is not None and self.choices != 1:
            raise InvalidRequest("a session goes on with one choice: n must be 1", param="n")

    def in_session(self, header: str | None) -> Self:
        """The request with the session that its header `x-session-id` names, where the body names none itself.

        The body wins because the header also chooses the server behind a proxy: a fork has an id of its own and is
        on the server of the session it was made from.

        Raises:
            InvalidRequest: no session can go on with it.
        """
        if header is None or self.session_id is not None:
            return self
        named = self.model_copy(update={"session_id": header})
        named.fits_session()
        return named

    @property
    def choices(self) -> int:
        """Choices in the answer, for each prompt."""
        return self.n or 1

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The client's own stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def constraint(self, prompt: Prompt = PLAIN) -> AnswerGrammar | None:
        """What the completion must match; `prompt` is how its text begins.

        Raises:
            InvalidRequest: it is too large, or cannot be read.
        """
        if self.regex is not None:
            return AnswerGrammar(regex_grammar(self.regex, prompt), "regex")
        if self.grammar is not None:
            return AnswerGrammar(lark_grammar(self.grammar, prompt), "grammar")
        return None

    def sampling(
        self,
        *,
        max_tokens: int,
        vocab_size: int,
        end_token: int | None,
        uncounted_ids: tuple[int, ...] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        grammar: str | None = None,
    ) -> SamplingParams:
        """How the engine draws this request's tokens; the only place where wire names become ours.

        Args:
            max_tokens: completion tokens at most, already checked against the server's limit.
            vocab_size: ids below it have text; others are never drawn and cannot be named.
            end_token: drawn, it ends a choice unless `ignore_eos`.
            uncounted_ids: left out of the counts of penalties that decay; with `penalty_decay` 1 all is counted.
            grammar: serialised, made of whichever field asked for one.

        Raises:
            InvalidRequest: a token id outside the vocabulary, or `min_tokens` over `max_tokens`.
        """
        bias = {int(token): value for token, value in (self.logit_bias or {}).items()}
        stop_tokens = set(self.stop_token_ids or ())
        for param, ids in (("logit_bias", bias), ("stop_token_ids", stop_tokens)):
            if ids and max(ids) >= vocab_size:
                raise InvalidRequest(f"{param}: token ids go from 0 to {vocab_size - 1}", param=param)
        if (self.min_tokens or 0) > max_tokens:
            raise InvalidRequest(f"min_tokens is over the {max_tokens} tokens allowed at most", param="min_tokens")
        if end_token is not None and not self.ignore_eos:
            stop_tokens.add(end_token)
        penalised = bool(self.presence_penalty or self.frequency_penalty)
        decay = _or(self.penalty_decay, REFERENCE_DECAY) if penalised else 1.0
        return SamplingParams(
            max_tokens=max_tokens,
            min_tokens=self.min_tokens or 0,
            temperature=_or(self.temperature, 1.0),
            top_p=_or(self.top_p, 1.0),
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            typical_p=_or(self.typical_p, 1.0),
            sampling_order=self.sampling_order or "temperature_first",
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            penalty_decay=decay,
            uncounted_ids=uncounted_ids if decay != 1 else (),
            repetition_penalty=_or(self.repetition_penalty, 1.0),
            logit_bias=bias,
            seed=secrets.randbits(63) if self.seed is None else self.seed % 2**63,
            stop_token_ids=tuple(sorted(stop_tokens)),
            token_limit=vocab_size,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            grammar=grammar,
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else float(value)


def prompt_kind(value: Any) -> str:
    """Which of the four shapes of `prompt` this is meant to be, by its first entry."""
    if not isinstance(value, list):
        return "text"
    first = value[0] if value else 0
    return "texts" if isinstance(first, str) else "batch" if isinstance(first, list) else "tokens"


TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
PromptField = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("texts")]
    | Annotated[TokenIds, Tag("tokens")]
    | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_PROMPTS, fail_fast=True), Tag("batch")],
    Discriminator(prompt_kind),
]


def one_by_one(given: str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]) -> list[str | list[int]]:
    """The texts and id lists in any of the four shapes."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [cast(str | list[int], given)]
    return list(cast(list[str | list[int]], given))
