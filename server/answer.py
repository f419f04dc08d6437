"""One choice, token by token: text up to a stop string, reasoning apart from content, tool calls apart from both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .text.detokenizer import Detokenizer, StopScanner
from .text.reasoning import CLOSE_TAG, ReasoningSplitter
from .text.reasoning import Piece as TextPiece
from .text.tokenizer import Tokenizer
from .text.tool_stream import ToolCallSplitter
from .text.tools import ToolCallDelta

Piece = TextPiece | ToolCallDelta


class Answer:
    """Reads the tokens of one choice.

    Stop strings end the content and are never looked for inside open reasoning.

    Args:
        stop: the client's stop strings and the template's.
        reasoning: splits thoughts from the content; None leaves the text as it is.
        thinking: the prompt ends inside reasoning.
        tools: splits calls from the content; None where there are no tools.
        strip_space: drop one space before the content: it belongs to templates that end in "Assistant:".
        strip_end: where the model ends the turn itself, drop the newlines held back for a stop string: the separator
            of turns, after which the next heading did not come. Where the limit cuts a heading off just before its
            colon, drop the heading.
        one_call: end before a second tool call.

    Attributes:
        ended: a stop string was met (or a second call began): nothing more comes, whatever is pushed.
        characters: of plain text read and let through so far, reasoning and tags included.
        cut: the text ends at `characters`, though more was drawn.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        reasoning: ReasoningSplitter | None = None,
        thinking: bool = False,
        tools: ToolCallSplitter | None = None,
        strip_space: bool = False,
        strip_end: bool = False,
        one_call: bool = False,
    ) -> None:
        self.ended = False
        self.characters = 0
        self.cut = False
        self._stop = frozenset(stop)
        self._detokenizer = Detokenizer(tokenizer)
        self._scanner = StopScanner(stop)
        self._reasoning = reasoning
        self._tools = tools
        self._strip_space = strip_space
        self._strip_end = strip_end
        self._one_call = one_call
        self._enough = False
        self._thought_tail: str | None = "" if thinking else None

    @property
    def reasoning(self) -> bool:
        """Whether the next token is a thought."""
        return self._thought_tail is not None

    def push(self, token_id: int) -> list[Piece]:
        """What can be sent now that this token is known."""
        return self._read(self._detokenizer.push(token_id))

    def flush(self, *, closed: bool) -> list[Piece]:
        """What was held back, at the end of the choice; `closed`: by an end token of the model's."""
        pieces = self._read(self._detokenizer.flush())
        if not self.ended:
            held = self._scanner.flush()
            text = self._without_separator(held, closed) if self._strip_end else held
            self.cut = len(text) < len(held)
            pieces += self._split(self._let_through(text), final=True)
        return pieces

    def _without_separator(self, held: str, closed: bool) -> str:
        if closed:
            return held.rstrip("\n")
        return "" if f"{held}:" in self._stop else held

    def _read(self, text: str) -> list[Piece]:
        if self.ended or not text:
            return []
        thoughts, text = self._thoughts(text)
        safe = thoughts + self._scanner.push(text)
        self.ended = self.cut = self._scanner.stopped is not None
        return self._split(self._let_through(safe), final=self.ended)

    def _let_through(self, text: str) -> str:
        self.characters += len(text)
        return text

    def _thoughts(self, text: str) -> tuple[str, str]:
        """The text up to the end of open reasoning, and the rest."""
        if self._thought_tail is None:
            return "", text
        seen = self._thought_tail + text
        at = seen.find(CLOSE_TAG)
        if at < 0:
            self._thought_tail = seen[1 - len(CLOSE_TAG) :]
            return text, ""
        cut = at + len(CLOSE_TAG) - len(self._thought_tail)
        self._thought_tail = None
        return text[:cut], text[cut:]

    def _split(self, text: str, *, final: bool) -> list[Piece]:
        """Reasoning, content and calls of text that is safe to send."""
        if self._reasoning is None:
            parts = [TextPiece("content", text)] if text else []
        else:
            parts = [*self._reasoning.push(text), *(self._reasoning.flush() if final else ())]
        pieces: list[Piece] = []
        for part in parts:
            if part.kind == "reasoning":
                pieces.append(part)
                continue
            content = part.text.removeprefix(" ") if self._strip_space else part.text
            self._strip_space = False
            pieces += self._calls(content)
        if final and self._tools is not None:
            pieces += self._only_allowed(self._tools.flush())
        return pieces

    def _calls(self, content: str) -> list[Piece]:
        if not content:
            return []
        if self._tools is None:
            return [TextPiece("content", content)]
        return self._only_allowed(self._tools.push(content))

    def _only_allowed(self, parts: Iterable[str | ToolCallDelta]) -> list[Piece]:
        """Parts of the content as pieces, up to the second call where only one is wanted."""
        pieces: list[Piece] = []
        for part in parts:
            if self._one_call and isinstance(part, ToolCallDelta) and part.index > 0:
                self.ended = self._enough = True
            if self._enough:
                break
            pieces.append(TextPiece("content", part) if isinstance(part, str) else part)
        return pieces
