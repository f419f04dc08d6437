"""Text in, text deltas out: joins the tokenizer and templates to the engine, for every route that generates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from .answer import Answer
from .answer_grammar import AnswerGrammar, CheckedGrammars
from .chat import Chat
from .config import Config
from .engine.client import EngineClient
from .engine.request import Request, SamplingParams
from .engine.stream import EventStream
from .errors import InvalidRequest, ModelNotFound, NotReady, PromptTooLong
from .generation import Generation
from .metrics import Metrics
from .served_model import ServedModel
from .sessions import SessionTurn
from .telemetry import trace
from .text.chat_template import Prompt

_INLINE_CHARS = 8192
"""Longer texts are tokenised in a thread: the event loop serves everybody."""
_DOCUMENT_START = 0
"""What an empty prompt is: token 0 begins every document RWKV was trained on."""


class Service:
    """One server's way from a prompt to a running generation.

    `load` must have returned before `model` is there; until then everything raises NotReady.
    """

    def __init__(self, config: Config, engine: EngineClient, metrics: Metrics) -> None:
        self.config = config
        self.engine = engine
        self.metrics = metrics
        self._model: ServedModel | None = None
        self._grammars = CheckedGrammars()
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

    async def check(self, grammar: AnswerGrammar | None) -> str | None:
        """The text of a grammar, once it is known to compile.

        Raises:
            InvalidRequest: it does not, within the limits.
        """
        return None if grammar is None else await self._grammars.check(self.model.tokenizer, grammar)

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
        grammar: AnswerGrammar | None = None,
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
            grammar: that of `sampling`; errors name the field it is from.

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
            shaped_by=None if grammar is None else grammar.param,
        )
        name = self.model.names[0]
        trace(generation, name if tuned_state is None else f"{name}:{tuned_state}")
        return generation
