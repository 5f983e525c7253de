"""A run under DeepSpeed on a CPU.

    accelerate launch --config_file train/accelerate/zero2.yaml --num_processes 2 \\
        tests/deepspeed_on_cpu.py train.sft --config …

DeepSpeed runs on CPUs by gloo, but accelerate names no such backend where it is not told that all
is on the CPU, and then it does not take DeepSpeed. This names it; all else is as it is launched.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

import deepspeed
from accelerate.state import PartialState
from accelerate.utils import DistributedType


def prepare_gloo(*_: Any) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_CPU


if __name__ == "__main__":
    os.environ["ACCELERATE_USE_CPU"] = "false"
    # Otherwise it compiles, for minutes, what lets CPUs exchange numbers faster.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    PartialState._prepare_backend = prepare_gloo
    sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
