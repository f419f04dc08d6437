"""What the HTTP side asks the engine about sessions, and what it is told. Plain data that travels as msgpack.

A turn of a session is written in four moves: `OpenTurn` (one writer at a time), a `Request` with the turn's name as
its id, `SettleTurn` with the tokens that the history is to have, and the answer to that, which comes when the new
state is stored. `DropTurn`, at any moment before, leaves the session as it was.
"""

from __future__ import annotations

import msgspec


class _Question(msgspec.Struct, tag=True, array_like=True, frozen=True, kw_only=True):
    tenant: str


class OpenTurn(_Question, frozen=True, kw_only=True):
    """Become the writer of a session, which need not exist yet; told what it holds."""

    turn: str
    """The id that the turn's request will have."""
    session: str
    tuned_state: str | None = None


class SettleTurn(_Question, frozen=True, kw_only=True):
    """The reply is complete. Told when the session holds the turn, as safe as it will be."""

    turn: str
    token_ids: list[int]
    """What the turn adds to the history: prompt and reply as they are to be remembered."""


class DropTurn(_Question, frozen=True, kw_only=True):
    """Forget about the turn, whatever has become of it. Not answered."""

    turn: str


class ListSessions(_Question, frozen=True, kw_only=True):
    limit: int
    after: str = ""


class ShowSession(_Question, frozen=True, kw_only=True):
    session: str


class DeleteSession(_Question, frozen=True, kw_only=True):
    session: str


class ForkSession(_Question, frozen=True, kw_only=True):
    session: str
    new: str


class ExportSession(_Question, frozen=True, kw_only=True):
    session: str


class ImportSession(_Question, frozen=True, kw_only=True):
    session: str
    data: bytes


Question = (
    OpenTurn
    | SettleTurn
    | DropTurn
    | ListSessions
    | ShowSession
    | DeleteSession
    | ForkSession
    | ExportSession
    | ImportSession
)


class SessionView(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """What a client may know of a session."""

    id: str
    tokens: int
    turns: int
    created: float
    updated: float
    tuned_state: str | None = None
    parent: str | None = None
    bytes: int = 0


class Told(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """The answer to a question: the sessions it is about, or an exported state."""

    sessions: list[SessionView] = []
    data: bytes = b""
