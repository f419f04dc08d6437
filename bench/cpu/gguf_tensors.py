"""The tensors of an RWKV-7 checkpoint under llama.cpp's names and in its layouts; numpy only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

NAMES = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
IN_BLOCK = {
    "ln1.weight": "attn_norm.weight",
    "ln1.bias": "attn_norm.bias",
    "ln2.weight": "attn_norm_2.weight",
    "ln2.bias": "attn_norm_2.bias",
    "att.ln_x.weight": "time_mix_ln.weight",
    "att.ln_x.bias": "time_mix_ln.bias",
    "att.k_k": "time_mix_k_k.weight",
    "att.k_a": "time_mix_k_a.weight",
    "att.r_k": "time_mix_r_k.weight",
    "ffn.x_k": "channel_mix_lerp_k.weight",
    "ffn.key.weight": "channel_mix_key.weight",
    "ffn.value.weight": "channel_mix_value.weight",
    **{f"att.{name}.weight": f"time_mix_{name}.weight" for name in ("receptance", "key", "value", "output")},
    **{f"att.{letter}{number}": f"time_mix_{letter}{number}.weight" for letter in "wavg" for number in "12"},
    **{f"att.{letter}0": f"time_mix_{letter}0.weight" for letter in "wav"},
}
MIXES = "rwkvag"
"""The order of the token-shift mixes in the one tensor that holds them."""
LOW_RANK = tuple(f"time_mix_{letter}{number}.weight" for letter in "wavg" for number in "12")
ALWAYS_F32 = ("time_mix_w1.weight", "time_mix_w2.weight", "time_mix_lerp_fused.weight")


def read_safetensors(path: Path) -> dict[str, Array]:
    """Tensors as float32; the file holds bfloat16 or float32."""
    data = np.memmap(path, mode="r")
    header_bytes = int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8 : 8 + header_bytes].tobytes())
    tensors = {}
    for name, about in header.items():
        if name == "__metadata__":
            continue
        start, end = (8 + header_bytes + offset for offset in about["data_offsets"])
        raw = data[start:end]
        if about["dtype"] == "BF16":
            values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view({"F32": "<f4"}[about["dtype"]])
        tensors[name] = values.reshape(about["shape"])
    return tensors


def always_f32(name: str, tensor: Array) -> bool:
    """Whether llama.cpp's converter keeps a tensor in float32, whatever the kind of file."""
    return tensor.ndim == 1 or name.endswith(ALWAYS_F32)


def renamed(tensors: dict[str, Array], layers: int) -> Iterator[tuple[str, Array]]:
    """llama.cpp's tensors."""
    for name, new in NAMES.items():
        yield new, tensors[name]
    for layer in range(layers):
        block, prefix = f"blocks.{layer}.", f"blk.{layer}."
        mixes = np.stack([tensors[f"{block}att.x_{letter}"].reshape(-1) for letter in MIXES])
        yield f"{prefix}time_mix_lerp_fused.weight", mixes[:, None, None, :]
        for name, new in IN_BLOCK.items():
            source = name
            if layer == 0 and name in ("att.v0", "att.v1", "att.v2"):
                source = name.replace("v", "a")  # read, never used: the first layer has no value of an earlier one
            tensor = tensors[block + source]
            if new in LOW_RANK:
                tensor = np.ascontiguousarray(tensor.T)
            elif not name.endswith(("key.weight", "value.weight", "receptance.weight", "output.weight")):
                tensor = tensor.reshape(-1)
            yield prefix + new, tensor
