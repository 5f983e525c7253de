"""A tiny causal model with a real tokenizer, made on this machine without a download.

`train/configs/tiny.yaml` names one; `train.sft` makes it on first use. The weights are random and
the model knows nothing: it is there so that the whole way from export to adapter can be run, and
tested, on any CPU.
"""

from __future__ import annotations

import json
import tempfile
from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.integrations.mistral.tokenizer import convert_tekken_tokenizer

from train.config import TinyModel
from train.tokenizer import CHAT_TEMPLATE
from udfs.errors import TrainingError
from udfs.folders import atomic_folder

# The first four are the names under which the conversion looks for unk, bos, eos and pad.
_CONTROL_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<|system|>",
    "<|tools|>",
    "<|user|>",
    "<|assistant|>",
    "<|tool_call|>",
    "<|tool|>",
]


def make_tiny_model(folder: Path, spec: TinyModel) -> None:
    """Write model and tokenizer to `folder`, unless the same ones are there already.

    The same `spec` gives the same weights. The folder appears complete or not at all.

    Raises:
        TrainingError: `folder` holds something else.
    """
    if folder.exists():
        _check_same(folder, spec)
        return
    tokenizer = _cut_tokenizer(spec.vocab_size)
    model = _random_model(spec, tokenizer)
    with atomic_folder(folder) as staging:
        tokenizer.save_pretrained(staging)
        model.save_pretrained(staging)


def _check_same(folder: Path, spec: TinyModel) -> None:
    try:
        made_with = getattr(AutoConfig.from_pretrained(folder), "trajlake_tiny", None)
    except (OSError, ValueError):
        made_with = None
    if made_with != spec.model_dump():
        raise TrainingError(
            f"{folder} holds something other than the tiny model that the config describes "
            f"({spec.model_dump()}). Delete the folder, or give `model.path` another one."
        )


def _cut_tokenizer(vocab_size: int) -> PreTrainedTokenizerBase:
    """Mistral's Tekken tokenizer, kept to its `vocab_size` lowest ranks, with our chat template.

    A byte-pair vocabulary is ordered by rank, so its beginning is a smaller tokenizer of the same
    kind: it still encodes every text without loss.
    """
    source = files("mistral_common").joinpath("data", "tekken_240911.json")
    tekken = json.loads(source.read_text(encoding="utf-8"))
    tekken["config"]["default_vocab_size"] = vocab_size
    tekken["config"]["default_num_special_tokens"] = len(_CONTROL_TOKENS)
    tekken["special_tokens"] = [
        {"rank": rank, "token_str": token, "is_control": True}
        for rank, token in enumerate(_CONTROL_TOKENS)
    ]
    tekken["vocab"] = tekken["vocab"][: vocab_size - len(_CONTROL_TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        cut = Path(folder) / "tekken.json"
        cut.write_text(json.dumps(tekken), encoding="utf-8")
        tokenizer: PreTrainedTokenizerBase = convert_tekken_tokenizer(
            str(cut), chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8")
        )
    # It would be saved as the path of the temporary file, which loading then looks for.
    tokenizer.init_kwargs.pop("vocab_file", None)
    return tokenizer


def _random_model(spec: TinyModel, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=spec.vocab_size,
        hidden_size=spec.hidden_size,
        intermediate_size=2 * spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.heads,
        max_position_embeddings=8192,
        # Large enough for logits to matter: adapters train while the output layer stays as it is.
        initializer_range=spec.hidden_size**-0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.update({"trajlake_tiny": spec.model_dump()})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        return LlamaForCausalLM(config)
