"""Models on a processor through the native library: each version's step as a program of ops, run in one call.

The equations are those of rwkv4.py to rwkv7.py, whose letters the names follow. Residual stream, token shift, norms,
WKV and everything added to a product are float32 whatever the weights are kept in.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import numpy as np

from rookery.kernels.backend import VARIABLE
from rookery.kernels.cpu.arrays import Array, FloatArray, address
from rookery.kernels.cpu.library import (
    TIER_VARIABLE,
    CBuffer,
    CCall,
    Format,
    Kind,
    StaleLibrary,
    Team,
    library,
    shared_team,
)
from rookery.kernels.cpu.packed import MEETS, Activations
from rookery.kernels.cpu.rows import HostRows

from ..errors import StartupError
from ..state.pool import HostPool, State
from .checkpoint import Checkpoint
from .kept import FORMATS, Kept
from .mapped import release
from .native_program import Program
from .native_rwkv import write_layers

logger = logging.getLogger(__name__)

LARGEST_HEAD, LARGEST_WIDTH = 256, 16384
"""What the kernels have room for; no published model comes near."""

TOKENS = 128
"""Tokens of one call; a step with more is made of several. With twice as many, activations no longer stay in the caches
near the cores; with half, each weight that comes from memory serves too few."""


def native_model(checkpoint: Checkpoint, kept: str) -> NativeModel | None:
    """The model on the native library, with matrices kept as `kept`; None where torch has to serve.

    `ROOKERY_KERNELS`, set to anything, leaves it to torch.

    Raises:
        StartupError: the library is an old one, or has no team of that size or tier.
    """
    shape = checkpoint.shape
    if os.environ.get(VARIABLE) or kept not in FORMATS:
        return None
    if shape.head_size > LARGEST_HEAD or max(shape.width, shape.mix_width, shape.ffn_width // 4) > LARGEST_WIDTH:
        return None
    try:
        built = library()
    except StaleLibrary as error:
        raise StartupError(str(error), "run `make setup`, or install the project again with pip") from error
    if built is None:
        logger.warning(
            "the native library is not built (no C compiler at install): torch serves, at about half the speed"
        )
        return None
    try:
        team = shared_team()
    except RuntimeError as error:
        mend = f"set --threads to 256 at most, and {TIER_VARIABLE} to portable, avx2, avx512 or nothing"
        raise StartupError(str(error), mend, exit_code=2) from error
    return NativeModel(checkpoint, weights=FORMATS[kept], team=team)


class NativeModel:
    """Any version of RWKV, behind `base.Model`, on a processor.

    Args:
        checkpoint: checked by its reader; nothing is checked again here.
        weights: how the matrices are kept.
        team: the threads to run on.
    """

    piece: int | None = TOKENS

    def __init__(self, checkpoint: Checkpoint, *, weights: Format, team: Team) -> None:
        self.shape = checkpoint.shape
        self.format = weights
        self.team = team
        self.tuned_state = checkpoint.tuned_state
        self.named_states = checkpoint.named_states
        kept = Kept(checkpoint, weights)
        step = Program(TOKENS)
        x = step.buffer(self.shape.width)
        embedding = kept.embedding()
        self._table = embedding.data
        step.phase(step.op(Kind.EMBED, matrix=embedding, vectors=kept.norm("blocks.0.ln0"), out=[x]))
        write_layers(step, kept, x)
        hidden = _given(self.shape.width)
        step.phase(step.mix(x, kept.norm("ln_out"), [(None, hidden)]))
        self._step = step.ops()
        self._hidden = self._step[-1].out[0]

        head = Program(TOKENS)
        matrix = kept.matrix("head.weight")
        logits = _given(self.shape.vocab_size)
        if MEETS[matrix.format] == Format.F32:
            head.phase(head.matmul(matrix, hidden, logits))
        else:
            packed = Activations(TOKENS, self.shape.width, MEETS[matrix.format])
            head.phase(head.op(Kind.PACK, inputs=[hidden], out=[packed]))
            head.phase(head.matmul(matrix, packed, logits))
        self._head = head.ops()
        self._head_in, self._head_out = self._head[0].in_[0], self._head[-1].out[0]
        self._kept = (step, head)
        self.weight_bytes = kept.bytes

    def new_pool(self, slots: int) -> HostPool:
        """A pool of that many slots."""
        return HostPool(self.shape, slots)

    def initial_state(self, name: str | None) -> State | None:
        """See `base.Model.initial_state`."""
        return self.tuned_state if name is None else self.named_states[name]

    def rest(self) -> None:
        """See `base.Model.rest`: of a mapped embedding each token has left some pages."""
        release([self._table])

    def forward(self, token_ids: Array, rows: HostRows, pool: HostPool) -> FloatArray:
        """See `base.Model.forward`."""
        width = self.shape.width
        hidden = np.empty((len(token_ids), width), np.float32)
        ids = np.ascontiguousarray(token_ids, np.int64)
        start = 0
        for piece in _pieces(rows):
            call = CCall(
                tokens=piece.tokens,
                rows=len(piece.lengths),
                ids=ids[start:].ctypes.data,
                slots=address(piece.slots),
                starts=address(piece.starts),
                shift=address(pool.shift),
                wkv=address(pool.wkv),
                shift_stride=pool.shift[0].size,
                wkv_stride=pool.wkv[0].size,
            )
            self._hidden.data = hidden[start:].ctypes.data
            self.team.run(self._step, call)
            start += piece.tokens
        return hidden

    def logits(self, hidden: FloatArray) -> FloatArray:
        """See `base.Model.logits`."""
        hidden = np.ascontiguousarray(hidden)
        logits = np.empty((len(hidden), self.shape.vocab_size), np.float32)
        for start in range(0, len(hidden), TOKENS):
            part = hidden[start : start + TOKENS]
            self._head_in.data = part.ctypes.data
            self._head_out.data = logits[start:].ctypes.data
            self.team.run(self._head, CCall(tokens=len(part)))
        return logits


def _given(width: int) -> CBuffer:
    """A float32 buffer whose address each run sets."""
    return CBuffer(width=width, stride=width, format=Format.F32)


def _pieces(rows: HostRows) -> Iterator[HostRows]:
    """The rows in parts of at most TOKENS tokens; a longer row goes on in the next part."""
    if rows.tokens <= TOKENS:
        if rows.tokens:
            yield rows
        return
    slots: list[int] = []
    lengths: list[int] = []
    for slot, length in zip(rows.slots.tolist(), rows.lengths, strict=True):
        while length:
            part = min(length, TOKENS - sum(lengths))
            slots.append(slot)
            lengths.append(part)
            length -= part
            if sum(lengths) == TOKENS:
                yield HostRows.pack(slots, lengths)
                slots, lengths = [], []
    if slots:
        yield HostRows.pack(slots, lengths)
