"""The grammar that an answer must match, and whether it compiles: found out once, off the event loop."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from hashlib import sha256

from .errors import InvalidRequest
from .text.grammar import check_grammar
from .text.tokenizer import Tokenizer

_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class AnswerGrammar:
    """A serialised grammar, and the request field that asked for it."""

    text: str
    param: str

    def fault(self, tokenizer: Tokenizer) -> InvalidRequest | None:
        """What is wrong with it; compiling may take seconds."""
        try:
            check_grammar(tokenizer, self.text, param=self.param)
        except InvalidRequest as fault:
            return fault
        return None


class CheckedGrammars:
    """Compiles one grammar at a time, and the same one once, also where it fails."""

    def __init__(self) -> None:
        self._faults: dict[bytes, InvalidRequest | None] = {}
        """By digest; None is well. The oldest go first."""
        self._compiler = asyncio.Semaphore(1)

    async def check(self, tokenizer: Tokenizer, grammar: AnswerGrammar) -> str:
        """The grammar's text, once it is known to compile.

        Raises:
            InvalidRequest: it does not, within the limits.
        """
        digest = sha256(f"{grammar.param} {grammar.text}".encode()).digest()
        if digest not in self._faults:
            async with self._compiler:
                if digest not in self._faults:  # nobody did it while this one waited
                    self._faults[digest] = await asyncio.to_thread(grammar.fault, tokenizer)
            if len(self._faults) > _REMEMBERED:
                del self._faults[next(iter(self._faults))]
        fault = self._faults[digest]
        if fault is not None:
            raise InvalidRequest(fault.message, param=fault.param, code=fault.code)
        return grammar.text
