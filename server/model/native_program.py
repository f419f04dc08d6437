"""A program for the native library, written op by op: buffers, what is read and written, and where all have to wait."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

from rookery.kernels.cpu.arrays import FloatArray, address
from rookery.kernels.cpu.library import Act, CBuffer, COp, Format, Kind
from rookery.kernels.cpu.packed import Activations, Packed
from rookery.kernels.norms import LAYER_NORM_EPS

Operand = Activations | CBuffer
"""A buffer of the program, or one whose address is given at each run."""


class Program:
    """Ops in order, and everything their addresses point to.

    Args:
        tokens: most tokens of one run; buffers have room for so many.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens
        self._ops: list[COp] = []
        self._kept: list[object] = []

    def ops(self) -> ctypes.Array[COp]:
        """The program as the library takes it; alive as long as this object is."""
        return (COp * len(self._ops))(*self._ops)

    def buffer(self, width: int, format: Format = Format.F32) -> Activations:
        """A buffer [tokens, width]."""
        return Activations(self.tokens, width, format)

    def phase(self, *ops: COp) -> None:
        """Ops that may run side by side; what follows waits for all of them."""
        for op in ops:
            op.last = op is ops[-1]
        self._ops += ops

    def op(
        self,
        kind: Kind,
        *,
        inputs: Sequence[Operand | None] = (),
        out: Sequence[Operand] = (),
        vectors: Sequence[FloatArray | None] = (),
        matrix: Packed | None = None,
        act: Act = Act.NONE,
        heads: int = 0,
        head_size: int = 0,
        offset: int = -1,
        eps: float = LAYER_NORM_EPS,
    ) -> COp:
        """One op; `vectors` are float32."""
        op = COp(kind=kind, act=act, count=len(out), heads=heads, head_size=head_size, offset=offset, eps=eps)
        for place, operands in ((op.in_, inputs), (op.out, out)):
            for i, operand in enumerate(operands):
                if operand is not None:
                    place[i] = operand.struct() if isinstance(operand, Activations) else operand
        for i, vector in enumerate(vectors):
            op.vec[i] = address(vector)
        if matrix is not None:
            op.matrix = matrix.struct()
        self._kept.append((inputs, out, vectors, matrix))
        return op

    def mix(
        self,
        x: Activations,
        norm: Sequence[FloatArray],
        outputs: Sequence[tuple[FloatArray | None, Operand]],
        *,
        offset: int = -1,
    ) -> COp:
        """Layer norm of x, then each output's mix with the token before; a share of None is the norm itself."""
        shares, out = [share for share, _ in outputs], [operand for _, operand in outputs]
        return self.op(Kind.MIX, inputs=[x], out=out, vectors=[*norm, *shares], offset=offset)

    def matmul(
        self, matrix: Packed, x: Operand, out: Operand, act: Act = Act.NONE, gate: Activations | None = None
    ) -> COp:
        """out = act(x @ matrix.T); x must have the format that the matrix meets."""
        return self.op(Kind.MATMUL, matrix=matrix, inputs=[x, gate], out=[out], act=act)
