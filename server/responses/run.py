"""Responses in progress: what they were asked, what they have said so far, and who may see them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import InvalidRequest, RookeryError, SessionBusy, StorageFailed
from ..generation import Delta, Finish, Generation, Usage
from .items import Item
from .output import Event, Output
from .store import ResponseStore
from .turns import Json, Turn

Logprobs = Callable[[Delta, bool], list[Json]]
"""(delta, it continues a text) → log-probabilities of the text in it."""


class Run:
    """One response, from admission to its end.

    Args:
        settings: fields of the response object that do not change any more.
        input: items of this turn alone.
        parent: the turn it continues.
        logprobs: None when none are wanted.
    """

    def __init__(
        self,
        runs: Runs,
        generation: Generation,
        settings: Json,
        *,
        tenant: str,
        input: list[Item],
        parent: str | None,
        conversation: str | None,
        store: bool,
        logprobs: Logprobs | None,
    ) -> None:
        self.id = generation.id
        self.tenant = tenant
        self.generation = generation
        self.cancelled = False
        self._runs = runs
        self._settings = settings
        self._input = input
        self._parent = parent
        self.conversation = conversation
        self._store = store
        self._keep = True
        self._logprobs = logprobs
        self._output = Output()
        self._finish: Finish | None = None
        self._sequence = 0

    @property
    def stored(self) -> bool:
        """Whether it can be asked for by its id."""
        return self._store and self._keep

    def begin(self) -> Iterator[Event]:
        """The events before the first token."""
        for kind in ("created", "in_progress"):
            yield self._numbered({"type": f"response.{kind}", "response": self.response("in_progress")})

    def read(self, deltas: Iterable[Delta]) -> Iterator[Event]:
        """The events of these deltas."""
        for delta in deltas:
            logprobs = [] if self._logprobs is None else self._logprobs(delta, self._output.text_is_open)
            for piece in delta.pieces:
                own = logprobs if getattr(piece, "kind", None) == "content" else []
                for event in self._output.add(piece, own):
                    yield self._numbered(event)
                if own:
                    logprobs = []
            self._finish = delta.finish
            if delta.finish is not None:
                for event in self._output.end(cut=delta.finish == "length"):
                    yield self._numbered(event)

    def add(self, delta: Delta) -> None:
        """Gather a delta of an answer that is sent whole."""
        for _ in self.read([delta]):
            continue

    async def complete(self) -> Json:
        """The finished response, once it is stored.

        Raises:
            StorageFailed, NotFound, SessionBusy: it could not be stored, or not in its conversation.
        """
        cut = self._finish == "length"
        response = self.response("incomplete" if cut else "completed")
        response["incomplete_details"] = {"reason": "max_output_tokens"} if cut else None
        response["completed_at"] = None if cut else int(time.time())
        response["usage"] = usage(self.generation.usage)
        await self._put(response, None if self.cancelled else self.conversation)
        return response

    async def ended(self, error: RookeryError) -> Json:
        """The response that the client or an error ended; its conversation stays as it was."""
        for _ in self._output.end(cut=True):
            continue
        response = self.response("cancelled" if self.cancelled else "failed")
        if not self.cancelled:
            response["error"] = {"code": "server_error", "message": error.message}
        if not isinstance(error, StorageFailed):
            await self._put(response, None)
        return response

    async def last(self) -> list[Event]:
        """The event after the last delta."""
        try:
            response = await self.complete()
        except RookeryError as error:
            return await self.failure(error)
        return [self._numbered({"type": f"response.{response['status']}", "response": response})]

    async def failure(self, error: RookeryError) -> list[Event]:
        """The events that end a stream when the response was cancelled or has failed."""
        events = [self._numbered(event) for event in self._output.end(cut=True)]
        if not self.cancelled:
            told = {"code": error.code, "message": error.message, "param": error.param}
            events.append(self._numbered({"type": "error", **told}))
        try:
            response = await self.ended(error)
        except StorageFailed as worse:
            response = await self.ended(worse)
        return [*events, self._numbered({"type": "response.failed", "response": response})]

    def response(self, status: str) -> Json:
        """The response object as it is now."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.generation.created,
            "completed_at": None,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self._settings,
            "output": self._output.items,
            "usage": None,
        }

    def now(self) -> Json:
        """The response object for whoever asks for it meanwhile."""
        return self.response("cancelled" if self.cancelled else "in_progress")

    def cancel(self) -> None:
        """End it as its client asks.

        Raises:
            InvalidRequest: its last token has come already.
        """
        if self._finish is not None:
            raise InvalidRequest("the response has just ended: only one in progress can be cancelled")
        self.cancelled = True
        self.generation.close("cancel")

    def forget(self) -> None:
        """End it, and keep nothing of it."""
        self._keep, self.cancelled = False, True
        self.generation.close("cancel")

    def close(self) -> None:
        """End what still runs and let others write its conversation. Nothing is kept of an answer nobody waited for."""
        self._keep = self._keep and self._finish is not None
        self.generation.close()
        self._runs.ended(self)

    async def _put(self, response: Json, conversation: str | None) -> None:
        if not self._keep or not (self._store or conversation):
            return
        body = {name: value for name, value in response.items() if name != "output"}
        turn = Turn(
            id=self.id,
            parent=self._parent,
            input=self._input,
            output=response["output"],
            body=body,
            visible=self._store,
        )
        await self._runs.store.put(self.tenant, turn, conversation=conversation)
        if turn.visible and not self.stored:  # it was deleted meanwhile
            await self._runs.store.delete(self.tenant, self.id)

    def _numbered(self, event: Event) -> Event:
        self._sequence += 1
        return {**event, "sequence_number": self._sequence - 1}


class Runs:
    """All responses in progress, and the store of those that have ended."""

    def __init__(self, store: ResponseStore) -> None:
        self.store = store
        self._running: dict[str, Run] = {}
        self._writing: set[tuple[str, str]] = set()

    def reserve(self, tenant: str, conversation: str) -> None:
        """Become the one writer of a conversation, until `release` or the end of the run.

        Raises:
            SessionBusy: another response is being made in it.
        """
        if (tenant, conversation) in self._writing:
            raise SessionBusy(f"another response is being made in {conversation}", param="conversation")
        self._writing.add((tenant, conversation))

    def release(self, tenant: str, conversation: str | None) -> None:
        """Let others write the conversation."""
        if conversation is not None:
            self._writing.discard((tenant, conversation))

    def add(self, run: Run) -> None:
        self._running[run.id] = run

    def ended(self, run: Run) -> None:
        """Forget a run; does nothing the second time."""
        if self._running.pop(run.id, None) is not None:
            self.release(run.tenant, run.conversation)

    async def get(self, tenant: str, id: str) -> Json:
        """A response, in progress or stored.

        Raises:
            NotFound: there is none of this id.
        """
        run = self._find(tenant, id)
        if run is not None and run.stored:
            return run.now()
        return await self.store.get(tenant, id)

    async def cancel(self, tenant: str, id: str) -> Json:
        """End a response in progress.

        Raises:
            NotFound: there is none of this id.
            InvalidRequest: it has ended.
        """
        run = self._find(tenant, id)
        if run is not None:
            run.cancel()
            return run.now()
        response = await self.store.get(tenant, id)
        if response["status"] != "cancelled":
            raise InvalidRequest(f"the response is {response['status']}: only one in progress can be cancelled")
        return response

    async def delete(self, tenant: str, id: str) -> None:
        """Forget a response; one in progress ends.

        Raises:
            NotFound: there is none of this id.
        """
        run = self._find(tenant, id)
        if run is None or not run.stored:
            await self.store.delete(tenant, id)
        else:
            run.forget()

    def _find(self, tenant: str, id: str) -> Run | None:
        run = self._running.get(id)
        return run if run is not None and run.tenant == tenant else None


def usage(counts: Usage) -> dict[str, Any]:
    """OpenAI's `usage` of a response."""
    return {
        "input_tokens": counts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": counts.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": counts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": counts.reasoning_tokens},
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
    }
