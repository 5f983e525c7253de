"""Exports for the training tests, in the layout that `orchestration.export` writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TOOL_CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
MESSAGE = pa.struct(
    [
        ("role", pa.string()),
        ("content", pa.string()),
        ("tool_calls", pa.list_(TOOL_CALL)),
        ("tool_call_id", pa.string()),
        ("name", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("epoch", pa.int32()),
        ("trajectory_id", pa.string()),
        ("source", pa.string()),
        ("messages", pa.list_(MESSAGE)),
        ("tools", pa.string()),
        ("loss_flags", pa.list_(pa.bool_())),
        ("weight", pa.float64()),
    ]
)

PAIR_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("pair_id", pa.string()),
        ("source", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("prompt", pa.list_(MESSAGE)),
        ("chosen", pa.list_(MESSAGE)),
        ("rejected", pa.list_(MESSAGE)),
        ("tools", pa.string()),
        ("chosen_loss_flags", pa.list_(pa.bool_())),
        ("rejected_loss_flags", pa.list_(pa.bool_())),
        ("weight", pa.float64()),
    ]
)

LOOKUP_TOOL = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "lookup",
                "description": "Look a word up.",
                "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
            },
        }
    ]
)


def react_sample(number: int, *, weight: float = 1.0) -> dict[str, Any]:
    """Thought and action as text, over two turns."""
    return {
        "trajectory_id": f"react-{number}",
        "messages": [
            {"role": "user", "content": f"Which is larger, {number} or {number + 1}?"},
            {
                "role": "assistant",
                "content": f"Thought: compare {number}.\nAction: Compare[{number}]",
            },
            {"role": "user", "content": "Observation: the second is larger."},
            {"role": "assistant", "content": f"Action: Finish[{number + 1}]"},
        ],
        "loss_flags": [False, True, False, True],
        "weight": weight,
    }


def tool_sample(number: int, *, weight: float = 1.0) -> dict[str, Any]:
    """A tool call without text, its result, and an answer; the first output is masked."""
    call = {"type": "function", "function": {"name": "lookup", "arguments": '{"word": "naïve"}'}}
    return {
        "trajectory_id": f"tool-{number}",
        "messages": [
            {"role": "system", "content": "Use the tool."},
            {"role": "user", "content": f"What does word {number} mean?"},
            {"role": "assistant", "content": "Let me see."},
            {"role": "assistant", "tool_calls": [call | {"id": "call_1"}]},
            {"role": "tool", "content": "simple", "tool_call_id": "call_1", "name": "lookup"},
            {"role": "assistant", "content": "It means simple. 素朴"},
        ],
        "tools": LOOKUP_TOOL,
        "loss_flags": [False, False, False, True, False, True],
        "weight": weight,
    }


def preference_pair(number: int) -> dict[str, Any]:
    """Two runs that have their first step in common. Then one looks on and answers; the other
    answers at once. An output of the chosen one is masked."""
    call = {"type": "function", "function": {"name": "lookup", "arguments": '{"word": "naïve"}'}}
    return {
        "pair_id": f"pair-{number}",
        "chosen_id": f"good-{number}",
        "rejected_id": f"bad-{number}",
        "prompt": [
            {"role": "system", "content": "Use the tool."},
            {"role": "user", "content": f"What does word {number} mean?"},
            {"role": "assistant", "content": "Let me see."},
            {"role": "user", "content": "Go on."},
        ],
        "chosen": [
            {"role": "assistant", "tool_calls": [call | {"id": "call_1"}]},
            {"role": "tool", "content": "simple", "tool_call_id": "call_1", "name": "lookup"},
            {"role": "assistant", "content": "One moment."},
            {"role": "user", "content": "Well?"},
            {"role": "assistant", "content": f"Word {number} means simple. 素朴"},
        ],
        "rejected": [{"role": "assistant", "content": f"Nobody knows word {number}."}],
        "tools": LOOKUP_TOOL,
        "chosen_loss_flags": [True, False, False, False, True],
        "rejected_loss_flags": [True],
    }


def write_pairs(
    folder: Path,
    train: Iterable[dict[str, Any]],
    evaluation: Iterable[dict[str, Any]] = (),
    *,
    seed: int = 42,
    rows_per_shard: int = 10,
) -> Path:
    """Write pairs, in the order given, as an export of the layout `pairs`; return `folder`."""
    return write_export(
        folder,
        train,
        evaluation,
        rows_per_shard=rows_per_shard,
        schema=PAIR_SCHEMA,
        layout="pairs",
        settings={"seed": seed},
    )


def write_export(
    folder: Path,
    train: Iterable[dict[str, Any]],
    evaluation: Iterable[dict[str, Any]] = (),
    *,
    rows_per_shard: int = 10,
    rows_per_group: int = 4,
    schema: pa.Schema = SCHEMA,
    **said: Any,
) -> Path:
    """Write samples, in the order given, as shards with a manifest; return `folder`.

    The manifest says besides what is in `said`.
    """
    shards = []
    (folder / "data").mkdir(parents=True)
    for split, samples in (("train", list(train)), ("eval", list(evaluation))):
        rows = [
            {"position": position, "epoch": 1, "source": "test", "weight": 1.0, **sample}
            for position, sample in enumerate(samples)
        ]
        parts = [rows[i : i + rows_per_shard] for i in range(0, len(rows), rows_per_shard)]
        for number, part in enumerate(parts):
            path = folder / "data" / f"{split}-{number:05d}-of-{len(parts):05d}.parquet"
            table = pa.Table.from_pylist(part, schema=schema)
            pq.write_table(table, path, row_group_size=rows_per_group)
            shards.append(
                {
                    "path": str(path.relative_to(folder)),
                    "split": split,
                    "rows": len(part),
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path.read_bytes()).hexdigest(),
                }
            )
    manifest = {"recipe": folder.name, "recipe_sha256": "0" * 64, "shards": shards} | said
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
