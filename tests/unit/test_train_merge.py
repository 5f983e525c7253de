"""A run's adapter merged into its base: the same model, as a folder that servers load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("bitsandbytes", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import torch
from jinja2 import Environment
from peft import PeftModel
from train_export import react_sample, tool_sample, write_export
from transformers import AutoModelForCausalLM, AutoTokenizer

from train import merge, sft
from train.merge import without_marks
from train.serve import model_folder
from train.tiny import CHAT_TEMPLATE
from udfs.errors import TrainingError

MESSAGES = [
    {"role": "system", "content": "Use the tool."},
    {"role": "user", "content": "What is naïve?"},
    {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [
            {"type": "function", "function": {"name": "lookup", "arguments": {"word": "naïve"}}},
            {"type": "function", "function": {"name": "lookup", "arguments": {"word": "素"}}},
        ],
    },
    {"role": "tool", "content": "simple", "tool_call_id": "1"},
    {"role": "assistant", "content": "Simple."},
    {"role": "user", "content": "Thanks"},
]
TOOLS = [{"type": "function", "function": {"name": "lookup", "parameters": {"type": "object"}}}]


def train(home: Path, run: str, method: str, *more: str) -> Path:
    values = [
        f"run={run}",
        f"output={home / 'runs'}",
        f"model.path={home / 'tiny-model'}",
        f"method={method}",
        "max_steps=3",
        *more,
    ]
    arguments = [part for value in values for part in ("--set", value)]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("exports", "prepared", "lake"):
            patch.setenv(f"TRAJLAKE_{name.upper()}", str(home / name))
        assert sft.main(["--config", "train/configs/tiny.yaml", *arguments]) == 0
    return home / "runs" / run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    samples = [(react_sample if i % 2 else tool_sample)(i) for i in range(24)]
    export = write_export(home / "exports" / "default", samples)
    manifest = json.loads((export / "manifest.json").read_text())
    manifest["licenses"] = {"Apache-2.0": 20, "null": 4}
    (export / "manifest.json").write_text(json.dumps(manifest))
    return home


@pytest.fixture(scope="module")
def merged(home: Path) -> Path:
    """A run by qlora, merged from the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[2])
        patch.setenv("TRAJLAKE_EXPORTS", str(home / "exports"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        run = train(home, "first", "qlora")
        assert merge.main(["--run", str(run)]) == 0
    return run / "merged"


def logits(model: Any, tokenizer: Any) -> torch.Tensor:
    ids = tokenizer.apply_chat_template(
        MESSAGES, tools=TOOLS, return_tensors="pt", return_dict=True, add_generation_prompt=True
    )
    with torch.no_grad():
        return model.eval()(**ids).logits


def test_the_merged_model_is_base_and_adapter(home: Path, merged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged)
    base = AutoModelForCausalLM.from_pretrained(home / "tiny-model")
    before = logits(base, tokenizer)
    both = logits(PeftModel.from_pretrained(base, merged.parent / "adapter"), tokenizer)
    one = logits(AutoModelForCausalLM.from_pretrained(merged), tokenizer)
    assert (both - before).abs().max() > 0.1  # the adapter does something
    torch.testing.assert_close(one, both, atol=1e-4, rtol=1e-4)
    config = json.loads((merged / "config.json").read_text())
    assert "quantization_config" not in config


def test_the_template_reads_alike_for_training_and_for_plain_jinja(merged: Path) -> None:
    trained = AutoTokenizer.from_pretrained(merged.parent / "adapter")
    served = AutoTokenizer.from_pretrained(merged)
    for prompted in (False, True):
        texts = {
            tokenizer.apply_chat_template(
                MESSAGES, tools=TOOLS, tokenize=False, add_generation_prompt=prompted
            )
            for tokenizer in (trained, served)
        }
        assert len(texts) == 1
    [text] = texts
    assert text.endswith("<|assistant|>") and '<|tool_call|>{"name": "lookup"' in text
    assert "generation %}" not in served.chat_template
    Environment().parse(served.chat_template)


@pytest.mark.parametrize("mark", ["{% generation %}", "{%- generation -%}", "{%+ generation %}"])
def test_a_mark_becomes_a_comment_that_trims_alike(mark: str) -> None:
    template = f"a \n {mark} b {mark.replace('generation', 'endgeneration')} \n c"
    plain = without_marks(template)
    tags = template.replace("endgeneration", "endif").replace("generation", "if true")
    for options in ({}, {"trim_blocks": True, "lstrip_blocks": True}):
        environment = Environment(**options)
        assert environment.from_string(plain).render() == environment.from_string(tags).render()


def test_a_server_is_told_how_calls_look_in_our_template(merged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(merged)
    calls = ['{"name": "a", "arguments": {"x": 1}}', '{"name": "b", "arguments": {}}']
    text = "".join(f"<|tool_call|>{call}" for call in calls)
    said = tokenizer.parse_response(f"Well.{text}</s>", prefix="")
    assert said["content"] == "Well."
    assert said["tool_calls"] == [
        {"type": "function", "function": {"name": "a", "arguments": '{"x": 1}'}},
        {"type": "function", "function": {"name": "b", "arguments": "{}"}},
    ]
    broken = tokenizer.parse_response('<|tool_call|>{"name": "a", "arguments": {"x}</s>', prefix="")
    assert broken["tool_calls"][0]["function"]["arguments"] == '{"x'
    cut = tokenizer.parse_response('<|tool_call|>{"name": "a', prefix="")
    assert cut["content"] == '<|tool_call|>{"name": "a' and "tool_calls" not in cut
    assert tokenizer.parse_response("Only words.</s>", prefix="")["content"] == "Only words."


def test_the_card_says_what_it_was_made_from(merged: Path) -> None:
    card = (merged / "README.md").read_text()
    assert "the run `first`" in card and "method `qlora`, 3 steps" in card
    assert "rounded to 4 bits" in card
    assert "- Apache-2.0: 20 trajectories\n- not known: 4 trajectories" in card


def test_what_cannot_be_merged_is_refused(
    home: Path, merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(*arguments: str) -> str:
        assert merge.main(["--run", *arguments]) == 1
        return capsys.readouterr().err

    run = merged.parent
    assert f"{merged} exists" in error(str(run))
    assert "there is no run at" in error(str(tmp_path))
    manifest = json.loads((run / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()

    def written(**changes: Any) -> str:
        (other / "manifest.json").write_text(json.dumps(manifest | changes))
        return error(str(other))

    full = manifest["settings"] | {"method": "full"}
    assert f"the model is {other / 'model'}" in written(settings=full)
    assert "is stopped and has no result yet" in written(status="stopped")
    (other / "adapter").symlink_to(run / "adapter")
    assert "is not the one that" in written(identity={"base_model_sha256": "0" * 64})
    gone = manifest["settings"] | {"model": {"path": str(tmp_path / "gone")}}
    assert "cannot load what" in written(settings=gone)
    assert not (other / "merged").exists()


def test_only_a_model_is_served(merged: Path, tmp_path: Path) -> None:
    assert model_folder(merged) == model_folder(merged.parent) == merged
    with pytest.raises(TrainingError, match=r"adapter without its base.*train\.merge --run"):
        model_folder(merged.parent / "adapter")
    (tmp_path / "adapter").mkdir()
    with pytest.raises(TrainingError, match=r"no whole model yet.*train\.merge --run"):
        model_folder(tmp_path)
    with pytest.raises(TrainingError, match=r"no config\.json beside weights"):
        model_folder(CHAT_TEMPLATE.parent)
