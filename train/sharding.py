"""Whole states of models and optimisers that may be sharded: plain, data-parallel or FSDP2.

Weights and optimiser state are gathered and named by parameter (torch.distributed.checkpoint), so
a checkpoint does not know how many processes wrote it, nor how: any of these can go on from it.
"""

from __future__ import annotations

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from udfs.errors import TrainingError

_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def check_strategy(accelerator: Accelerator, optimizer: str) -> None:
    """The launch is one whose checkpoints we know how to write.

    Raises:
        TrainingError: it is not.
    """
    kind = accelerator.distributed_type
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and kind in _PLAIN:
        raise TrainingError(
            "accelerate's config asks for FSDP, but accelerate shards nothing on a CPU or in one "
            "process, and does not say so. Launch on several GPUs, or without that config."
        )
    if kind not in _PLAIN and not accelerator.is_fsdp2:
        name = "FSDP 1" if kind == DistributedType.FSDP else kind.value
        raise TrainingError(
            f"accelerate's config asks for {name}, whose checkpoints nothing here can write. "
            "Launch with data parallelism, or with FSDP 2: accelerate launch --config_file "
            "train/accelerate/fsdp2.yaml"
        )
    if accelerator.is_fsdp2 and optimizer != "adamw":
        raise TrainingError(
            f"the optimizer {optimizer} cannot keep its state in shards: set optimizer to adamw, "
            "whose state FSDP 2 divides among the processes"
        )


def whole_model(model: nn.Module) -> dict[str, Any]:
    """Trained weights by name, in the memory of the CPU. All ranks call; rank 0 gets them."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    return get_model_state_dict(model, options=options)


def whole_optimizer(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """The optimiser's state by names of weights. All ranks call; rank 0 gets it."""
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_optimizer_state_dict(model, optimizer, options=options))


def restore_optimizer(model: nn.Module, optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put a state from `whole_optimizer` back, of which every rank keeps its shard."""
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)
