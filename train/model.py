"""Base model and adapters, and what identifies them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.parametrize import Bnb4bitParametrization, replace_parameter_4bit
from bitsandbytes.optim.adamw import PagedAdamW8bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
)

from train.config import RunSettings
from train.tokenizer import cannot_load
from udfs.errors import TrainingError

_SAMPLED_BYTES = 1 << 20


def base_model_sha256(path: str) -> str:
    """Stands for a base model's weights.

    For a folder: over its config, and each weight file's name, size, first and last mebibyte
    (reading a large model whole would take minutes). For a model of the hub: over its commit.
    """
    folder = Path(path)
    digest = sha256()
    if not folder.is_dir():
        config = AutoConfig.from_pretrained(path)
        digest.update(f"{path}@{getattr(config, '_commit_hash', None)}".encode())
        return digest.hexdigest()
    digest.update((folder / "config.json").read_bytes())
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_SAMPLED_BYTES))
            stream.seek(max(size - _SAMPLED_BYTES, 0))
            digest.update(stream.read())
    return digest.hexdigest()


def load_model(
    settings: RunSettings, device: torch.device | None, checkpoint: Path | None = None
) -> Any:
    """The model to train: transformers' own for the method `full`, else peft's around it.

    Args:
        device: where the weights go; null: the memory of the CPU, of the first process only where
            accelerate's config says so (`fsdp_cpu_ram_efficient_loading`).
        checkpoint: a folder that `save_pretrained` wrote; null: a fresh start. New adapters are
            drawn from torch's current random state.

    Trained weights are float32; the frozen ones are in `settings.precision`.

    Raises:
        TrainingError: the base model cannot be loaded.
    """
    full = settings.method == "full"
    frozen_dtype = torch.float32 if full else getattr(torch, settings.precision)
    source = str(checkpoint) if full and checkpoint else settings.model.path
    options: dict[str, Any] = {
        "dtype": frozen_dtype,
        "attn_implementation": settings.model.attention,
    }
    if device is not None:
        options["device_map"] = {"": device}
    model: Any
    try:
        if settings.method == "qlora":
            options["quantization_config"] = quantization(settings)
            if fused_experts(model_skeleton(settings)):
                if device is None:
                    raise TrainingError(
                        f"{settings.model.path} has fused experts, which are rounded to 4 bits on "
                        "one device and cannot be sharded then. Launch with data parallelism."
                    )
                options["device_map"] = {"": "cpu"}  # unrounded they may not fit on the device
        model = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError, ImportError) as error:
        raise cannot_load("model", source, error) from error
    if settings.method == "qlora" and device is not None:
        _quantise_experts(model, device)
    if settings.gradient_checkpointing:
        # The reentrant kind has no gradient where a checkpoint's input has none, as with adapters.
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if full:
        return model.train()
    if checkpoint:
        model = PeftModel.from_pretrained(model, checkpoint, is_trainable=True)
    else:
        model = get_peft_model(model, adapters(settings))
    return model.train()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within the block, no dropout and no gradients; afterwards the model trains on.

    4-bit layers stay in the mode of training, which means nothing else to them: in that of
    evaluation, bitsandbytes turns weights on a CPU into a form that has no gradient, for good.
    """
    model.eval()
    for module in model.modules():
        if hasattr(module, "quant_state"):
            module.training = True
    try:
        with torch.no_grad():
            yield
    finally:
        model.train()


def make_optimizer(settings: RunSettings, model: nn.Module) -> Optimizer:
    """An optimiser of what is trained.

    `paged_adamw_8bit` keeps two bytes a parameter instead of eight, and on a GPU moves them to the
    memory of the CPU where its own runs short (Dettmers et al., "8-bit Optimizers via Block-wise
    Quantization", 2022). Tensors below 4,096 entries keep 32 bits.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds: dict[str, type[Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "paged_adamw_8bit": PagedAdamW8bit,
    }
    kind: Any = kinds[settings.optimizer]
    optimizer: Optimizer = kind(
        trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    return optimizer


def model_skeleton(settings: RunSettings) -> Any:
    """The base model without its weights, from its config alone: all parameters are on the meta
    device, in the precision of the frozen ones.

    Raises:
        OSError, ValueError: there is no config, or none of a causal language model.
    """
    config = AutoConfig.from_pretrained(settings.model.path)
    dtype = torch.float32 if settings.method == "full" else getattr(torch, settings.precision)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]


def quantization(settings: RunSettings) -> BitsAndBytesConfig:
    """How `qlora` rounds linear layers: NF4, and the constants of its blocks rounded once more."""
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, settings.precision),
        bnb_4bit_quant_storage=getattr(torch, settings.precision),  # FSDP shards no integers
    )


def adapters(settings: RunSettings) -> LoraConfig:
    """New adapters as the settings describe them, for peft."""
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,
        lora_dropout=settings.lora.dropout,
        target_modules=settings.lora.target_modules or "all-linear",
    )


def fused_experts(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """Parameters that hold all experts of a layer [experts, out, in], as (module, name).

    They are no linear layers, so transformers' quantiser for bitsandbytes leaves them as they are.
    """
    return [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3
    ]


def _quantise_experts(model: nn.Module, device: torch.device) -> None:
    """Round fused experts to 4 bits on `device`, as linear layers are, and move the rest there.

    A use of such a parameter restores all experts of its layer in the model's precision, and no
    gradient reaches it: adapters beside it are those of the linear layers and the router.
    """
    experts = fused_experts(model)
    for module, name in experts:
        parameter = getattr(module, name)
        parameter.data = parameter.data.to(device)
        replace_parameter_4bit(module, name, compress_statistics=True, quant_type="nf4")
    if experts:
        model.to(device)


def check_packing(model: nn.Module) -> None:
    """Look whether a segment sees the one before it in the same row; the model trains on.

    Layers that carry a state along the row, as in Mamba, know nothing of segments.

    Raises:
        TrainingError: it does.
    """
    one = torch.arange(16, device=next(model.parameters()).device).unsqueeze(0)
    other = one.clone()
    other[0, :8] += 16
    positions = torch.arange(8, device=one.device).repeat(2).unsqueeze(0)

    def second(ids: Tensor) -> Tensor:
        """Logits of the second segment."""
        logits: Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
        return logits[0, 8:].float()

    with evaluation_mode(model):
        before, after = second(one), second(other)
    if (before - after).abs().max() > 0.01 * before.std():
        raise TrainingError(
            "this model lets samples that share a row see each other: another first sample changes "
            "what it says about the second. Set packing to none."
        )


def footprint(model: nn.Module) -> dict[str, int]:
    """What the model takes: bytes of all weights, and parameters by what happens to them.

    Measured, not computed from the method. Bytes are those of the parameters; the constants of
    4-bit blocks come to 0.13 bits a parameter more (Dettmers et al. 2023, QLoRA, section 3).
    """
    rounded: dict[Tensor, Any] = {
        p: p.quant_state for p in model.parameters() if hasattr(p, "quant_state")
    }
    for module in model.modules():
        if isinstance(module, ParametrizationList) and isinstance(
            module[0], Bnb4bitParametrization
        ):
            rounded[module.original] = module[0].quant_state
    return {
        "weight_bytes": sum(p.numel() * p.element_size() for p in model.parameters()),
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "four_bit_parameters": sum(state.shape.numel() for state in rounded.values()),
        "other_parameters": sum(
            p.numel() for p in model.parameters() if not p.requires_grad and p not in rounded
        ),
    }
