"""The tokenizer and the chat template of a model, and what identifies them."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from train.config import ModelSettings
from udfs.errors import TrainingError

CHAT_TEMPLATE = Path(__file__).with_name("chat.jinja")


def load_tokenizer(settings: ModelSettings) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer with the chat template that the run uses, and where the template is from.

    Raises:
        TrainingError: it cannot be loaded, or conversations cannot be written or tokenised by it.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.path)
    except (OSError, ValueError) as error:
        raise cannot_load("tokenizer", settings.path, error) from error
    origin = "the tokenizer's own"
    if settings.chat_template is not None:
        origin = str(settings.chat_template)
        try:
            tokenizer.chat_template = settings.chat_template.read_text(encoding="utf-8")
        except OSError as error:
            raise TrainingError(f"model.chat_template cannot be read: {error}") from error
    elif isinstance(tokenizer.chat_template, dict):
        raise TrainingError(
            f"the tokenizer of {settings.path} has several chat templates "
            f"({', '.join(tokenizer.chat_template)}). Give `model.chat_template` the file of one."
        )
    elif not tokenizer.chat_template:
        origin = "train/chat.jinja, as the tokenizer has none"
        tokenizer.chat_template = CHAT_TEMPLATE.read_text(encoding="utf-8")
    if not tokenizer.is_fast:
        raise TrainingError(
            f"the tokenizer of {settings.path} does not say where in the text a token stands "
            "(it is not a fast one), so the agent's outputs cannot be marked"
        )
    if tokenizer.eos_token is None:
        raise TrainingError(
            f"the tokenizer of {settings.path} has no end-of-sequence token, which an agent has to "
            "learn to write. Name one as `eos_token` in its tokenizer_config.json."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    describe_calls(tokenizer)
    return tokenizer, origin


def describe_calls(tokenizer: PreTrainedTokenizerBase) -> None:
    """Tell transformers' server how tool calls look, where the template is `train/chat.jinja`."""
    if tokenizer.chat_template == CHAT_TEMPLATE.read_text(encoding="utf-8"):
        tokenizer.response_template = _response_template(str(tokenizer.eos_token))


def _response_template(end: str) -> dict[str, Any]:
    """How transformers reads what a model wrote by `train/chat.jinja`.

    Arguments stay the text that the model wrote: whether it is JSON is for the caller to see. (Were
    they parsed here, transformers' server would answer a malformed call by an error of its own.)

    Args:
        end: the token that closes a message.
    """
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|assistant|>",
        "fields": {
            "tool_calls": {
                "open_pattern": (
                    r'<\|tool_call\|>\s*{"name":\s*"(?P<name>[^"]+)",\s*"arguments":\s*'
                ),
                "close_pattern": rf"}}\s*(?=<\|tool_call\|>|{re.escape(end)})",
                "repeats": True,
                "content": "text",
                "transform": {
                    "type": "function",
                    "function": {"name": "{name}", "arguments": "{content}"},
                },
            },
            "content": {"close": end, "content": "text"},
        },
    }


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Over everything that decides how a conversation becomes tokens, the template included."""
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        json.dumps(tokenizer.special_tokens_map, sort_keys=True),
    ]
    return sha256("\0".join(parts).encode()).hexdigest()


def cannot_load(what: str, path: str, error: Exception) -> TrainingError:
    """The error for a model folder, or a part of one, that transformers does not load."""
    return TrainingError(
        f"cannot load the {what} {path!r}: {error}\nGive `model.path` a folder with a model, or "
        "the name of one on the Hugging Face hub."
    )
