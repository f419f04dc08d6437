"""Make a training checkpoint the shipped file: python -m rookery.models.gosling.export RUN/average.safetensors

Half precision, in float16: the weights are small, and it keeps three more bits than bfloat16.
"""

import argparse
from pathlib import Path

import torch

from .evaluate import WEIGHTS
from .model import load, save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="float32 weights that the trainer wrote")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    args = parser.parse_args()
    model = load(args.checkpoint)
    largest = max(float(p.detach().abs().max()) for p in model.parameters())
    if largest > torch.finfo(torch.float16).max:
        raise SystemExit(f"a weight of {largest:.3g} does not fit float16")
    save(model, args.out, torch.float16)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, largest weight {largest:.3g}")


if __name__ == "__main__":
    main()
