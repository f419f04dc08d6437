"""Other namings of the same weights, turned into the official one: renamed, transposed, regrouped, never recomputed.

Known here: transformers' RWKV-4 and the remote code of the RWKV-5/6 repositories on the hub, fla's RWKV-6 and RWKV-7
(flash-linear-attention), and the safetensors of web-rwkv and Ai00. Sources: transformers 5.23 `modeling_rwkv.py`,
fla's `convert_from_rwkv6.py` and `convert_from_rwkv7.py`, web-rwkv's `convert_safetensors.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from rookery.kernels.cpu.arrays import Array

from .official import INCOMPLETE, WRONG_MODEL, LayoutError

Tensors = dict[str, Array]

_PREFIXES = ("module.", "_forward_module.", "model.")
"""What trainers put before official keys."""


def to_official(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> tuple[Tensors, str]:
    """The same weights under official keys, and the name of the naming they came in.

    Args:
        tensors: as named in the file.
        config: a Hugging Face folder's config.json; empty elsewhere.

    Raises:
        LayoutError: the names are of no RWKV model, or the config asks for other arithmetic than the official one.
    """
    _check_config(config)
    for prefix in _PREFIXES:
        if f"{prefix}emb.weight" in tensors:
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    if any(key.startswith("rwkv.blocks.") for key in tensors):
        return _renamed(tensors, _transformers), "transformers"
    if "model.layers.0.attn.x_proj.0.mu" in tensors:
        return _from_fla6(tensors), "fla rwkv6"
    if "model.layers.0.attn.w_lora.lora.0.weight" in tensors:
        return _from_fla7(tensors), "fla rwkv7"
    if _is_web_rwkv(tensors):
        return _from_web_rwkv(tensors), "web-rwkv"
    if "emb.weight" not in tensors:
        raise LayoutError(*_other_contents(tensors))
    return dict(tensors), "official"


def _check_config(config: Mapping[str, Any]) -> None:
    """The official normalisation has one epsilon; a model trained with another would be served wrongly."""
    for name in ("layer_norm_epsilon", "norm_eps"):
        epsilon = config.get(name, 1e-5)
        if epsilon != 1e-5:
            message = f"its config.json sets {name} to {epsilon!r}, where RWKV has 1e-05"
            raise LayoutError(message, "use a model with the official normalisation")


def _other_contents(tensors: Mapping[str, Array]) -> tuple[str, str]:
    """What a file without an embedding is, and what to do."""
    keys = list(tensors)
    if keys and all(key.endswith("time_state") for key in keys):
        return "it is a tuned initial state, not a model", "serve its model, and add the state by --state NAME=FILE"
    if any(".lora_" in key or ".lora." in key or key.endswith(".bone") for key in keys):
        return "it is an adapter (LoRA or alike), not a model", "merge it into its model with the tool that trained it"
    if any("self_attn" in key or ".mlp." in key or "transformer.h." in key or ".mixer." in key for key in keys):
        return f"it is a model of another architecture (it has {min(keys)})", WRONG_MODEL
    what = f"it has {min(keys)}" if keys else "it has no tensors"
    return f"it has no emb.weight, so it is no RWKV model ({what})", WRONG_MODEL


def _renamed(tensors: Mapping[str, Array], rename: Callable[[str], str]) -> Tensors:
    official: Tensors = {}
    for key, tensor in tensors.items():
        name = rename(key)
        if name in official:
            raise LayoutError(f"two of its tensors are {name} under different names", INCOMPLETE)
        official[name] = tensor
    return official


_TRANSFORMERS = (
    (re.compile(r"^rwkv\.embeddings\."), "emb."),
    (re.compile(r"^rwkv\."), ""),
    (re.compile(r"^(blocks\.\d+)\.pre_ln\."), r"\1.ln0."),
    (re.compile(r"^(blocks\.\d+)\.attention\."), r"\1.att."),
    (re.compile(r"^(blocks\.\d+)\.feed_forward\."), r"\1.ffn."),
    (re.compile(r"\.time_mix_(key|value|receptance|gate)$"), lambda match: f".time_mix_{match[1][0]}"),
)


def _transformers(key: str) -> str:
    """RWKV-4 of transformers, and RWKV-5 and 6 of the hub's remote code, whose values and shapes are official."""
    for pattern, replacement in _TRANSFORMERS:
        key = pattern.sub(replacement, key)
    return key


_FLA_MODEL = {
    "model.embeddings.weight": "emb.weight",
    "model.norm.weight": "ln_out.weight",
    "model.norm.bias": "ln_out.bias",
    "lm_head.weight": "head.weight",
}
_FLA_BLOCK = {"pre_norm": "ln0", "attn_norm": "ln1", "ffn_norm": "ln2"}
_FLA6 = {
    "attn.x_proj.0.mu": "att.time_maa_x",
    "attn.w_proj.linear.lora.2.bias": "att.time_decay",
    "attn.bonus": "att.time_faaaa",
    "attn.r_proj.linear.weight": "att.receptance.weight",
    "attn.k_proj.linear.weight": "att.key.weight",
    "attn.v_proj.linear.weight": "att.value.weight",
    "attn.g_proj.linear.weight": "att.gate.weight",
    "attn.o_proj.weight": "att.output.weight",
    "attn.g_norm.weight": "att.ln_x.weight",
    "attn.g_norm.bias": "att.ln_x.bias",
    "ffn.key.mu": "ffn.time_maa_k",
    "ffn.receptance.mu": "ffn.time_maa_r",
    "ffn.key.linear.weight": "ffn.key.weight",
    "ffn.receptance.linear.weight": "ffn.receptance.weight",
    "ffn.value.weight": "ffn.value.weight",
}
_FLA6_TRANSPOSED = {
    "attn.w_proj.linear.lora.0.weight": "att.time_decay_w1",
    "attn.w_proj.linear.lora.2.weight": "att.time_decay_w2",
}
_FLA6_ORDER, _OFFICIAL6_ORDER = "rwkvg", "wkvrg"
_REGROUP6 = [_FLA6_ORDER.index(name) for name in _OFFICIAL6_ORDER]


def _from_fla6(tensors: Mapping[str, Array]) -> Tensors:
    """fla's Linear layers hold the low-rank pairs transposed, and its five mixes come in the order r, w, k, v, g."""

    def regroup(key: str, name: str, tensor: Array) -> Tensors:
        if name == "attn.x_proj.0.linear.weight":  # [5 * rank, C]
            groups = _groups(key, _transposed(key, tensor), axis=1)
            return {"att.time_maa_w1": groups[:, _REGROUP6].reshape(len(groups), -1)}
        if name == "attn.x_proj.2.weight":  # [C, 5 * rank]
            return {"att.time_maa_w2": _groups(key, _transposed(key, tensor), axis=0)[_REGROUP6]}
        if name == "attn.x_bias":  # [5, C]
            mixes = _groups(key, tensor, axis=0)
            return {f"att.time_maa_{letter}": mixes[mix].flatten() for mix, letter in enumerate(_FLA6_ORDER)}
        return {name: tensor}

    return _from_fla(tensors, _FLA6, _FLA6_TRANSPOSED, regroup)


_FLA7 = {
    "attn.r_proj.weight": "att.receptance.weight",
    "attn.k_proj.weight": "att.key.weight",
    "attn.v_proj.weight": "att.value.weight",
    "attn.o_proj.weight": "att.output.weight",
    "attn.g_norm.weight": "att.ln_x.weight",
    "attn.g_norm.bias": "att.ln_x.bias",
    "attn.k_k": "att.k_k",
    "attn.k_a": "att.k_a",
    "attn.r_k": "att.r_k",
    "ffn.x_k": "ffn.x_k",
    "ffn.key.weight": "ffn.key.weight",
    "ffn.value.weight": "ffn.value.weight",
    **{f"attn.x_{name}": f"att.x_{name}" for name in "rwkvag"},
    **{f"attn.{name}_lora.lora.2.bias": f"att.{name}0" for name in "wav"},
}
_FLA7_TRANSPOSED = {
    f"attn.{name}_lora.lora.{index}.weight": f"att.{name}{pair}" for name in "wavg" for index, pair in ((0, 1), (2, 2))
}


def _from_fla7(tensors: Mapping[str, Array]) -> Tensors:
    """The low-rank pairs are transposed; older files stack the mixes in one `x_x`, in the order r, w, k, v, a, g."""

    def unstack(key: str, name: str, tensor: Array) -> Tensors:
        if name == "attn.x_x" and tensor.shape[:1] == (6,):
            return {f"att.x_{letter}": mix.flatten() for letter, mix in zip("rwkvag", tensor, strict=True)}
        return {name: tensor}

    return _from_fla(tensors, _FLA7, _FLA7_TRANSPOSED, unstack)


def _from_fla(
    tensors: Mapping[str, Array],
    names: Mapping[str, str],
    transposed: Mapping[str, str],
    others: Callable[[str, str, Array], Tensors],
) -> Tensors:
    """fla's names within a block, by these tables, and what `others` makes of (key, name, tensor) that are in none."""
    official: Tensors = {}
    for key, tensor in tensors.items():
        block, name = _fla_block(key)
        if block is None:
            official[name] = tensor
        elif name in names:
            official[f"{block}.{names[name]}"] = tensor
        elif name in transposed:
            official[f"{block}.{transposed[name]}"] = _transposed(key, tensor)
        else:
            official.update({f"{block}.{known}": part for known, part in others(key, name, tensor).items()})
    return official


def _fla_block(key: str) -> tuple[str | None, str]:
    """`model.layers.3.attn.k_k` to (`blocks.3`, `attn.k_k`); keys outside the layers to (None, official name)."""
    match = re.match(r"^model\.layers\.(\d+)\.(.+)$", key)
    if match is None:
        return None, _FLA_MODEL.get(key, key)
    block, name = f"blocks.{match[1]}", match[2]
    norm, _, rest = name.partition(".")
    if norm in _FLA_BLOCK:
        return None, f"{block}.{_FLA_BLOCK[norm]}.{rest}"
    return block, name


def _transposed(key: str, tensor: Array) -> Array:
    if tensor.ndim < 2:
        raise LayoutError(f"the tensor {key} has the shape {list(tensor.shape)}; it must have two axes", INCOMPLETE)
    return tensor.swapaxes(-1, -2)


def _groups(key: str, tensor: Array, *, axis: int) -> Array:
    """Split one axis into the five mixes of RWKV-6: [5 * n] to [5, n]."""
    if tensor.shape[axis] % 5:
        raise LayoutError(
            f"the tensor {key} has the shape {list(tensor.shape)}, which is not of five mixes", INCOMPLETE
        )
    sizes = list(tensor.shape)
    return tensor.reshape(*sizes[:axis], 5, sizes[axis] // 5, *sizes[axis + 1 :])


_WEB_TRANSPOSED = re.compile(r"\.(time_maa_w[12]|time_decay_w[12]|[wagv][12]|time_state)$")


def _is_web_rwkv(tensors: Mapping[str, Array]) -> bool:
    """Its RWKV-6 has `time_mix_x`, its 5.2 a `time_first` for each channel, its 7 a transposed `w1`."""
    att = "blocks.0.att."
    first, w1, w2 = (tensors.get(att + name) for name in ("time_first", "w1", "w2"))
    if att + "time_mix_x" in tensors or (first is not None and first.ndim > 1 and att + "ln_x.weight" in tensors):
        return True
    if w1 is None or w2 is None or w1.ndim < 2 or "emb.weight" not in tensors:
        return False
    width = tensors["emb.weight"].shape[-1]
    return width not in (w1.shape[-2], w2.shape[-1]) and width == w1.shape[-1] == w2.shape[-2]


def _from_web_rwkv(tensors: Mapping[str, Array]) -> Tensors:
    """Two names and the low-rank pairs differ; 5.1 comes with a value a channel, which is 5.2 with equal results."""
    is_6 = "blocks.0.att.time_mix_x" in tensors
    official: Tensors = {}
    for key, tensor in tensors.items():
        name = key.replace(".time_first", ".time_faaaa")
        if is_6:
            name = name.replace(".time_mix_", ".time_maa_")
        official[name] = _transposed(key, tensor) if _WEB_TRANSPOSED.search(name) else tensor
    return official
