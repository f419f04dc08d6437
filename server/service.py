"""Text in, text deltas out: joins the tokenizer and templates to the engine, for every route that generates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from .answer import Answer
from .chat import Chat
from .config import Config
from .engine.client import EngineClient
from .engine.request import EngineInfo, Request, SamplingParams
from .engine.stream import EventStream
from .errors import InvalidRequest, ModelNotFound, NotReady, PromptTooLong
from .generation import Generation
from .metrics import Metrics
from .sessions import SessionTurn
from .telemetry import trace
from .text.chat_template import ChatTemplate, Prompt, load_template
from .text.grammar import check_grammar
from .text.tokenizer import Tokenizer, load_tokenizer

_INLINE_CHARS = 8192
"""Longer texts are tokenised in a thread: the event loop serves everybody."""
_CHECKED_GRAMMARS = 1024
"""Digests of grammars of which it is known whether they compile."""
_DOCUMENT_START = 0
"""What an empty prompt is: token 0 begins every document RWKV was trained on."""


def served_names(config: Config, model_path: Path) -> tuple[str, ...]:
    """Names clients may use for the model; the first is the one reported."""
    return config.served_model_name or (model_path.stem if model_path.suffix else model_path.name,)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The loaded model as the HTTP side knows it."""

    names: tuple[str, ...]
    info: EngineInfo
    tokenizer: Tokenizer
    template: ChatTemplate
    longest_token: int
    """Bytes of the longest token: a text of n characters has at least n / longest_token tokens."""
    uncounted_ids: tuple[int, ...]
    """Tokens that decaying penalties do not count."""

    @classmethod
    def load(cls, config: Config, model_path: Path, info: EngineInfo) -> ServedModel:
        """Read tokenizer and template; takes a moment, so not on the event loop.

        Raises:
            StartupError: a file is missing or unusable.
        """
        tokenizer = load_tokenizer(config.tokenizer, model_path=model_path, vocab_size=info.vocab_size)
        tokenizer.encode(" ")  # has it make now what it makes for its first text
        return cls(
            names=served_names(config, model_path),
            info=info,
            tokenizer=tokenizer,
            template=load_template(
                config.chat_template, model_path=model_path, version=info.version, vocab_size=info.vocab_size
            ),
            longest_token=max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size)) or 1,
            uncounted_ids=tuple(id for id in range(tokenizer.vocab_size) if _uncounted(tokenizer.token_bytes(id))),
        )

    @property
    def vocab_size(self) -> int:
        """Ids below it can be drawn: they have text and a row in the head."""
        return min(self.tokenizer.vocab_size, self.info.vocab_size)

    @property
    def system_fingerprint(self) -> str:
        """`system_fingerprint` of every answer: equal weights answer equally."""
        return f"fp_{self.info.fingerprint[:12]}"


def _uncounted(token: bytes) -> bool:
    """Space, tab and digits, as the reference has it (`generate` of the `rwkv` package): numbers and layout repeat."""
    return len(token) > 0 and token in b" \t0123456789"


@dataclass(frozen=True, slots=True)
class Constraint:
    """A serialised grammar, and the request field that asked for it."""

    grammar: str
    param: str


class Service:
    """One server's way from a prompt to a running generation.

    `load` must have returned before `model` is there; until then everything raises NotReady.
    """

    def __init__(self, config: Config, engine: EngineClient, metrics: Metrics) -> None:
        self.config = config
        self.engine = engine
        self.metrics = metrics
        self._model: ServedModel | None = None
        self._checked: dict[bytes, InvalidRequest | None] = {}
        self._compiler = asyncio.Semaphore(1)
        self._loading: asyncio.Task[ServedModel] | None = None

    async def load(self) -> ServedModel:
        """Wait for the engine, and load tokenizer and template meanwhile; whoever calls it again waits for the same.

        Raises:
            StartupError: one of the three cannot be loaded.
            NotReady: the server stopped before.
        """
        if self._loading is None:
            self._loading = asyncio.create_task(self._load())
        return await asyncio.shield(self._loading)

    async def _load(self) -> ServedModel:
        info = await self.engine.known()
        model = await asyncio.to_thread(ServedModel.load, self.config, self.engine.model_path, info)
        await self.engine.ready()  # it reads the same vocabulary meanwhile
        self._model = model
        return model

    @property
    def model(self) -> ServedModel:
        """What is served.

        Raises:
            NotReady: it is not loaded yet.
        """
        if self._model is None:
            raise NotReady("the model is loading", retry_after_s=2)
        return self._model

    def tuned_state(self, model: str, state: str | None) -> str | None:
        """The tuned state that a request names, as `model:state` or in the field `state`; None for the plain model.

        Raises:
            ModelNotFound: no such model, or no such state of it.
            InvalidRequest: the two name different states.
        """
        known = self.model.info.tuned_states
        served = [*self.model.names, *(f"{name}:{tuned}" for name in self.model.names for tuned in known)]
        if model not in served:
            raise ModelNotFound(model, served)
        named = None if model in self.model.names else model.rpartition(":")[2]
        if state is not None and state not in known:
            raise InvalidRequest(f"there is no tuned state {state!r}", param="state")
        if state is not None and named is not None and state != named:
            raise InvalidRequest(f"the model is named with the state {named!r}", param="state")
        return state if named is None else named

    async def encode(self, text: str, *, param: str) -> list[int]:
        """Token ids of a prompt; one token at least.

        Raises:
            PromptTooLong: before anything is tokenised where the length alone tells it.
        """
        self._check_length(len(text), param=param)
        encode = self.model.tokenizer.encode
        ids = encode(text) if len(text) <= _INLINE_CHARS else await asyncio.to_thread(encode, text)
        return self.check_prompt(ids or [_DOCUMENT_START], param=param)

    async def render(self, chat: Chat) -> tuple[Prompt, list[int]]:
        """The prompt of a chat and its token ids.

        Raises:
            InvalidRequest: the template cannot write it.
            PromptTooLong: before anything is rendered where the length alone tells it.
        """
        model = self.model
        self._check_length(chat.characters, param="messages")
        if chat.characters <= _INLINE_CHARS:
            prompt = chat.render(model.template)
        else:
            prompt = await asyncio.to_thread(chat.render, model.template)
        ids = self._begun(prompt, await self.encode(prompt.text, param="messages"))
        return prompt, self.check_prompt(ids, param="messages")

    def remembered(self, chat: Chat, reply: str) -> list[int] | None:
        """Tokens of a chat's turn as its history has them; None where that is just what was drawn."""
        prompt = chat.remember(self.model.template, reply)
        return None if prompt is None else self._begun(prompt, self.model.tokenizer.encode(prompt.text))

    def _begun(self, prompt: Prompt, ids: list[int]) -> list[int]:
        """The ids of a prompt, after the end token where that begins a document."""
        end = self.model.tokenizer.eos_token_id
        return [end, *ids] if prompt.starts_document and end is not None else ids

    @asynccontextmanager
    async def turn(
        self, id: str, session: str | None, *, tenant: str, tuned_state: str | None
    ) -> AsyncIterator[SessionTurn | None]:
        """The turn of a session that the answer `id` will be; None without a session. Unless a generation takes it
        over, it is dropped at the end of the block.

        Raises:
            SessionBusy, SessionDamaged, TooManySessions, StorageFailed, InvalidRequest: as the engine says.
        """
        if session is None:
            yield None
            return
        async with SessionTurn(self.engine, self.model.tokenizer, f"{id}-0", tenant) as turn:
            await turn.open(session, tuned_state)
            yield turn

    def boundaries(self, prompt: Prompt, ids: Sequence[int]) -> tuple[int, ...]:
        """How many of the prompt's tokens are sure to begin the chat's later prompts too.

        That is up to the end of the last message, less one token: what follows there differs once the message is
        history (a reply loses its reasoning), and a token may be chosen by the text that follows it.
        """
        if not prompt.boundaries:
            return ()
        rest = len(prompt.text[prompt.boundaries[-1] :].encode())
        count = len(ids)
        while rest > 0 and count > 0:
            count -= 1
            rest -= len(self.model.tokenizer.token_bytes(ids[count]))
        return (count - 1,) if count > 1 else ()

    async def prompt(self, given: str | list[int], *, param: str) -> list[int]:
        """Token ids of a text, or those given; raises as `encode` and `check_prompt` do."""
        if isinstance(given, str):
            return await self.encode(given, param=param)
        return self.check_prompt(given, param=param)

    def _check_length(self, characters: int, *, param: str) -> None:
        longest, limit = self.model.longest_token, self.config.max_prompt_tokens
        if characters > limit * longest:
            raise PromptTooLong(characters // longest, limit, param=param)

    def check_prompt(self, ids: list[int], *, param: str) -> list[int]:
        """The same ids, when the engine can take them.

        Raises:
            PromptTooLong: more tokens than `--max-prompt-tokens`.
            InvalidRequest: an id outside the vocabulary.
        """
        if len(ids) > self.config.max_prompt_tokens:
            raise PromptTooLong(len(ids), self.config.max_prompt_tokens, param=param)
        if ids and max(ids) >= self.model.info.vocab_size:
            raise InvalidRequest(f"token ids go from 0 to {self.model.info.vocab_size - 1}", param=param)
        return ids

    async def check(self, constraint: Constraint | None) -> str | None:
        """Its grammar, once it is known to compile: off the event loop, one at a time, and once for the same one, also
        where it does not.

        Raises:
            InvalidRequest: it does not compile within the limits.
        """
        if constraint is None:
            return None
        digest = sha256(f"{constraint.param} {constraint.grammar}".encode()).digest()
        if digest not in self._checked:
            async with self._compiler:
                if digest not in self._checked:  # nobody did it while this one waited
                    self._checked[digest] = await asyncio.to_thread(self._fault, constraint)
            if len(self._checked) > _CHECKED_GRAMMARS:
                del self._checked[next(iter(self._checked))]
        fault = self._checked[digest]
        if fault is not None:
            raise InvalidRequest(fault.message, param=fault.param, code=fault.code)
        return constraint.grammar

    def _fault(self, constraint: Constraint) -> InvalidRequest | None:
        """What is wrong with a grammar."""
        try:
            check_grammar(self.model.tokenizer, constraint.grammar, param=constraint.param)
        except InvalidRequest as fault:
            return fault
        return None

    def completion_limit(self, asked: int | None, *, default: int | None = None, param: str) -> int:
        """Completion tokens a choice may have.

        Raises:
            InvalidRequest: more than `--max-completion-tokens` were asked for.
        """
        limit = self.config.max_completion_tokens
        if asked is None:
            return min(limit, limit if default is None else default)
        if asked > limit:
            raise InvalidRequest(f"{param} is at most {limit} on this server, not {asked}", param=param)
        return asked

    async def generate(
        self,
        id: str,
        prompts: Sequence[list[int]],
        sampling: Sequence[SamplingParams],
        answer: Callable[[], Answer],
        *,
        choices: int,
        tuned_state: str | None,
        tenant: str,
        arrival: float | None = None,
        cache: bool = True,
        boundaries: tuple[int, ...] = (),
        turn: SessionTurn | None = None,
        embed: bool = False,
        constraint: Constraint | None = None,
    ) -> Generation:
        """Admit a request: all its prompts are in the engine when this returns.

        Args:
            id: of the answer; the engine's requests are named after it.
            sampling: one for each prompt.
            answer: makes the reader of one choice's tokens.
            choices: of each prompt; choice c of prompt p is number p * choices + c of the answer.
            arrival: `perf_counter` when the request's head came.
            cache: whether stored states are used and kept.
            boundaries: of the one prompt, see `boundaries`.
            turn: of the session that the one prompt and its one choice continue.
            embed: ask for the model's output at the end of each prompt.
            constraint: where the grammar in `sampling` is from; errors name its field.

        Raises:
            QueueFull, NotReady, InvalidRequest, EngineError: as the engine says; nothing runs then.
        """
        streams: list[EventStream] = []
        try:
            for number, (ids, params) in enumerate(zip(prompts, sampling, strict=True)):
                request = Request(
                    id=f"{id}-{number}",
                    prompt_ids=tuple(ids),
                    sampling=params,
                    choices=choices,
                    tenant=tenant,
                    tuned_state=tuned_state,
                    cache=cache,
                    boundaries=boundaries,
                    session=turn is not None,
                    embed=embed,
                )
                streams.append(await self.engine.submit(request))
        except BaseException:  # a cancel too: none of the prompts may go on without the others
            for stream in streams:
                stream.cancel()
            raise
        held = turn.tokens if turn is not None else 0
        meter = self.metrics.meter(prompt_tokens=sum(map(len, prompts)) + held, arrival=arrival)
        if turn is not None:
            turn.keep()
        generation = Generation(
            id,
            streams,
            answer,
            meter,
            timeout_s=self.config.request_timeout,
            turn=turn,
            shaped_by=None if constraint is None else constraint.param,
        )
        name = self.model.names[0]
        trace(generation, name if tuned_state is None else f"{name}:{tuned_state}")
        return generation
