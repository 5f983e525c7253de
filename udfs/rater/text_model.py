"""A language model with a regression head, which reads a trajectory as text; needs torch.

The head has one output; its logistic is the label that the model expects, 0 to 1. A trajectory
that is longer than the model reads is shortened in the middle of its tokens: the task at the
beginning and the answer at the end stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from udfs.errors import RatingError
from udfs.rater.evidence import Step
from udfs.rater.local_rater import Expected

# Any change of what is read is another rater, and needs a new training: count this up.
TEXT_VERSION = "text-v1"

_MIDDLE = "\n[…]\n"
_BATCH = 16


def visible_text(steps: Sequence[Step], user_query: str | None) -> str:
    """A trajectory as the model reads it.

    Without what the environment said last, as its verdict may stand there, and without the prompt
    around the task, which tells the source and not the run.
    """
    lines = [f"Task: {user_query or (steps[0]['input'] if steps else '') or ''}"]
    for place, step in enumerate(steps, start=1):
        if place > 1 and step["input"]:
            lines.append(f"User: {step['input']}")
        if step["output"] or step["thought"]:
            lines.append(f"Agent: {step['output'] or step['thought']}")
        lines += [f"Call: {c['name']} {c['arguments']}" for c in step["tool_calls"] or []]
        if place < len(steps):
            lines += [f"Observation: {o['content'] or ''}" for o in step["observations"] or []]
    return "\n".join(lines)


def encode(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int
) -> tuple[list[int], float]:
    """Token ids, at most `max_length`, and the share of the text's tokens that is among them."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if len(ids) <= max_length:
        return ids, 1.0
    mark: list[int] = tokenizer(_MIDDLE, add_special_tokens=False)["input_ids"]
    kept = max_length - len(mark)
    head = kept // 2
    return [*ids[:head], *mark, *ids[len(ids) - (kept - head) :]], kept / len(ids)


def padded(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[Sequence[int]], rows: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Some rows as one padded batch, on the right: `input_ids` and `attention_mask`."""
    longest = max(len(ids[row]) for row in rows)
    pad = tokenizer.pad_token_id
    return {
        "input_ids": torch.tensor([[*ids[r], *[pad] * (longest - len(ids[r]))] for r in rows]),
        "attention_mask": torch.tensor(
            [[1] * len(ids[r]) + [0] * (longest - len(ids[r])) for r in rows]
        ),
    }


class TextModel:
    """A model and its tokenizer; see the module.

    Args:
        model: with one output a sequence.
        max_length: tokens that it reads of a trajectory.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.max_length = max_length

    @classmethod
    def load(cls, folder: Path | str, max_length: int) -> TextModel:
        """From a folder or, for a base model, a name on the Hugging Face hub.

        Raises:
            RatingError: there is no such model, or none that can be loaded without running code.
        """
        # That the head of a base model is new is as it should be, and no warning.
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder, num_labels=1, use_safetensors=True
            )
        except (OSError, ValueError) as error:
            raise RatingError(
                f"No text model can be loaded from {folder}: {error}. Give a folder with "
                "config.json, model.safetensors and a tokenizer, or a name on the Hugging Face hub."
            ) from error
        finally:
            logging.set_verbosity(verbosity)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        device = "cuda" if torch.cuda.is_available() else "cpu"
        return cls(model.to(device), tokenizer, max_length)

    def encoded(self, trajectories: Sequence[Mapping[str, Any]]) -> list[tuple[list[int], float]]:
        """What the model reads of each trajectory; see `encode`."""
        return [
            encode(self.tokenizer, visible_text(t["steps"] or [], t["user_query"]), self.max_length)
            for t in trajectories
        ]

    def logits(self, ids: Sequence[Sequence[int]], rows: Sequence[int]) -> torch.Tensor:
        """The head's output for some rows, shape (rows,)."""
        batch = padded(self.tokenizer, ids, rows)
        output = self.model(**{k: v.to(self.model.device) for k, v in batch.items()})
        logits: torch.Tensor = output.logits[:, 0].float()
        return logits

    def expect(self, trajectories: Sequence[Mapping[str, Any]]) -> list[Expected]:
        """See `udfs.rater.local_rater.Model`."""
        encoded = self.encoded(trajectories)
        ids = [tokens for tokens, _ in encoded]
        shares = [0.0] * len(ids)
        self.model.eval()
        with torch.inference_mode():
            for rows in _by_length(ids):
                found = torch.sigmoid(self.logits(ids, rows)).tolist()
                for row, share in zip(rows, found, strict=True):
                    shares[row] = share
        return [
            Expected(share, "", shown) for share, (_, shown) in zip(shares, encoded, strict=True)
        ]


def _by_length(ids: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Row numbers in batches of like length, so that little is padding."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    for start in range(0, len(order), _BATCH):
        yield order[start : start + _BATCH]
