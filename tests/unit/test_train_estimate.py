"""What an estimate says is what a loaded model takes; the configs that come along are usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig, Qwen2Config

from train.config import SftSettings, load_settings
from train.estimate import estimate, layer_activation_bytes, main
from train.model import footprint, load_model

CONFIGS = Path(__file__).parents[2] / "train" / "configs"
SMALL = {
    "hidden_size": 128,
    "intermediate_size": 448,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 500,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models of three architectures: with biases and tied embeddings, with experts."""
    configs = {
        "llama": LlamaConfig(**SMALL, num_hidden_layers=2),
        "qwen": Qwen2Config(**SMALL, num_hidden_layers=2, tie_word_embeddings=True),
        "mixtral": MixtralConfig(**SMALL, num_hidden_layers=2),
    }
    folder = tmp_path_factory.mktemp("models")
    for name, config in configs.items():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return {name: folder / name for name in configs}


def settings(path: Path, **fields: Any) -> SftSettings:
    return SftSettings(recipe="default", model={"path": str(path)}, **fields)


@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
@pytest.mark.parametrize("name", ["llama", "qwen", "mixtral"])
def test_weights_are_those_of_the_loaded_model(
    models: dict[str, Path], name: str, method: str
) -> None:
    of = settings(models[name], method=method)
    measured = footprint(load_model(of, torch.device("cpu")))
    found = estimate(of)
    assert found.weight_bytes == measured["weight_bytes"]
    assert found.trained_parameters == measured["trained_parameters"]
    assert found.four_bit_parameters == measured["four_bit_parameters"]


def test_experts_are_in_4_bits_and_adapters_beside_them_train(models: dict[str, Path]) -> None:
    of = settings(models["mixtral"], method="qlora", precision="float32")
    found = estimate(of)
    experts = 2 * 8 * 3 * 128 * 448
    assert found.parts["4-bit, fused experts"].parameters == experts
    model = load_model(of, torch.device("cpu"))
    measured = footprint(model)
    base = measured["four_bit_parameters"] + measured["other_parameters"]
    assert measured["four_bit_parameters"] / base > 0.9

    ids = torch.arange(64).unsqueeze(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    # Rounding to 4 bits is all that lies between the two models at the beginning.
    whole = load_model(settings(models["mixtral"], method="lora", precision="float32"), ids.device)
    assert losses[0] == pytest.approx(whole(input_ids=ids, labels=ids).loss.item(), rel=0.02)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_are_what_autograd_keeps(models: dict[str, Path], method: str) -> None:
    tokens = 256
    of = settings(models["llama"], method=method, precision="float32", lora={"rank": 8})
    model = load_model(of, torch.device("cpu"))
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[int, torch.Tensor]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        decoder = model.model if method == "full" else model.get_base_model().model
        decoder(input_ids=torch.arange(tokens).unsqueeze(0))
    layers = 2
    measured = sum(size for size, _ in kept.values()) / layers / tokens
    expected = layer_activation_bytes(model.config, of)
    assert measured == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_configs_are_valid_and_say_what_a_run_needs(file: Path) -> None:
    found = load_settings(file)
    processes = found.world_size or 1
    assert found.global_batch_size % (processes * found.micro_batch_size) == 0
    head = file.read_text().partition("\n\n")[0]
    for word in ("# Needs", "# Launch", f"--config train/configs/{file.name}"):
        assert word in head


def test_a_pair_takes_the_activations_of_two_rows(tmp_path: Path) -> None:
    model = f"model.path={tmp_path / 'tiny'}"
    samples, pairs = (
        estimate(load_settings(CONFIGS / name, [model, "micro_batch_size=2"]))
        for name in ("tiny.yaml", "dpo-tiny.yaml")
    )
    assert pairs.activation_bytes == 2 * samples.activation_bytes
    assert pairs.logit_bytes == 2 * samples.logit_bytes
    assert pairs.weight_bytes == samples.weight_bytes


def test_the_command_prints_parameters_and_memory_per_gpu(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(CONFIGS / "qlora-mixtral-8gpu.yaml")
    small = f"model.path={models['mixtral']}"
    assert main(["--config", config, "--set", small, "--gpus", "8"]) == 0
    printed = capsys.readouterr().out
    assert "4-bit, fused experts" in printed and "FSDP, 8 GPUs" in printed
    assert main(["--config", config, "--set", "model.path=/nowhere"]) == 1
    assert "Give `model.path` a folder with a model" in capsys.readouterr().err
