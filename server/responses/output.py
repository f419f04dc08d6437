"""A reply as it becomes items: reasoning, messages and function calls, with the events that a stream tells of them.

Whole answers take the items and leave the events, so the two forms of an answer cannot differ.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from ..answer import Piece
from ..text.tools import ToolCallDelta
from . import items
from .items import Item, Status

Event = dict[str, Any]
"""One event of a stream, without its sequence number."""
Logprobs = Sequence[dict[str, Any]]


class Output:
    """The output of one response.

    Attributes:
        items: those that have begun, in order; the last one may be in progress and shows how far it has come.
    """

    def __init__(self) -> None:
        self._ended: list[Item] = []
        self._open: _OpenItem | None = None

    @property
    def items(self) -> list[Item]:
        return [*self._ended, *([] if self._open is None else [self._open.item("in_progress")])]

    @property
    def text_is_open(self) -> bool:
        """Whether more text would continue the last item."""
        return isinstance(self._open, _OpenMessage)

    def add(self, piece: Piece, logprobs: Logprobs = ()) -> Iterator[Event]:
        """What comes next of the reply; `logprobs` are those of the tokens of its text."""
        current = self._open
        if current is None or not current.continued_by(piece):
            yield from self._end("completed")
            current = self._open = _begun(piece, len(self._ended))
            yield from current.begin()
        yield from current.grow(piece, logprobs)

    def end(self, *, cut: bool) -> Iterator[Event]:
        """The reply has ended; `cut` when it was not the model that ended it. Nothing, said by the model, is an empty
        message."""
        if not cut and not self._ended and self._open is None:
            self._open = _OpenMessage(0)
            yield from self._open.begin()
        yield from self._end("incomplete" if cut else "completed")

    def _end(self, status: Status) -> Iterator[Event]:
        if self._open is not None:
            ended, self._open = self._open, None
            self._ended.append(ended.item(status))
            yield from ended.end(status)


class _OpenItem(ABC):
    """An item that grows."""

    kind: str

    def __init__(self, index: int) -> None:
        self.id = items.new_id(self.kind)
        self._index = index

    @abstractmethod
    def continued_by(self, piece: Piece) -> bool:
        """Whether the piece belongs to this item."""

    @abstractmethod
    def item(self, status: Status) -> Item:
        """The item as far as it has come."""

    @abstractmethod
    def grow(self, piece: Piece, logprobs: Logprobs) -> Iterator[Event]: ...

    def begin(self) -> Iterator[Event]:
        yield {
            "type": "response.output_item.added",
            "output_index": self._index,
            "item": self._added(),
        }

    def end(self, status: Status) -> Iterator[Event]:
        yield {"type": "response.output_item.done", "output_index": self._index, "item": self.item(status)}

    def _added(self) -> Item:
        return self.item("in_progress")

    def _event(self, type: str, **fields: object) -> Event:
        return {"type": f"response.{type}", "item_id": self.id, "output_index": self._index, **fields}


class _OpenText(_OpenItem):
    """An item with one part of text."""

    part_type: str
    piece_kind: str

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._texts: list[str] = []

    @abstractmethod
    def part(self) -> Item: ...

    def continued_by(self, piece: Piece) -> bool:
        return not isinstance(piece, ToolCallDelta) and piece.kind == self.piece_kind

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def begin(self) -> Iterator[Event]:
        yield from super().begin()
        yield self._event("content_part.added", content_index=0, part=self.part())

    def grow(self, piece: Piece, logprobs: Logprobs) -> Iterator[Event]:
        assert not isinstance(piece, ToolCallDelta)
        self._texts.append(piece.text)
        yield self._event(f"{self.part_type}.delta", content_index=0, delta=piece.text)

    def end(self, status: Status) -> Iterator[Event]:
        yield self._event(f"{self.part_type}.done", content_index=0, text=self.text)
        yield self._event("content_part.done", content_index=0, part=self.part())
        yield from super().end(status)

    def _added(self) -> Item:
        return {**self.item("in_progress"), "content": []}  # the part is told of apart


class _OpenMessage(_OpenText):
    kind, part_type, piece_kind = "message", "output_text", "content"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._logprobs: list[dict[str, Any]] = []

    def part(self) -> Item:
        return items.output_text(self.text, self._logprobs)

    def item(self, status: Status) -> Item:
        return items.message(self.id, "assistant", [self.part()], status)

    def grow(self, piece: Piece, logprobs: Logprobs) -> Iterator[Event]:
        self._logprobs += logprobs
        for event in super().grow(piece, logprobs):
            yield {**event, "logprobs": list(logprobs)}

    def end(self, status: Status) -> Iterator[Event]:
        for event in super().end(status):
            yield {**event, "logprobs": self._logprobs} if event["type"].endswith("text.done") else event


class _OpenReasoning(_OpenText):
    kind, part_type, piece_kind = "reasoning", "reasoning_text", "reasoning"

    def part(self) -> Item:
        return {"type": "reasoning_text", "text": self.text}

    def item(self, status: Status) -> Item:
        return items.reasoning(self.id, [self.part()], status)


class _OpenCall(_OpenItem):
    kind = "function_call"

    def __init__(self, index: int, first: ToolCallDelta) -> None:
        super().__init__(index)
        assert first.id is not None and first.name is not None, "the first piece of a call has both"
        self._call, self._call_id, self._name = first.index, first.id, first.name
        self._arguments: list[str] = []

    def continued_by(self, piece: Piece) -> bool:
        return isinstance(piece, ToolCallDelta) and piece.index == self._call

    def item(self, status: Status) -> Item:
        return items.function_call(self.id, self._call_id, self._name, "".join(self._arguments), status)

    def grow(self, piece: Piece, logprobs: Logprobs) -> Iterator[Event]:
        assert isinstance(piece, ToolCallDelta)
        if piece.arguments:
            self._arguments.append(piece.arguments)
            yield self._event("function_call_arguments.delta", delta=piece.arguments)

    def end(self, status: Status) -> Iterator[Event]:
        arguments = "".join(self._arguments)
        yield self._event("function_call_arguments.done", name=self._name, arguments=arguments)
        yield from super().end(status)


def _begun(piece: Piece, index: int) -> _OpenItem:
    if isinstance(piece, ToolCallDelta):
        return _OpenCall(index, piece)
    return _OpenReasoning(index) if piece.kind == "reasoning" else _OpenMessage(index)
