"""Grammars that a completion must match: which tokens may come next.

llguidance compiles a grammar once; every choice walks its own copy. Compiling and making masks happen on threads of
their own (llguidance lets go of the interpreter lock), so that they overlap with the forward pass: a mask takes some
10 µs of it. A choice whose masks take much longer is `held` out of the steps until its mask is there, so that its
neighbours never wait for it twice.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from time import thread_time
from typing import TYPE_CHECKING, Protocol

import numpy as np

from rookery.kernels.cpu.arrays import Array

from .lanes import Lanes
from .request import SamplingParams

if TYPE_CHECKING:  # the first grammar loads it: the engine alone runs where it is not installed
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

_SLOW_S = 0.01
"""Processor time for one mask that a step should not have to wait for."""


class ConstraintError(Exception):
    """A grammar that does not compile, ran into a limit, or was given a token it does not allow; for the client."""


class Constraint(Protocol):
    """The grammar of one choice, and how far the choice has come in it."""

    @property
    def ready(self) -> bool:
        """`allowed` would answer at once."""
        ...

    @property
    def held(self) -> bool:
        """Its choice should sit out the next step: its masks are slow, and the next is not there."""
        ...

    @property
    def complete(self) -> bool:
        """The grammar is matched and nothing can follow."""
        ...

    def prepare(self) -> None:
        """Start making the next mask on another thread."""
        ...

    def allowed(self) -> Array:
        """[W] int32: bit t % 32 of word t // 32 is 1 where token t may come next.

        Stop tokens are allowed exactly where the grammar may end. Waits for what `prepare` started.

        Raises: ConstraintError.
        """
        ...

    def accept(self, token_id: int) -> None:
        """Move on by a token drawn.

        Raises: ConstraintError.
        """
        ...


class Constraints:
    """Makes constraints; keeps the compiled grammars used last.

    Args:
        tokenizer: makes llguidance's view of the vocabulary, whose `vocab_size` gives the width of the masks; called by
            the first grammar, on a thread, because it takes a while and memory that most servers never need.
        max_grammars, max_bytes: bounds of the cache: number of grammars, and their source text together.
        threads: so many compile grammars, for tenants in turn; one more makes the quick masks, another the slow ones.
        limits: of the grammar's size and of the work for one mask; llguidance's own when None.
        slow_s: processor time of a mask that makes its choice a slow one.
    """

    def __init__(
        self,
        tokenizer: Callable[[], LLTokenizer],
        *,
        max_grammars: int = 128,
        max_bytes: int = 8 << 20,
        threads: int = 3,
        limits: LLParserLimits | None = None,
        slow_s: float = _SLOW_S,
    ) -> None:
        self._tokenizer = tokenizer
        self._max_grammars = max_grammars
        self._max_bytes = max_bytes
        self._limits = limits
        self._compilers = Lanes(threads, "grammar-compile")
        self._maskers = MaskThread("grammar-mask"), MaskThread("grammar-slow-mask")
        self._slow_s = slow_s
        self._compiled: OrderedDict[str, Future[tuple[LLMatcher, int]]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def start(self, params: SamplingParams, tenant: str = "") -> GrammarConstraint | None:
        """A constraint at the start of the grammar; returns at once. None where there is no grammar."""
        if params.grammar is None:
            return None
        constraint = GrammarConstraint(params.stop_token_ids, self._maskers, self._slow_s)
        compiled = self._compile(params.grammar, tenant)
        # asked for once the grammar is there, so that it never holds a thread that the compilation needs
        compiled.add_done_callback(lambda _: self._compilers.submit(tenant, lambda: constraint.begin(compiled)))
        return constraint

    def close(self) -> None:
        """Stop the threads; constraints cannot be used any more."""
        self._compilers.close()
        for masker in self._maskers:
            masker.close()

    def __len__(self) -> int:
        """Grammars kept."""
        return len(self._compiled)

    def _compile(self, grammar: str, tenant: str) -> Future[tuple[LLMatcher, int]]:
        with self._lock:
            if grammar in self._compiled:
                self._compiled.move_to_end(grammar)
                return self._compiled[grammar]
            future = self._compilers.submit(tenant, lambda: self._compile_now(grammar))
            self._compiled[grammar] = future
            self._bytes += len(grammar)
            while len(self._compiled) > 1 and (
                len(self._compiled) > self._max_grammars or self._bytes > self._max_bytes
            ):
                oldest, _ = self._compiled.popitem(last=False)  # running choices keep their own copy
                self._bytes -= len(oldest)
            return future

    def _compile_now(self, grammar: str) -> tuple[LLMatcher, int]:
        """The matcher, and how many tokens its masks have."""
        from llguidance import LLMatcher, LLParserLimits

        tokenizer = self._tokenizer()
        limits = self._limits or LLParserLimits(verbose_errors=False)
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
        _check(matcher, "the grammar cannot be used")
        return matcher, tokenizer.vocab_size


def _check(matcher: LLMatcher, what: str) -> None:
    if matcher.is_error():
        raise ConstraintError(f"{what}: {matcher.get_error()[:500]}")


class MaskThread:
    """A thread that makes masks in the order they are asked for.

    A queue and one thread, not a pool: asking costs a microsecond of the step, and the thread wakes once for all the
    rows of a step.
    """

    def __init__(self, name: str) -> None:
        self._asked: SimpleQueue[tuple[GrammarConstraint, Future[Array]] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def ask(self, constraint: GrammarConstraint, mask: Future[Array]) -> None:
        """Have the next mask of a constraint made."""
        self._asked.put((constraint, mask))

    def close(self) -> None:
        """End the thread, after what was asked so far."""
        self._asked.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None:
            constraint, mask = asked
            try:
                mask.set_result(constraint.make_mask())
            except Exception as error:  # whatever it is, whoever waits for the mask has to hear of it
                mask.set_exception(error)


class GrammarConstraint:
    """A `Constraint` by llguidance; made by `Constraints.start`.

    The matcher is touched by one thread at a time: the one that makes a mask, and otherwise the caller's.
    """

    def __init__(
        self, stop_token_ids: Sequence[int], maskers: tuple[MaskThread, MaskThread], slow_s: float = _SLOW_S
    ) -> None:
        self._words = 0
        self._stop_token_ids: Sequence[int] = stop_token_ids
        self._maskers = maskers
        self._slow_s = slow_s
        self._slow = False
        self._matcher: LLMatcher | None = None
        self._complete = False
        self._mask: Future[Array] | None = Future()

    @property
    def ready(self) -> bool:
        return self._mask is not None and self._mask.done()

    @property
    def held(self) -> bool:
        return self._slow and not self.ready

    @property
    def complete(self) -> bool:
        return self._complete

    def prepare(self) -> None:
        if self._mask is None:
            self._mask = Future()
            self._maskers[self._slow].ask(self, self._mask)

    def allowed(self) -> Array:
        self.prepare()
        assert self._mask is not None
        return self._mask.result()

    def accept(self, token_id: int) -> None:
        if self._mask is not None:
            self._mask.result()  # no thread is on the matcher any more
            self._mask = None
        assert self._matcher is not None
        if not self._matcher.consume_token(token_id):
            raise ConstraintError(f"the grammar does not allow the token drawn: {self._matcher.get_error()[:500]}")
        _check(self._matcher, "the grammar cannot go on")
        self._complete = self._matcher.is_stopped()

    def begin(self, compiled: Future[tuple[LLMatcher, int]]) -> None:
        """Make the first mask, of what was compiled; or hand on why it was not."""
        first = self._mask
        assert first is not None
        try:
            matcher, vocab_size = compiled.result()
            self._matcher = matcher.deep_copy()
            self._words = (vocab_size + 31) // 32
            self._stop_token_ids = tuple(t for t in self._stop_token_ids if t < self._words * 32)
            mask = self.make_mask()
        except Exception as error:  # whatever it is, whoever waits for the mask has to hear of it
            first.set_exception(error)
        else:
            self._slow = False  # the first mask builds much of the automaton, and no step waits for it
            first.set_result(mask)

    def make_mask(self) -> Array:
        """`allowed` for where the matcher stands; called by one thread at a time.

        Raises: ConstraintError.
        """
        matcher = self._matcher
        assert matcher is not None
        begun = thread_time()
        mask = np.empty(self._words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._slow |= thread_time() - begun > self._slow_s
        _check(matcher, "the grammar cannot go on")
        may_end = matcher.is_accepting()
        words = mask.view(np.uint32)  # the same memory
        for token_id in self._stop_token_ids:
            bit = 1 << token_id % 32
            if may_end:
                words[token_id // 32] |= bit
            else:
                words[token_id // 32] &= ~bit & 0xFFFFFFFF
        return mask
