"""What a GPU is asked for in a step needs nothing from the host in between: it can be recorded, and nobody waits.

The device here is torch's `meta`, which has shapes and no numbers: whatever reads one fails, and so does what mixes
host and device. Kernels are not launched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rookery.kernels import backend
from rookery.server.engine.batch import Batch, Choice, Chunk, Prefill
from rookery.server.engine.choice_sampling import ChoiceSampling
from rookery.server.engine.forward import Forward
from rookery.server.engine.loop import DeviceLoop
from rookery.server.engine.mixed_steps import FIRSTS
from rookery.server.engine.request import Request, SamplingParams
from rookery.server.model.load import construct
from rookery.server.model.synthetic import Plan, synthetic_checkpoint

triton = pytest.importorskip("triton")

META = torch.device("meta")


class Sending:
    """A device that is sent what it needs, and never answers."""

    def __init__(self) -> None:
        self.sent = 0

    def send(self, values: Tensor) -> Tensor:
        assert values.device.type == "cpu"
        self.sent += 1
        return torch.empty(values.shape, dtype=values.dtype, device=META)

    def fetch(self, values: Tensor) -> object:
        assert values.device == META
        return list

    def bring(self, values: Tensor) -> object:
        assert values.device == META
        return list


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that would have been launched. No tensor is made there from numbers here: that waits."""
    monkeypatch.setenv(backend.VARIABLE, "triton")
    names: list[str] = []
    monkeypatch.setattr(
        triton.runtime.jit.JITFunction, "run", lambda kernel, *args, **options: names.append(kernel.__module__)
    )
    make = torch.tensor

    def on_the_host(*args: Any, **options: Any) -> Tensor:
        made: Tensor = make(*args, **options)
        assert made.device.type == "cpu"
        return made

    monkeypatch.setattr(torch, "tensor", on_the_host)
    assert backend.uses_triton(META.type)
    return names


def loop_of(version: str, dtype: torch.dtype, sampling: dict[Choice, ChoiceSampling]) -> tuple[DeviceLoop, Sending]:
    ranks = {"6": (32, 64), "7": (64, 64, 32, 128)}.get(version, ())
    plan = Plan(version=version, layers=2, width=128, ffn_width=256, vocab_size=512, ranks=ranks)  # type: ignore[arg-type]
    model = construct(synthetic_checkpoint(plan, dtype=torch.float32), dtype, META, torch.float32)
    device = Sending()
    return DeviceLoop(Forward(model, model.new_pool(6)), device, sampling), device  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_a_decode_step_with_its_draw_can_be_recorded(version: str, dtype: torch.dtype, launched: list[str]) -> None:
    loop, _ = loop_of(version, dtype, {})
    slots = torch.full((4,), -1, device=META)
    with torch.inference_mode():
        hidden, tokens = loop._step_on(slots)()
    assert hidden.shape == (4, 128) and tokens.shape == (4,)
    assert {"rookery.kernels.triton.shift_mix", "rookery.kernels.triton.sample"} <= set(launched)


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_a_step_with_short_prompts_can_be_recorded(version: str, launched: list[str]) -> None:
    loop, _ = loop_of(version, torch.bfloat16, {})
    size = 3, 32
    told = loop.mixed._told(size, [], [], [], [], []).to(META)
    with torch.inference_mode():
        hidden, tokens = loop.mixed._step_on(size, told)()
    assert hidden.shape == (3 + 32, 128) and tokens.shape == (3 + FIRSTS,)
    assert "rookery.kernels.triton.sample" in launched


@pytest.mark.parametrize("version", ["4", "5.2", "6", "7"])
def test_a_step_with_prompts_waits_for_nothing(version: str, launched: list[str]) -> None:
    """All that the host knows goes there by `Device.send`, which does not wait."""
    sampling: dict[Choice, ChoiceSampling] = {}
    params = SamplingParams(max_tokens=5, seed=1, presence_penalty=1.0, uncounted_ids=(3,))
    choices = [Choice(Request(id=str(i), prompt_ids=(1, 2, 3), sampling=params), 0, slot=i) for i in range(5)]
    for choice in choices:
        sampling[choice] = ChoiceSampling(params)
    loop, device = loop_of(version, torch.bfloat16, sampling)
    prompts = [Prefill(choice.request, (1, 2, 3), [choice]) for choice in choices[2:]]
    for choice in choices[:2]:
        choice.tokens.append(7)
        sampling[choice].advance(7)
    batch = Batch(choices[:2], [Chunk(prompts[0], 0, 3), Chunk(prompts[1], 0, 2), Chunk(prompts[2], 1, 3)])
    with torch.inference_mode():
        loop._enter([choice for choice, _ in batch.ready])
        entered = device.sent
        hidden, tokens = loop._mixed(batch)
        moved = device.sent
        flight = loop.launch(batch, 0.0, by_host={choices[1]})
    assert flight.by_host == [1] and flight.logits is not None
    device.sent = moved
    assert hidden.shape == (2 + 3 + 2 + 2, 128) and tokens.shape == (4,)
    assert device.sent - entered == 3
    assert "rookery.kernels.triton.sample" in launched


@pytest.mark.parametrize("read", [lambda x: x.tolist(), lambda x: x[x > 0], lambda x: x + torch.zeros(2), bool])
def test_what_waits_fails(read: Callable[[Tensor], object]) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        read(torch.zeros(2, device=META)[:2])
