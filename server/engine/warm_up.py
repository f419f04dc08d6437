"""What an engine on a device does before its first request, so that no request waits: compile, record, compare."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import cast

import torch

from ..model.exact import TokenByToken
from ..state.torch_pool import TorchPool
from .choice_sampling import ChoiceSampling
from .device import CudaDevice
from .engine import Engine
from .graphs import CudaRecorder, buckets, recordable
from .mixed_steps import mixed_sizes
from .request import SamplingParams


def warm_up(engine: Engine, progress: Callable[[float], None] | None = None) -> None:
    """Make an engine of torch ready; resets its states.

    On a GPU every kernel is compiled in the shapes that differ for it, decode steps are recorded and compared with
    the ones that they repeat, and from then on steps are launched ahead. On a CPU, and with `--exact`, nothing is done.

    Args:
        progress: called with the share done.
    """
    device = cast(TorchPool, engine.pool).device
    if not recordable(device) or isinstance(engine.model, TokenByToken):
        return
    tell = progress or _to_nobody
    sizes, recorder = buckets(engine.pool.slots), CudaRecorder()
    engine.forward.compile(partial(_part, tell, 0))
    _draw(engine)
    engine.forward.record(recorder, sizes, partial(_part, tell, 1))
    loop = engine.overlap(CudaDevice(device, engine.pool.slots))
    mixed = mixed_sizes(engine.pool.slots, engine.scheduler.prefill_budget)
    loop.record(recorder, sizes, partial(_part, tell, 2), mixed=mixed)


def _draw(engine: Engine) -> None:
    """Draw as the host does, for nobody: that has kernels of its own."""
    logits = torch.zeros(2, engine.model.shape.vocab_size, device=cast(TorchPool, engine.pool).device)
    params = SamplingParams(max_tokens=1, temperature=0.0), SamplingParams(max_tokens=1, top_p=0.5)
    engine.sampler.sample(logits, [ChoiceSampling(one) for one in params])


def _part(tell: Callable[[float], None], part: int, share: float) -> None:
    """Tell the share of one of three parts as a share of all."""
    tell((part + share) / 3)


def _to_nobody(share: float) -> None:
    """Nobody wants to know."""
