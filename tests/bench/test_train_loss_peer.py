"""The first steps of `train.sft` beside those of TRL's SFTTrainer.

    pip install --no-deps trl        # the peer, in an environment with the extras train and dev
    pytest -s tests/bench/test_train_loss_peer.py

The same conversations, base model and settings; all weights are trained. TRL writes and masks the
conversations itself (`assistant_only_loss`), so masks are compared too. It knows no weights of
samples and no way to mask one output of several: all weights are 1, and every output carries loss.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from train_export import react_sample, write_export

from train import sft
from train.config import TinyModel
from train.tiny import make_tiny_model

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "tiny.yaml"
STEPS, BATCH, MICRO_BATCH = 4, 8, 2
LEARNING_RATE = 1e-3


def conversation(number: int) -> dict[str, Any]:
    """Of 30 to 200 tokens."""
    sample = react_sample(number)
    sample["messages"][0]["content"] += " Think of it in other words." * (number % 20)
    return sample


def ours(folder: Path, samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Path]:
    write_export(folder / "exports" / "default", samples, samples[:1])
    values = [
        "run=ours",
        f"output={folder}",
        f"model.path={folder / 'model'}",
        "method=full",
        "precision=float32",
        f"max_steps={STEPS}",
        f"global_batch_size={BATCH}",
        f"micro_batch_size={MICRO_BATCH}",
        f"learning_rate={LEARNING_RATE}",
        "schedule=constant_with_warmup",
        "warmup_steps=0",
    ]
    arguments = [part for value in values for part in ("--set", value)]
    assert sft.main(["--config", str(CONFIG), *arguments]) == 0
    lines = (folder / "ours" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], folder / "ours" / "model"


def trl(folder: Path, samples: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], Path]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    config = SFTConfig(
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=4096,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        model_init_kwargs={"dtype": "float32"},
    )
    trainer = SFTTrainer(
        model=str(folder / "model"),
        args=config,
        train_dataset=Dataset.from_list([{"messages": each["messages"]} for each in samples]),
    )
    trainer.train()
    trainer.save_model(str(folder / "trl" / "model"))
    history = [line for line in trainer.state.log_history if "grad_norm" in line]
    return history, folder / "trl" / "model"


def test_loss_gradients_and_weights_are_those_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("trl", reason="the peer is not installed: pip install --no-deps trl")
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(tmp_path / "exports"))
    monkeypatch.setenv("TRAJLAKE_PREPARED", str(tmp_path / "prepared"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_tiny_model(tmp_path / "model", TinyModel())
    samples = [conversation(number) for number in range(STEPS * BATCH)]
    metrics, model = ours(tmp_path, samples)
    history, peer = trl(tmp_path, samples)

    table = Table(title=f"{STEPS} steps of {BATCH} conversations", title_justify="left")
    for column in ("step", "loss", "TRL's", "gradient norm", "TRL's"):
        table.add_column(column)
    for line, other in zip(metrics, history, strict=True):
        norms = (line["gradient_norm"], other["grad_norm"])
        losses = (line["loss"], other["loss"])
        table.add_row(str(line["step"]), *(f"{value:.6f}" for value in (*losses, *norms)))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    [found], [expected] = (list(each.glob("*.safetensors")) for each in (model, peer))
    weights, others = load_file(found), load_file(expected)
    assert weights.keys() == others.keys()
    furthest = max(float((weights[name] - others[name]).abs().max()) for name in others)
    assert furthest < LEARNING_RATE / 10  # a step moves a weight by about the learning rate
    Console(width=110).print(table)
    print(f"weights afterwards differ by {furthest:.1e} at most")
