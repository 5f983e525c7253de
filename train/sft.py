"""Supervised fine-tuning of a causal model on an export.

    accelerate launch -m train.sft --config train/configs/tiny.yaml
    accelerate launch -m train.sft --config train/configs/tiny.yaml --set max_steps=5
    accelerate launch -m train.sft --resume runs/<run>
    accelerate launch -m train.sft --config my.yaml --set run=mine --go-on  # as often as it takes

Two processes on CPU (`accelerate launch --cpu --num_processes 2` would run one and not say so):

    ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node 2 \\
        -m train.sft --config train/configs/tiny.yaml --set world_size=2

An export is prepared first (`train.prepare`) where that has not been done. `docs/training.md` says
what carries loss, in which order samples come, and what a run leaves.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from train.trainer import command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    return command("sft", "Fine-tune a model on an export.", arguments)


if __name__ == "__main__":
    sys.exit(main())
