"""The device benchmarks at tiny sizes on a CPU: they run, say what they measured, and compute shares rightly."""

from __future__ import annotations

import json
from io import StringIO

import pytest
import torch
from rich.console import Console

from rookery.server.bench import device, kernels, precision
from rookery.server.bench.roofline import Roof, measure_roof, seconds
from rookery.server.cli import main
from rookery.server.errors import StartupError
from rookery.server.model.synthetic import PRESETS, Plan

CPU = torch.device("cpu")


def text(table: object) -> str:
    page = StringIO()
    Console(width=200, file=page).print(table)
    return page.getvalue()


def test_the_roof_is_the_slower_of_moving_and_multiplying() -> None:
    roof = Roof(bytes_per_s=100.0, flops_per_s=1000.0)
    assert roof.seconds(50) == 0.5
    assert roof.seconds(50, 2000) == 2.0
    assert roof.seconds(50, 100) == 0.5


def test_both_limits_are_measured() -> None:
    roof = measure_roof(CPU, torch.float32, copy_bytes=2**16, side=32, rounds=1)
    assert roof.bytes_per_s > 0 and roof.flops_per_s > 0


def test_the_first_call_is_not_timed() -> None:
    calls: list[int] = []
    assert seconds(lambda: calls.append(1), CPU, rounds=3, calls=4) >= 0
    assert len(calls) == 1 + 3 * 4


def test_every_operator_is_measured_at_every_size() -> None:
    report = kernels.measure(
        CPU, torch.float32, width=64, vocab_size=100, batches=[1, 3], prompts=[(2, 20)],
        copy_bytes=2**16, side=32, rounds=1,
    )  # fmt: skip
    layer = {"wkv4", "wkv6", "wkv7", "wkv7_heads", "shift_mix", "relu_squared"}
    sampling = {"sample, greedy", "sample, temperature", "sample, top-p", "sample, top-k and top-p"}
    by_size: dict[str, set[str]] = {}
    for row in report["results"]:
        by_size.setdefault(row["size"], set()).add(row["operator"])
        assert row["us"] > 0 and row["share_of_roof"] > 0
    assert by_size == {"decode 1": layer | sampling, "decode 3": layer | sampling, "prompt 2 x 20": layer}
    assert report["left"] == 0 and report["kernels"] == "torch" and report["machine"]["gpu"] is None
    assert "shift_mix" in text(kernels.render(report))


def test_a_form_is_chosen_where_every_operator_is_clearly_faster_in_it() -> None:
    def form(operator: str, tokens: int, by_token: float) -> dict[str, object]:
        return {"operator": operator, "pairs": 64, "tokens": tokens, "by_token_us": by_token, "in_chunks_us": 100.0}

    timed = [form("wkv6", 16, 50), form("wkv7_heads", 16, 80), form("wkv6", 128, 50), form("wkv7_heads", 128, 95)]
    assert kernels.entries(timed) == [(64, 16)]


def test_the_error_of_every_version_and_type_is_measured() -> None:
    report = precision.measure(CPU, tokens=40, prompt=17)
    error = {
        tuple(row[key] for key in ("version", "form", "activations", "states")): row["error"]["40"]
        for row in report["results"]
    }
    assert len(error) == 2 * (3 + 4 + 4 + 4)
    for (_, _, activations, states), largest in error.items():
        low, high = {"float32": (0, 1e-5), "float16": (1e-5, 3e-3), "bfloat16": (1e-4, 2e-2)}[
            activations if activations != "float32" else states
        ]
        assert low < largest < high
    assert "bfloat16" in text(precision.render(report))


def test_a_gpu_is_measured_in_floats_at_all_published_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command hands on; there is no quantised matrix on a GPU."""
    asked: list[tuple[object, ...]] = []

    def measure(shapes: object, name: str, dtype: torch.dtype, **options: object) -> dict[str, object]:
        asked.append((shapes, name, dtype, options["wkv_dtype"]))
        raise StartupError("asked", "")

    monkeypatch.setattr(device, "measure", measure)
    for more in ([], ["--preset", "rwkv7-0.1b,rwkv6-1.6b", "--dtypes", "float16", "--slot-dtype", "float16"]):
        with pytest.raises(SystemExit, match="1"):
            main(["bench", "engine", "--device", "cuda", *more])
    assert asked == [
        (device.SHAPES, "cuda", torch.bfloat16, torch.float32),
        (["rwkv7-0.1b", "rwkv6-1.6b"], "cuda", torch.float16, torch.float16),
    ]
    assert set(device.SHAPES) <= set(PRESETS)
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "engine", "--device", "cuda", "--dtypes", "int8"])


def test_whole_models_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan(version="7", layers=2, width=64, ffn_width=96, vocab_size=120, ranks=(4, 4, 4, 4))
    monkeypatch.setitem(PRESETS, "tiny", plan)
    report = device.measure(
        ["tiny"], "cpu", torch.float32, batches=[1, 2], prompts=[(2, 17)], copy_bytes=2**16, side=32, rounds=1
    )
    loads = [(row["shape"], row["kind"], row["load"]) for row in report["results"]]
    assert loads == [("tiny", "decode", "1"), ("tiny", "decode", "2"), ("tiny", "prefill", "2x17")]
    assert all(row["tok_s"] > 0 and row["share_of_roof"] > 0 for row in report["results"])
    assert json.loads(json.dumps(report)) == report
    assert "prefill 2x17" in text(device.render(report))


def test_unknown_shapes_are_refused() -> None:
    with pytest.raises(StartupError, match="no shape nonsense"):
        device.measure(["nonsense"], "cpu", torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "command",
    [["bench", "engine", "--device", "cuda"], ["bench", "kernels"], ["bench", "precision", "--device", "cuda"]],
)
def test_without_a_gpu_the_command_says_so(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command)
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("prompts", ["8y1024", "0x5", "x", "8x"])
def test_bad_prompts_are_refused(prompts: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "kernels", "--device", "cpu", "--prompts", prompts])
    assert "names no prompts" in capsys.readouterr().err
