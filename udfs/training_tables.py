"""The tables that training runs write themselves into (`train.lineage`), without torch.

A build makes them where they are missing; the YAML beside the models says what their columns are.
"""

from __future__ import annotations

import pyarrow as pa

RUNS = "training_runs"
LINEAGE = "training_lineage"

RUN_SCHEMA = pa.schema(
    [
        ("run_id", pa.string()),
        ("run", pa.string()),
        ("method", pa.string()),
        ("recipe", pa.string()),
        ("status", pa.string()),
        ("step", pa.int64()),
        ("total_steps", pa.int64()),
        ("base_model", pa.string()),
        ("base_model_sha256", pa.string()),
        ("tokenizer_sha256", pa.string()),
        ("prepared_key", pa.string()),
        ("export_manifest_sha256", pa.string()),
        ("table_versions", pa.string()),
        ("settings", pa.string()),
        ("trained_tokens", pa.int64()),
        ("eval_loss", pa.float64()),
        ("started_at", pa.timestamp("us", tz="UTC")),
        ("written_at", pa.timestamp("us", tz="UTC")),
        ("objective", pa.string()),
    ]
)

# What one step saw of a sample, of a part of one or of a side of a pair: a segment of a row.
SEGMENT_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("rank", pa.int32()),
        ("row", pa.int64()),
        ("segment", pa.int32()),
        ("position", pa.int64()),
        ("part", pa.int32()),
        ("trajectory_id", pa.string()),
        ("trained_tokens", pa.int64()),
        ("weight", pa.float64()),
        ("nll", pa.float64()),
        ("pair_id", pa.string()),
        ("side", pa.string()),
        ("reference_nll", pa.float64()),
        ("pair_weight", pa.float64()),
    ]
)

LINEAGE_SCHEMA = pa.schema([("run_id", pa.string()), *SEGMENT_SCHEMA])
