"""An RWKV-7 checkpoint as llama.cpp reads it: tensor names, layouts, precisions and metadata of its own converter.

    python -m bench.cpu.gguf_file write MODEL.safetensors VOCABULARY.txt OUT.gguf bf16|f32
    python -m bench.cpu.gguf_file quantize IN.gguf OUT.gguf Q8_0|Q4_0

Names and layouts follow llama.cpp's description of the architecture "rwkv7". Quantising is llama.cpp's own, so the
matrices it leaves alone and the 6 bits of a Q4_0 file's head are as its users get them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

from .gguf_tensors import always_f32, read_safetensors, renamed

FTYPES = {"Q4_0": 2, "Q8_0": 7}
"""llama_ftype: what llama.cpp calls the kinds of quantised files."""


def vocabulary(path: Path, size: int) -> tuple[list[bytes], list[int]]:
    """World tokens as llama.cpp keeps them, escaped, and their kinds."""
    tokens, kinds = [b"<s>"], [gguf.TokenType.CONTROL]
    for line in path.read_text(encoding="utf-8").splitlines():
        token = ast.literal_eval(line[line.index(" ") : line.rindex(" ")].strip())
        raw = token.encode() if isinstance(token, str) else token
        tokens.append(repr(raw)[2:-1].encode())
        kinds.append(gguf.TokenType.NORMAL)
    for number in range(len(tokens), size):
        tokens.append(f"[PAD{number}]".encode())
        kinds.append(gguf.TokenType.UNUSED)
    return tokens, [int(kind) for kind in kinds]


def write(source: Path, vocabulary_file: Path, target: Path, kind: str) -> None:
    """Write `source` with its matrices as `kind`, "bf16" or "f32"."""
    tensors = read_safetensors(source)
    layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks."))
    vocab_size, width = tensors["emb.weight"].shape
    _, head_size = tensors["blocks.0.att.r_k"].shape
    writer = gguf.GGUFWriter(target, "rwkv7")
    writer.add_name(source.stem)
    writer.add_context_length(1048576)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_layer_norm_eps(1e-5)
    writer.add_wkv_head_size(head_size)
    writer.add_decay_lora_rank(tensors["blocks.0.att.w1"].shape[1])
    writer.add_iclr_lora_rank(tensors["blocks.0.att.a1"].shape[1])
    writer.add_value_residual_mix_lora_rank(tensors["blocks.1.att.v1"].shape[1])
    writer.add_gate_lora_rank(tensors["blocks.0.att.g1"].shape[1])
    writer.add_feed_forward_length(tensors["blocks.0.ffn.key.weight"].shape[0])
    writer.add_head_count(0)
    writer.add_file_type(int(gguf.LlamaFileType.MOSTLY_BF16 if kind == "bf16" else gguf.LlamaFileType.ALL_F32))
    tokens, kinds = vocabulary(vocabulary_file, vocab_size)
    writer.add_tokenizer_model("rwkv")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    for name, tensor in renamed(tensors, layers):
        if kind == "f32" or always_f32(name, tensor):
            writer.add_tensor(name, np.ascontiguousarray(tensor, dtype=np.float32))
        else:
            values = gguf.quants.quantize(tensor, gguf.GGMLQuantizationType.BF16)
            writer.add_tensor(name, values, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, kind: str, threads: int) -> None:
    """llama.cpp's own quantisation of a whole file.

    Raises:
        RuntimeError: it failed.
    """
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = FTYPES[kind], threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params):
        raise RuntimeError(f"llama.cpp cannot write {target}")


def main() -> None:
    match sys.argv[1:]:
        case ["write", source, vocabulary_file, target, kind]:
            write(Path(source), Path(vocabulary_file), Path(target), kind)
        case ["quantize", source, target, kind]:
            quantize(Path(source), Path(target), kind, threads=2)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
