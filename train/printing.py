"""A prepared row for a reader: what the model sees, and which of it carries loss."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

import numpy as np
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from orchestration.printing import harmless
from train.data import SIDES, Row

# Trained text stands between these; in a text itself they are written out.
_OPEN, _CLOSE = "⟦", "⟧"
_WRITTEN_OUT = {ord(each): f"\\u{ord(each):04x}" for each in (_OPEN, _CLOSE)}


def row_text(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Text:
    """A row, segment by segment: what carries loss in green and ⟦ ⟧, the rest dimmed.

    Trajectories are texts of strangers. Control characters are written out, nothing is markup, and
    every line of a text begins with a bar, so that none passes for a border of segments.
    """
    printed = Text.assemble(
        (f"row {row.number}", "bold"),
        f": {_count(len(row.lengths), 'segment')}, {len(row.input_ids):,} of {max_length:,} "
        f"tokens, {int(row.loss_mask.sum()):,} carry loss\n",
    )
    ends = np.cumsum(row.lengths)
    for i, (end, length) in enumerate(zip(ends, row.lengths, strict=True)):
        segment = slice(end - length, end)
        part = f", part {row.parts[i]}" if row.parts[i] else ""
        if row.pair_id is not None:
            part = f", {SIDES[i]} of {harmless(row.pair_id)}"
        printed.append(
            f"── position {row.positions[i]}, trajectory {harmless(row.trajectory_ids[i])}{part}, "
            f"weight {row.weights[i]:g}, {_count(int(length), 'token')}\n",
            style="bold",
        )
        text = Text()
        tokens = zip(row.loss_mask[segment], row.input_ids[segment], strict=True)
        for is_trained, run in groupby(tokens, key=itemgetter(0)):
            decoded = str(tokenizer.decode([token for _, token in run]))
            shown = harmless(decoded, keep="\n").translate(_WRITTEN_OUT)
            if is_trained:
                text.append(f"{_OPEN}{shown}{_CLOSE}", style="green")
            else:
                text.append(shown, style="dim")
        for line in text.split("\n", allow_blank=True):
            printed.append("│ ").append_text(line).append("\n")
    return printed


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
