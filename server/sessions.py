"""A turn of a session as the HTTP side writes it: opened, followed while the reply comes, settled at its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from .engine.client import EngineClient
from .engine.questions import DropTurn, OpenTurn, SessionView, SettleTurn
from .text.reasoning import Piece
from .text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from .generation import Delta


class SessionTurn:
    """One turn. Until it is settled, leaving it (`drop`, or the `async with` without `keep`) changes nothing.

    Attributes:
        before: the session as it was before.
        prompt_ids: what the request appends; set before the generation begins.
        told: tokens of the turn as the history has it, from the reply's content; None: just what was drawn.
    """

    def __init__(self, engine: EngineClient, tokenizer: Tokenizer, name: str, tenant: str) -> None:
        self.before: SessionView | None = None
        self.prompt_ids: Sequence[int] = ()
        self.told: Callable[[str], list[int] | None] | None = None
        self._engine = engine
        self._tokenizer = tokenizer
        self._name = name
        self._tenant = tenant
        self._drawn: list[int] = []
        self._content: list[str] = []
        self._called = False
        self._over = False
        self._kept = False

    async def open(self, session: str, tuned_state: str | None) -> None:
        """Become the session's writer.

        Raises:
            SessionBusy: another request is.
            SessionDamaged, TooManySessions, StorageFailed, InvalidRequest: as the engine says.
        """
        try:
            told = await self._engine.ask(
                OpenTurn(tenant=self._tenant, turn=self._name, session=session, tuned_state=tuned_state)
            )
        except BaseException:  # a cancel too: the engine may have made this turn the writer already
            self.drop()
            raise
        self.before = told.sessions[0]

    @property
    def tokens(self) -> int:
        """That the session holds before this turn."""
        return self.before.tokens if self.before is not None else 0

    @property
    def continues(self) -> bool:
        """Whether the session has turns already."""
        return self.before is not None and self.before.turns > 0

    def keep(self) -> None:
        """Somebody else sees to the end of the turn."""
        self._kept = True

    async def follow(self, deltas: Sequence[Delta]) -> None:
        """Take note of the reply; when it is complete, return after the session holds it.

        Raises:
            StorageFailed: it could not be stored; the session is as it was.
            EngineError: the engine failed.
        """
        for delta in deltas:
            self._drawn += [event.token_id for event in delta.events if event.token_id is not None]
            for piece in delta.pieces:
                if not isinstance(piece, Piece):
                    self._called = True
                elif piece.kind == "content":
                    self._content.append(piece.text)
            if delta.finish is not None:
                await self._settle(delta)

    async def _settle(self, last: Delta) -> None:
        ids = self.told("".join(self._content)) if self.told is not None and not self._called else None
        if ids is None:
            ids = [*self.prompt_ids, *(self._visible(last.characters) if last.cut else self._drawn)]
        self._over = True
        try:
            await self._engine.ask(SettleTurn(tenant=self._tenant, turn=self._name, token_ids=ids))
        except BaseException:  # a cancel too: a turn nobody waits for is not kept
            self._engine.tell(DropTurn(tenant=self._tenant, turn=self._name))
            raise

    def _visible(self, characters: int) -> list[int]:
        """Tokens of the reply up to the stop string; one that reaches into it is written anew."""
        raw = b"".join(map(self._tokenizer.token_bytes, self._drawn))
        rest = raw.decode("utf-8", "replace")[:characters].encode()
        kept = []
        for token_id in self._drawn:
            text = self._tokenizer.token_bytes(token_id)
            if len(text) > len(rest) or not rest.startswith(text):
                break
            kept.append(token_id)
            rest = rest[len(text) :]
        return [*kept, *self._tokenizer.encode(rest.decode("utf-8", "replace"))] if rest else kept

    def drop(self) -> None:
        """Leave the session as it was; does nothing once the turn is settled."""
        if not self._over:
            self._over = True
            self._engine.tell(DropTurn(tenant=self._tenant, turn=self._name))

    async def __aenter__(self) -> SessionTurn:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if not self._kept:
            self.drop()
