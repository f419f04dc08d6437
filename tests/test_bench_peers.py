"""The benchmark beside other engines: what it computes, what it keeps, and a worker at tiny size. No peer is needed."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bench.cpu.child import Child, PeerFailed
from bench.cpu.entries import ENTRIES, Peers
from bench.cpu.files import Files
from bench.cpu.gguf_tensors import always_f32, read_safetensors, renamed
from bench.cpu.plot import draw
from bench.cpu.ratios import ratios
from bench.cpu.report import Report
from bench.cpu.servers import command, servings
from bench.cpu.versions import Subject, figures
from rookery.server.model.packed_file import read_packed
from rookery.server.model.synthetic import PRESETS, Plan, synthetic_tensors

PLAN = Plan(version="7", layers=2, width=128, ffn_width=192, vocab_size=300, ranks=(8, 16, 24, 32))
HEAD: dict[str, Any] = {
    "shape": "tiny",
    "settings": {"streams": [1, 8], "prefill_tokens": 16},
    "machine": {"threads": 2, "cpu": "a <fast> one"},
}


def engine(decode: float, prefill: float) -> dict[str, Any]:
    return {"load_s": 1.0, "decode_tok_s": {"1": decode, "8": 4 * decode}, "prefill_tok_s": prefill, "peak_rss_mb": 9.0}


def http(tok_s: float, ttft_ms: float) -> dict[str, Any]:
    return {"load_s": 1.0, "clients": {"8": {"tok_s": tok_s, "ttft_p50_ms": ttft_ms}}, "peak_rss_mb": 9.0}


def report(path: Path, *, resume: bool = False) -> Report:
    return Report(path, HEAD, resume=resume)


def filled(path: Path) -> Report:
    made = report(path)
    for value in (10.0, 30.0, 20.0):
        made.add("engine", "rookery int8", engine(value, 400.0))
    made.add("engine", "llama.cpp Q8_0", engine(10.0, 200.0))
    made.add("http", "rookery int8", http(90.0, 100.0))
    made.add("http", "llama-server Q8_0", http(30.0, 400.0))
    return made


def test_medians_and_ratios_are_of_equal_bits(tmp_path: Path) -> None:
    made = filled(tmp_path / "r.json")
    assert made.medians["engine"]["rookery int8"]["decode_tok_s"] == {"1": 20.0, "8": 80.0}
    found = {(line["theirs"], line["figure"]): line for line in ratios(made.medians)}
    assert found["llama.cpp Q8_0", "decode 1"]["ratio"] == 2.0 and found["llama.cpp Q8_0", "decode 1"]["met"]
    assert found["llama.cpp Q8_0", "prefill"]["ratio"] == 2.0 and not found["llama.cpp Q8_0", "prefill"]["met"]
    assert found["llama-server Q8_0", "http 8 ttft"]["ratio"] == pytest.approx(4.0)  # a quarter of the wait
    assert any("MISSED" in line for line in made.ratio_lines())


def test_a_stopped_run_keeps_what_it_measured(tmp_path: Path) -> None:
    filled(tmp_path / "r.json").fail("engine", "llama.cpp Q4_0", "killed by signal 4")
    again = report(tmp_path / "r.json", resume=True)
    assert len(again.runs["engine"]["rookery int8"]) == 3
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["failures"] == {"engine llama.cpp Q4_0": "killed by signal 4"}
    assert not report(tmp_path / "r.json").runs["engine"], "without --resume it begins anew"
    other = Report(tmp_path / "r.json", {**HEAD, "settings": {"streams": [1]}}, resume=True)
    assert not other.runs["engine"], "figures measured in another way are not mixed in"


def test_the_plot_is_well_formed_and_shows_every_figure(tmp_path: Path) -> None:
    filled(tmp_path / "r.json")
    picture = draw(json.loads((tmp_path / "r.json").read_text()))
    texts = [text.text for text in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")]
    assert {"decode, 1 stream", "decode, 8 streams", "prompt of 16 tokens", "over HTTP, 8 clients"} <= set(texts)
    assert texts.count("rookery int8") == 4 and "90" in texts


def test_every_tensor_gets_a_name_of_llama_cpp_and_its_layout(tmp_path: Path) -> None:
    tensors = synthetic_tensors(PLAN, dtype=torch.bfloat16)
    save_file(tensors, tmp_path / "m.safetensors")
    read = read_safetensors(tmp_path / "m.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.float().numpy())
    out = dict(renamed(read, PLAN.layers))
    mixes, first_layer_values = 6 * PLAN.layers, 3  # six vectors become one tensor; layer 0 gets values it never uses
    assert len(out) == len(tensors) - mixes + PLAN.layers + first_layer_values
    assert out["blk.1.time_mix_lerp_fused.weight"].shape == (6, 1, 1, 128)
    assert out["blk.1.time_mix_w1.weight"].shape == (8, 128) and out["blk.1.time_mix_w2.weight"].shape == (128, 8)
    assert out["blk.0.time_mix_v1.weight"].shape == out["blk.0.time_mix_a1.weight"].shape == (16, 128)
    assert out["blk.1.time_mix_r_k.weight"].shape == (128,)
    assert out["blk.1.channel_mix_key.weight"].shape == (192, 128)
    kept = {name.split(".", 2)[-1] for name, tensor in out.items() if tensor.ndim > 1 and always_f32(name, tensor)}
    assert kept == {"time_mix_w1.weight", "time_mix_w2.weight", "time_mix_lerp_fused.weight"}


def test_a_worker_measures_and_says_how_it_failed(tmp_path: Path) -> None:
    save_file(synthetic_tensors(PLAN, dtype=torch.float32), tmp_path / "m.safetensors")
    settings = {"path": str(tmp_path / "m.safetensors"), "kept": "float32", "threads": 1, "streams": 4}
    with Child(sys.executable, "rookery", settings) as child:
        assert child.ready["load_s"] > 0
        assert child.ask("decode", streams=3, steps=5, seconds=60)["tok_s"] > 0
        assert child.ask("prefill", tokens=20)["tok_s"] > 0
        drawn = child.ask("greedy", token_ids=[1, 2, 3], count=4)["token_ids"]
        assert len(drawn) == 4
        child.ask("logits", token_ids=[1, 2, 3], file=str(tmp_path / "l.npy"))
        logits = np.load(tmp_path / "l.npy")
        assert logits.shape == (3, 300) and int(logits[-1].argmax()) == drawn[0]
        assert child.ask("memory")["peak_rss_mb"] > 10
        with pytest.raises(PeerFailed, match="unknown question"):
            child.ask("dance")
    with pytest.raises(PeerFailed, match="ended with"):
        Child(sys.executable, "rookery", {**settings, "path": str(tmp_path / "none.safetensors")})


def test_rookery_is_measured_on_files_that_were_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "tiny", PLAN)
    files = Files(tmp_path, "tiny", None)
    ours = [entry for entry in ENTRIES if entry.engine == "rookery"]
    for entry in ours:
        packed = read_packed(files.path(entry.file))
        assert packed is not None and packed.kept == entry.kept
    assert len(ours) == 4


def test_peers_that_are_not_installed_are_known(tmp_path: Path) -> None:
    peers = Peers(tmp_path)
    assert peers.python is None and peers.llama_server is None and peers.about == {}
    started = {s.name: command(s, peers, Path("m"), 1, 2) is not None for s in servings(ENTRIES)}
    assert started["rookery int4"] and not started["llama-server Q8_0"] and not started["llama-cpp-python Q8_0"]


def test_versions_are_set_beside_rwkv7() -> None:
    older = Plan(version="4", layers=1, width=64, ffn_width=64, vocab_size=300)
    subjects = [Subject.of(plan, "int8", 1) for plan in (PLAN, older)]
    assert subjects[1].products == 7 * 64 * 64
    seven, four = figures(subjects, "int8", 1, 1)
    assert (seven["version"], four["version"]) == ("7", "4")
    assert set(seven["beside_rwkv7"].values()) == {1.0}
    assert all(share > 0 for share in four["tok_s"].values())
