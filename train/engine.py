"""What drives the model, as launched: one process, data parallelism, FSDP 2 or DeepSpeed's ZeRO.

An engine takes gradients and steps, and hands out whole states. Weights and optimiser state are
gathered and named by parameter, in one form for all engines, so a checkpoint does not know how
many processes wrote it, nor how: any of these can go on from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.functional import pad
from torch.optim import Optimizer

from train.config import RunSettings
from udfs.errors import TrainingError

_MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
_PLAIN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class Engine(Protocol):
    """A model and its optimiser, ready to train. All ranks call each method.

    * `model`: to be called.
    * `module`: the same as it was given, around which an engine may have wrapped its own.

    The learning rate of the next step is that of the optimiser that was given.
    """

    accelerator: Accelerator
    model: nn.Module
    module: nn.Module

    def part(self, is_last: bool) -> AbstractContextManager[None]:
        """Around the forward and backward pass of one part of a step. Ranks exchange gradients
        once, in the last part."""

    def backward(self, loss: Tensor) -> None:
        """Add a part's gradient. What counts is the mean over the ranks of what each has added."""

    def step(self) -> float:
        """Clip the gradient, step, and clear it; its norm before it was clipped."""

    def weights(self) -> dict[str, Any]:
        """Trained weights by name, in the memory of the CPU. Rank 0 gets them."""

    def optimizer_state(self) -> dict[str, Any]:
        """The optimiser's state by names of weights. Rank 0 gets it."""

    def restore(self, state: dict[str, Any]) -> None:
        """Put a state from `optimizer_state` back, of which every rank keeps its part."""


def make_accelerator(settings: RunSettings) -> Accelerator:
    """accelerate, as it was launched.

    Raises:
        TrainingError: the launch is none whose checkpoints we know how to write, or the settings do
            not go with it.
    """
    # DeepSpeed's own bfloat16 would round the trained weights; `_DeepSpeed` asks for torch's.
    is_deepspeed = parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")
    is_mixed = settings.precision == "bfloat16" and not is_deepspeed
    accelerator = Accelerator(
        mixed_precision="bf16" if is_mixed else "no",
        log_with=list(settings.trackers) or None,
        project_dir=settings.output,
    )
    kind = accelerator.distributed_type
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and kind in _PLAIN:
        raise TrainingError(
            "accelerate's config asks for FSDP, but accelerate shards nothing on a CPU or in one "
            "process, and does not say so. Launch on several GPUs, or without that config."
        )
    if kind == DistributedType.DEEPSPEED:
        check_deepspeed(accelerator.deepspeed_plugin, settings)
    elif kind not in _PLAIN and not accelerator.is_fsdp2:
        name = "FSDP 1" if kind == DistributedType.FSDP else kind.value
        raise TrainingError(
            f"accelerate's config asks for {name}, whose checkpoints nothing here can write. "
            "Launch with data parallelism, FSDP 2 or DeepSpeed: see train/accelerate/"
        )
    if kind not in _PLAIN and settings.optimizer != "adamw":
        raise TrainingError(
            f"the optimizer {settings.optimizer} cannot keep its state in shards: set optimizer "
            "to adamw, whose state is divided among the processes"
        )
    return accelerator


def device_of_weights(accelerator: Accelerator) -> torch.device | None:
    """Where a model is loaded to; null: to the CPU, since it is cut into shards afterwards."""
    is_cut = accelerator.is_fsdp2 or _zero_stage(accelerator) == 3
    return None if is_cut else accelerator.device


def make_engine(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, settings: RunSettings
) -> Engine:
    """The engine that the launch asks for."""
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    return (_DeepSpeed if is_deepspeed else _Torch)(accelerator, model, optimizer, settings)


class _Torch:
    """One process, data parallelism or FSDP 2."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        settings: RunSettings,
    ) -> None:
        self.accelerator = accelerator
        self.module = model
        self._max_norm = settings.max_grad_norm
        self._optimizer = optimizer
        self.model, _ = accelerator.prepare(model, optimizer)

    def part(self, is_last: bool) -> AbstractContextManager[None]:
        context: AbstractContextManager[None] = (
            nullcontext() if is_last else self.accelerator.no_sync(self.model)
        )
        return context

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def step(self) -> float:
        parameters = self.model.parameters()
        norm = float(self.accelerator.clip_grad_norm_(parameters, self._max_norm))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def weights(self) -> dict[str, Any]:
        options = StateDictOptions(
            full_state_dict=True, cpu_offload=True, ignore_frozen_params=True
        )
        return get_model_state_dict(self.model, options=options)

    def optimizer_state(self) -> dict[str, Any]:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return dict(get_optimizer_state_dict(self.model, self._optimizer, options=options))

    def restore(self, state: dict[str, Any]) -> None:
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self._optimizer, state, options=options)


class _DeepSpeed:
    """DeepSpeed's ZeRO, which cuts in parts the optimiser's state (stage 1), gradients (2) and
    weights (3).

    As with the other engines, weights keep their precision, bfloat16 is autocast's, and gradients
    are summed in float32.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        settings: RunSettings,
    ) -> None:
        from deepspeed import utils  # no part of the extra `train`

        self.accelerator = accelerator
        self.module = model
        self._stage = _zero_stage(accelerator)
        accelerator.deepspeed_plugin.deepspeed_config.update(
            zero_force_ds_cpu_optimizer=False,  # where parts are on the CPU, they are torch's too
            train_micro_batch_size_per_gpu=settings.micro_batch_size,
            gradient_accumulation_steps=1,  # parts are counted here: see `part`
            gradient_clipping=settings.max_grad_norm,
            torch_autocast={
                "enabled": settings.precision == "bfloat16",
                "dtype": "bfloat16",
                "lower_precision_safe_modules": [],  # whose gradients would be summed in bfloat16
            },
        )
        self.model, prepared = accelerator.prepare(model, optimizer)
        self._zero: Any = prepared.optimizer
        self._utils: Any = utils
        self._optimizer = optimizer

    @contextmanager
    def part(self, is_last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(is_last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss)

    def step(self) -> float:
        self.model.step()
        return float(self.model.get_global_grad_norm())

    def weights(self) -> dict[str, Any]:
        whole = self._utils.safe_get_full_fp32_param
        return {name: self._kept(whole(p)) for name, p in self._trained()}

    def optimizer_state(self) -> dict[str, Any]:
        whole = self._utils.safe_get_full_optimizer_state
        states = self._flat_states()
        state = {
            name: {"step": states[0]["step"].clone()}  # each counts its own, elsewhere
            | {key: self._kept(whole(p, key)) for key in _MOMENTS}
            for name, p in self._trained()
        }
        [group] = self._optimizer.param_groups
        return {"state": state, "param_groups": [group | {"params": list(state)}]}

    def restore(self, state: dict[str, Any]) -> None:
        [ours], [theirs] = self._optimizer.param_groups, state["param_groups"]
        ours.update({name: value for name, value in theirs.items() if name != "params"})
        [step] = {float(each["step"]) for each in state["state"].values()}
        for flat_state in self._flat_states():
            flat_state["step"].fill_(step)
        for name, parameter in self._trained():
            for key in _MOMENTS:
                self._restore(parameter, key, state["state"][name][key])

    def _restore(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self._stage < 3:
            self._utils.safe_set_full_optimizer_state(parameter, value, key)
            return
        # The parts of all ranks are equally long, and the last one may be longer than what is left.
        size = self._utils.safe_get_local_optimizer_state(parameter, key).numel()
        first = size * self.accelerator.process_index
        mine = value.flatten()[first : first + size]
        padded = pad(mine, (0, size - mine.numel()))
        self._utils.safe_set_local_optimizer_state(parameter, padded, key)

    def _flat_states(self) -> list[dict[str, Tensor]]:
        """AdamW's state of this rank's parts, which it otherwise makes at its first step."""
        if self._stage == 3:
            flats = self._zero.fp32_partitioned_groups_flat
        else:
            flats = self._zero.single_partition_of_fp32_groups
        for flat in flats:
            if not self._optimizer.state[flat]:
                zeros = {key: torch.zeros_like(flat) for key in _MOMENTS}
                self._optimizer.state[flat] = {"step": torch.tensor(0.0)} | zeros
        if self._stage < 3:
            self._zero._lazy_init_hp_params_optimizer_state()
        return [self._optimizer.state[flat] for flat in flats]

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.module.named_parameters() if p.requires_grad]

    def _kept(self, whole: Tensor) -> Any:
        """Moved to the CPU by rank 0, and let go by the others."""
        return whole.cpu() if self.accelerator.is_main_process else None


def _zero_stage(accelerator: Accelerator) -> int:
    """0: not launched by DeepSpeed."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return 0
    stage: int = accelerator.deepspeed_plugin.zero_stage
    return stage


def check_deepspeed(plugin: Any, settings: RunSettings) -> None:
    """DeepSpeed's config does not say what is the settings' own, nor what nothing here can keep.

    Args:
        plugin: accelerate's `DeepSpeedPlugin`.

    Raises:
        TrainingError: it does.
    """
    if plugin.zero_stage == 3 and settings.method == "qlora":
        raise TrainingError(
            "ZeRO's stage 3 does not divide weights of 4 bits: each process would hold them all. "
            "Launch with FSDP 2, which does, or with stage 2."
        )
    config = plugin.deepspeed_config
    zero = config.get("zero_optimization", {})
    problems = [f"has a section {name!r}" for name in ("optimizer", "scheduler") if name in config]
    problems += [
        f"switches {name} on"
        for name in ("fp16", "bf16")
        if config.get(name, {}).get("enabled", False)
    ]
    problems += [
        f"moves {name.removeprefix('offload_')} to NVMe"
        for name in ("offload_optimizer", "offload_param")
        if (zero.get(name) or {}).get("device") == "nvme"
    ]
    if plugin.zero_stage not in (1, 2, 3):
        problems.append(f"asks for ZeRO's stage {plugin.zero_stage}, which cuts nothing in parts")
    if problems:
        raise TrainingError(
            f"DeepSpeed's config {' and '.join(problems)}. Optimiser, schedule and precision are "
            "set in the training config; ZeRO's stage is 1, 2 or 3, with parts on the GPU or the "
            "CPU. See train/accelerate/zero2.yaml"
        )
