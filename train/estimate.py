"""What a run will take of a GPU's memory, from the config alone: no weights are read.

    python -m train.estimate --config train/configs/qlora-1gpu.yaml
    python -m train.estimate --config train/configs/full-8gpu-fsdp.yaml --gpus 8

The model is built on the meta device, and its layers are replaced as the method would have it by
the same functions of transformers, bitsandbytes and peft. So weights, gradients and optimiser
states are counted, and equal `train.model.footprint` of the loaded model; activations are
estimated (`layer_activation_bytes`). What CUDA, NCCL and the allocator take besides is not in it:
leave some GB, and look at the first steps.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.integrations.bitsandbytes import replace_with_bnb_linear
from transformers.quantizers.auto import AutoHfQuantizer

from train.config import Settings, load_settings
from train.model import adapters, fused_experts, model_skeleton, quantization
from train.tiny import make_tiny_model
from train.tokenizer import cannot_load
from udfs.errors import TrainingError

_GB = 1e9
_4BIT = "_4bit"  # what the name of a parameter ends with that stands for experts in 4 bits
_EXPERTS_4BIT = "4-bit, fused experts"


@dataclass(frozen=True)
class Part:
    """Parameters of one kind: how many, and the bytes of their weights."""

    parameters: int = 0
    weight_bytes: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(self.parameters + other.parameters, self.weight_bytes + other.weight_bytes)


@dataclass(frozen=True)
class Estimate:
    """Memory of one model replica in bytes, for `micro_batch_size` rows of `max_length` tokens, or
    pairs of two such rows.

    `parts` by kind of parameter; `layer_weight_bytes` are the weights of a decoder layer, which
    FSDP gathers whole.
    """

    parts: dict[str, Part]
    trained_parameters: int
    four_bit_parameters: int
    layer_weight_bytes: int
    activation_bytes: int
    checkpointed_activation_bytes: int
    logit_bytes: int

    @property
    def weight_bytes(self) -> int:
        """Of all parameters, as `footprint` measures them."""
        return sum(part.weight_bytes for part in self.parts.values())

    @property
    def constant_bytes(self) -> float:
        """Of 4-bit blocks: a byte a 64 parameters, 4 bytes a 256 blocks (QLoRA, section 3)."""
        return self.four_bit_parameters * (1 / 64 + 4 / (64 * 256))

    @property
    def gradient_bytes(self) -> int:
        """Trained weights are float32, and so are their gradients."""
        return 4 * self.trained_parameters

    @property
    def optimizer_bytes(self) -> int:
        """AdamW's two moments, float32."""
        return 8 * self.trained_parameters

    def gpu_bytes(self, gpus: int, *, is_sharded: bool, is_checkpointed: bool) -> float:
        """Of one GPU. Data parallel, each has all states; with FSDP (`is_sharded`) each has a share
        of them and, one after the other, whole layers: the one in use and the next."""
        states = (
            self.weight_bytes + self.constant_bytes + self.gradient_bytes + self.optimizer_bytes
        )
        if is_sharded:
            states = states / gpus + 2 * self.layer_weight_bytes
        activations = (
            self.checkpointed_activation_bytes if is_checkpointed else self.activation_bytes
        )
        return states + activations + self.logit_bytes


def estimate(settings: Settings) -> Estimate:
    """Count and estimate what one process takes.

    Raises:
        TrainingError: the base model's config cannot be loaded.
    """
    if settings.model.tiny is not None:
        make_tiny_model(Path(settings.model.path), settings.model.tiny)
    try:
        model = model_skeleton(settings)
    except (OSError, ValueError) as error:
        raise cannot_load("model", settings.model.path, error) from error
    config = model.config.get_text_config()
    if settings.method == "qlora":
        _replace_by_4bit(model, settings)
    if settings.method != "full":
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's on names of experts that are not there
            model = get_peft_model(model, adapters(settings))
    parts: dict[str, Part] = {}
    trained = 0
    for name, parameter in model.named_parameters():
        kind, part = _part(name, parameter)
        parts[kind] = parts.get(kind, Part()) + part
        trained += part.parameters if parameter.requires_grad else 0
    layers = config.num_hidden_layers
    within = [_part(n, p)[1].weight_bytes for n, p in model.named_parameters() if ".layers." in n]
    number = _compute_bytes(settings)
    tokens = settings.max_length * settings.micro_batch_size * settings.sequences_per_row
    # A use of 4-bit experts restores all of the layer, which autograd keeps.
    restored = number * parts.get(_EXPERTS_4BIT, Part()).parameters // layers
    layer = tokens * layer_activation_bytes(config, settings) + restored
    return Estimate(
        parts,
        trained_parameters=trained,
        four_bit_parameters=sum(
            part.parameters for kind, part in parts.items() if kind.startswith("4-bit")
        ),
        layer_weight_bytes=sum(within) // layers,
        activation_bytes=layers * layer,
        # A checkpointed layer keeps its input, and one layer at a time all (section 5).
        checkpointed_activation_bytes=layers * tokens * config.hidden_size * number + layer,
        logit_bytes=tokens * config.vocab_size * (number + 3 * 4),
    )


def layer_activation_bytes(config: Any, settings: Settings) -> int:
    """What the forward pass of a decoder layer keeps for the backward pass, a token.

    Counted as in Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
    Models", section 4.1, for a layer as Llama's, whose MLP has a gate: with b bytes a number, key
    and value heads of width v together, and k experts of width i for a token,

        4·b·i·k      gate, its SiLU, up, and their product
        2·b·v        keys and values
        25·h         the rest; much of it is float32 whatever b, as in norms (34·h for `full`)

    Scaled dot-product attention and FlashAttention keep no scores. The factors are what autograd
    kept in transformers 5.17; the paper's own, 34·h in all, are of GPT's layer. Trained weights are
    float32, so `full` has b = 4; under bfloat16 that is some 10% too much.

    Args:
        config: of the model.
    """
    width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    experts = getattr(config, "num_experts_per_tok", None) or 1
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    values = (getattr(config, "num_key_value_heads", None) or heads) * head_size
    number = 4 if settings.method == "full" else _compute_bytes(settings)
    rest = 34 if settings.method == "full" else 25
    return int(number * (4 * width * experts + 2 * values) + rest * config.hidden_size)


def _compute_bytes(settings: Settings) -> int:
    return torch.finfo(getattr(torch, settings.precision)).bits // 8


def _replace_by_4bit(model: Any, settings: Settings) -> None:
    """Replace what `load_model` loads in 4 bits, without weights."""
    quantizer = AutoHfQuantizer.from_config(quantization(settings))
    kept = quantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    replace_with_bnb_linear(
        model, modules_to_not_convert=kept, quantization_config=quantizer.quantization_config
    )
    for module in model.modules():
        if isinstance(module, Linear4bit) and module.bias is not None:
            module.bias.data = module.bias.data.to(model.dtype)  # as loaded; made as float32
    model.is_loaded_in_4bit = True  # peft takes its layers for 4-bit ones
    for module, name in fused_experts(model):
        packed = torch.empty(
            (getattr(module, name).numel() + 1) // 2, dtype=torch.uint8, device="meta"
        )
        delattr(module, name)
        # Under another name, as in a loaded model: peft does not find experts in 4 bits.
        module.register_parameter(name + _4BIT, nn.Parameter(packed, requires_grad=False))


def _part(name: str, parameter: nn.Parameter) -> tuple[str, Part]:
    """The kind of a parameter, and what it adds to it."""
    count = parameter.numel()
    if isinstance(parameter, Params4bit):
        return "4-bit, linear layers", Part(count, (count + 1) // 2)
    if name.endswith(_4BIT):
        return _EXPERTS_4BIT, Part(2 * count, count)
    dtype = str(parameter.dtype).removeprefix("torch.")
    what = "trained" if parameter.requires_grad else "frozen"
    if parameter.ndim == 3:
        what += ", fused experts"
    return f"{dtype}, {what}", Part(count, count * parameter.element_size())


def tables(settings: Settings, found: Estimate, gpus: int) -> list[Table]:
    """An estimate for a reader: parameters, memory of a replica, and per GPU."""
    weights = Table("parameters", title=f"{settings.model.path}, {settings.method}")
    weights.title_justify = "left"
    for column in ("count", "share", "GB"):
        weights.add_column(column, justify="right")
    total = sum(part.parameters for part in found.parts.values())
    for kind, part in sorted(found.parts.items()):
        share = f"{part.parameters / total:.1%}"
        weights.add_row(kind, f"{part.parameters:,}", share, _gb(part.weight_bytes))
    weights.add_row("all", f"{total:,}", "", _gb(found.weight_bytes), style="bold")

    sequences = settings.micro_batch_size * settings.sequences_per_row
    rows = f"{sequences} x {settings.max_length:,} tokens"
    memory = Table("besides", title_justify="left")
    memory.add_column("GB", justify="right")
    for what, size in (
        ("constants of 4-bit blocks", found.constant_bytes),
        ("gradients, float32", found.gradient_bytes),
        ("AdamW's moments, float32", found.optimizer_bytes),
        (f"activations of {rows} (estimated)", found.activation_bytes),
        ("the same with gradient checkpointing", found.checkpointed_activation_bytes),
        ("logits, if every token carries loss", found.logit_bytes),
    ):
        memory.add_row(what, _gb(size))

    each = Table("per GPU, GB", title_justify="left")
    kinds = {f"data parallel, {gpus} GPU": False} | (
        {f"FSDP, {gpus} GPUs": True} if gpus > 1 else {}
    )
    for column in kinds:
        each.add_column(column, justify="right")
    for label, is_checkpointed in (("all activations", False), ("checkpointed", True)):
        sizes = (
            found.gpu_bytes(gpus, is_sharded=is_sharded, is_checkpointed=is_checkpointed)
            for is_sharded in kinds.values()
        )
        each.add_row(label, *map(_gb, sizes))
    return [weights, memory, each]


def _gb(size: float) -> str:
    return f"{size / _GB:,.2f}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.estimate", description="What a run will take of a GPU's memory."
    )
    parser.add_argument("--config", type=Path, required=True, help="a YAML file of a run")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override one setting"
    )
    parser.add_argument("--gpus", type=int, default=1, help="how many GPUs share the run")
    options = parser.parse_args(arguments)
    try:
        if options.gpus < 1:
            raise TrainingError(f"--gpus is {options.gpus}. Give a number from 1.")
        settings = load_settings(options.config, options.set)
        found = estimate(settings)
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for table in tables(settings, found, options.gpus):
        Console(width=90).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
