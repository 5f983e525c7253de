"""A run under FSDP 2 on a CPU, as no launcher starts it.

    torchrun --standalone --nproc_per_node 2 tests/fsdp_on_cpu.py train.sft --config …

torch shards on CPUs by gloo, but accelerate takes FSDP for a matter of accelerators and falls back
to data parallelism without a word. This takes that one decision back; all else is as it is
launched.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Any

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

decide = AcceleratorState.__init__


def decide_for_fsdp(self: AcceleratorState, *args: Any, **options: Any) -> None:
    is_decided = AcceleratorState._shared_state != {}
    decide(self, *args, **options)
    if is_decided:
        return
    assert self.distributed_type == DistributedType.MULTI_CPU
    plugin = options["fsdp_plugin"]
    if self._mixed_precision != "no":
        plugin.set_mixed_precision(self._mixed_precision)
    self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    self.fsdp_plugin = plugin


if __name__ == "__main__":
    # What `accelerate launch --config_file train/accelerate/fsdp2.yaml` sets.
    os.environ |= {
        "ACCELERATE_USE_CPU": "true",
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    }
    AcceleratorState.__init__ = decide_for_fsdp
    sys.exit(import_module(sys.argv[1]).main(sys.argv[2:]))
