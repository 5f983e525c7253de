"""The first steps of `train.dpo` beside those of TRL's DPOTrainer.

    pip install --no-deps trl        # the peer, in an environment with the extras train and dev
    pytest -s tests/bench/test_train_dpo_peer.py

The same pairs, base model and settings; all weights are trained. TRL writes and tokenises the
conversations itself and computes its own reference. It takes all of a continuation for the agent's
words, so every continuation is one output: with what is observed in between, it would train on
that. Its `label_smoothing` is not compared, as its loss `sigmoid` does not read it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from train_export import react_sample, write_pairs

from train import dpo
from train.config import TinyModel
from train.tiny import make_tiny_model

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "dpo-tiny.yaml"
STEPS, BATCH, MICRO_BATCH = 4, 8, 2
LEARNING_RATE = 1e-3

# Our settings, and TRL's of the same name or meaning.
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "beta 0.1": (["beta=0.1"], {"beta": 0.1}),
    "a token": (
        ["beta=2.0", "length_normalised=true"],
        {"beta": 2.0, "loss_type": ["sigmoid_norm"]},
    ),
}


def pair(number: int) -> dict[str, Any]:
    """Of 30 to 200 tokens a side."""
    prompt = react_sample(number)["messages"][:1]
    prompt[0]["content"] += " Think of it in other words." * (number % 20)
    answers = [f"Action: Finish[{number + 1}]", f"Thought: compare. Action: Finish[{number}]"]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in answers)
    return {
        "pair_id": str(number),
        "chosen_id": f"good-{number}",
        "rejected_id": f"bad-{number}",
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "chosen_loss_flags": [True],
        "rejected_loss_flags": [True],
    }


def ours(folder: Path, name: str, *more: str) -> tuple[list[dict[str, Any]], Path]:
    values = [
        f"run={name}",
        f"output={folder}",
        f"model.path={folder / 'model'}",
        "method=full",
        "precision=float32",
        "epochs=1",
        f"global_batch_size={BATCH}",
        f"micro_batch_size={MICRO_BATCH}",
        f"learning_rate={LEARNING_RATE}",
        "schedule=constant_with_warmup",
        "warmup_steps=0",
        *more,
    ]
    arguments = [part for value in values for part in ("--set", value)]
    assert dpo.main(["--config", str(CONFIG), *arguments]) == 0
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], folder / name / "model"


def trl(
    folder: Path, name: str, pairs: list[dict[str, Any]], **more: Any
) -> tuple[list[dict[str, Any]], Path]:
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from trl import DPOConfig, DPOTrainer

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset or self.train_dataset)

    config = DPOConfig(
        output_dir=str(folder / "trl"),
        max_steps=STEPS,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=BATCH // MICRO_BATCH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_length=None,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        model_init_kwargs={"dtype": "float32"},
        **more,
    )
    names = ("prompt", "chosen", "rejected")
    trainer = InOrder(
        model=str(folder / "model"),
        args=config,
        train_dataset=Dataset.from_list([{name: each[name] for name in names} for each in pairs]),
    )
    trainer.train()
    trainer.save_model(str(folder / "trl" / name))
    history = [line for line in trainer.state.log_history if "grad_norm" in line]
    return history, folder / "trl" / name


@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradients_and_weights_are_those_of_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("trl", reason="the peer is not installed: pip install --no-deps trl")
    for name in ("exports", "prepared", "lake"):
        monkeypatch.setenv(f"TRAJLAKE_{name.upper()}", str(tmp_path / name))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    make_tiny_model(tmp_path / "model", TinyModel())
    pairs = [pair(number) for number in range(STEPS * BATCH)]
    write_pairs(tmp_path / "exports" / "default.pairs", pairs)
    our_settings, their_settings = KINDS[kind]
    metrics, model = ours(tmp_path, "ours", *our_settings)
    history, peer = trl(tmp_path, "theirs", pairs, **their_settings)

    table = Table(title=f"{kind}: {STEPS} steps of {BATCH} pairs", title_justify="left")
    for column in ("step", "loss", "TRL's", "gradient norm", "TRL's", "margin", "TRL's"):
        table.add_column(column)
    for line, other in zip(metrics, history, strict=True):
        values = (
            (line["loss"], other["loss"]),
            (line["gradient_norm"], other["grad_norm"]),
            (line["reward_margin"], other["rewards/margins"]),
        )
        table.add_row(str(line["step"]), *(f"{each:.6f}" for both in values for each in both))
        assert values[0][0] == pytest.approx(values[0][1], rel=1e-4)
        assert values[1][0] == pytest.approx(values[1][1], rel=1e-3)
        if kind != "a token":  # TRL's metrics are of sums there
            assert values[2][0] == pytest.approx(values[2][1], rel=1e-3, abs=1e-4)
    [found], [expected] = (list(each.glob("*.safetensors")) for each in (model, peer))
    weights, others = load_file(found), load_file(expected)
    assert weights.keys() == others.keys()
    furthest = max(float((weights[name] - others[name]).abs().max()) for name in others)
    Console(width=110).print(table)
    print(f"weights afterwards differ by {furthest:.1e} at most")
    assert furthest < LEARNING_RATE / 10  # a step moves a weight by about the learning rate
