"""Files that are well made and hold the wrong tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .makers import KEY, Faults, changed, good, pth

BAD = Faults()
bad = BAD.add


def with_number(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        tensor[-1, -1] = value
        return tensor

    return change


def unwarned(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def quietly(tensor: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # these kinds of tensors are in beta, or on their way out
            return change(tensor)

    return quietly


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "one_nan": with_number(float("nan")),
    "one_infinity": with_number(float("-inf")),
    "one_bfloat16_nan": lambda t: with_number(float("nan"))(t.bfloat16()),
    "one_float16_infinity": lambda t: with_number(float("inf"))(t.half()),
    "transposed": lambda t: t.T.contiguous(),
    "one_row_short": lambda t: t[1:].clone(),
    "no_rows": lambda t: t[:0].clone(),
    "int8": lambda t: t.to(torch.int8),
    "boolean": lambda t: t > 0,
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "sparse": lambda t: t.to_sparse(),
    "sparse_csr": unwarned(lambda t: t.to_sparse_csr()),
    "sparse_out_of_bounds": lambda t: torch.sparse_coo_tensor(
        torch.tensor([[10**12], [10**12]]), torch.ones(1), t.shape, check_invariants=False
    ),
    "quantised": unwarned(lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
    "view_of_a_terabyte": lambda t: torch.zeros(1).expand(2**20, 2**20),
    "on_no_device": lambda t: t.to("meta"),
}
for name, change in CHANGES.items():
    BAD[f"tensor_{name}"] = partial(changed, key=KEY, change=change)


@bad
def all_nan(folder: Path) -> Path:
    return pth(folder, {key: torch.full_like(tensor, float("nan")) for key, tensor in good().items()})


@bad
def missing_tensor(folder: Path) -> Path:
    return pth(folder, {key: tensor for key, tensor in good().items() if key != KEY})


@bad
def missing_layer(folder: Path) -> Path:
    return pth(folder, {key: tensor for key, tensor in good().items() if not key.startswith("blocks.0.")})


@bad
def a_layer_number_out_of_all_reason(folder: Path) -> Path:
    return pth(folder, good() | {"blocks.999999.ln1.weight": torch.ones(16)})


@bad
def extra_tensor(folder: Path) -> Path:
    return pth(folder, good() | {"blocks.1.att.surprise\x1b[31m\n": torch.ones(16)})


@bad
def heads_that_do_not_divide(folder: Path) -> Path:
    return changed(folder, "blocks.0.att.r_k", lambda t: torch.ones(3, 5))


@bad
def only_an_adapter(folder: Path) -> Path:
    return pth(folder, {"blocks.0.att.key.lora_A": torch.ones(2, 16), "blocks.0.att.key.lora_B": torch.ones(16, 2)})


@bad
def only_a_tuned_state(folder: Path) -> Path:
    return pth(folder, {f"blocks.{layer}.att.time_state": torch.ones(2, 8, 8) for layer in range(2)})


@bad
def a_tuned_state_of_other_sizes(folder: Path) -> Path:
    return pth(folder, good() | {f"blocks.{layer}.att.time_state": torch.ones(2, 9, 9) for layer in range(2)})


@bad
def already_converted(folder: Path) -> Path:
    return pth(folder, good() | {"_strategy": "cpu fp32", "_version": 0.7})


@bad
def numbers_instead_of_tensors(folder: Path) -> Path:
    return pth(folder, good() | {"epoch": 7})


@bad
def a_list(folder: Path) -> Path:
    return pth(folder, list(good().values()))


@bad
def nothing_named(folder: Path) -> Path:
    return pth(folder, {})


def with_key(folder: Path, key: str) -> Path:
    return pth(folder, good() | {key: torch.ones(4, 4)})


RESEARCH = {
    "rwkv_7a": "blocks.0.ffn.s_emb.weight",
    "rwkv_7b": "blocks.0.qkv.qq.weight",
    "rwkv_6a": "blocks.0.att.gate_w1",
    "rwkv_6b": "blocks.0.att.time_maa_rkvw_w1",
    "rosa": "blocks.0.rosa.q.weight",
}
for name, key in RESEARCH.items():
    BAD[f"research_{name}"] = partial(with_key, key=key)
