"""What a run saw, step by step: kept in its folder, and told to the lake.

    python -m train.lineage runs/<run>

A run does this itself at each checkpoint where there is a lake; the command is for a run
that was trained elsewhere. Doing it again adds nothing.

The lake has one row per run in `training_runs` and one per (step, segment) in `training_lineage`:
which samples a step saw, on which rank, and what they weighed in its loss. Which raw lines these
were, and how the loss went by source, are views over them (models/training).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from train.data import Share
from train.run import RunFolder
from udfs import lake
from udfs.errors import TrainingError, TrajlakeError
from udfs.settings import lake_root
from udfs.training_tables import LINEAGE, RUN_SCHEMA, RUNS, SEGMENT_SCHEMA

# A lake that was built before a column was thought of gets it.
_LINEAGE_OPTIONS = lake.WriteOptions(strategy="append", on_schema_change="append_new_columns")
_RUN_OPTIONS = lake.WriteOptions(
    strategy="upsert", unique_key=("run_id",), on_schema_change="append_new_columns"
)


class Seen:
    """What one rank saw since it was last asked; losses stay on their device until then."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._steps: list[tuple[int, pa.RecordBatch, Tensor]] = []

    def add(self, share: Share, segment_nll: Tensor) -> None:
        """One step: the rank's share, and Σ(w·nll) of its batches' segments."""
        self._steps.append((share.step, share.segments, segment_nll))  # and none of its tokens

    def take(self) -> pa.Table:
        """Everything since the last time, in `SEGMENT_SCHEMA`."""
        tables = [SEGMENT_SCHEMA.empty_table()]
        for step, segments, losses in self._steps:
            # Blank rows come last, and are nobody's.
            nll = losses[: segments.num_rows].double().cpu().numpy()
            columns = {name: pa.nulls(segments.num_rows) for name in SEGMENT_SCHEMA.names} | {
                "step": pa.repeat(pa.scalar(step, pa.int64()), segments.num_rows),
                "rank": pa.repeat(pa.scalar(self._rank, pa.int32()), segments.num_rows),
                **{name: segments.column(name) for name in segments.schema.names},
                "nll": pa.array(nll),
            }
            tables.append(pa.table(columns, schema=SEGMENT_SCHEMA))
        self._steps = []
        return pa.concat_tables(tables)


def save(run: RunFolder, tables: Iterable[pa.Table]) -> None:
    """Write what all ranks saw since the last time, in order, to the run's folder."""
    seen = pa.concat_tables(tables).sort_by(
        [("step", "ascending"), ("row", "ascending"), ("segment", "ascending")]
    )
    if seen.num_rows:
        first, last = seen["step"][0].as_py(), seen["step"][-1].as_py()
        run.write_lineage(first, last, seen)


def tell_lake(run: RunFolder) -> bool:
    """Bring the lake to what the run's folder says; whether there is a lake.

    Steps that the lake has already are left as they are, so a run is told as often as one likes.

    Raises:
        TrainingError: there is no run in the folder.
        LakeError: the tables have other columns, or are another lake's.
    """
    manifest = run.read_manifest()
    if not lake.table_names():
        return False
    row = pa.Table.from_pylist([_run_row(manifest)], RUN_SCHEMA)
    lake.write(RUNS, row.to_reader(), _RUN_OPTIONS)
    run_id = manifest["run_id"]
    known = _last_step(run_id)
    files = [file for first, last, file in run.lineage() if last > known]
    if files:
        seen = pa.concat_tables([pq.read_table(file, schema=SEGMENT_SCHEMA) for file in files])
        new = seen.filter(pc.greater(seen["step"], known))
        named = new.add_column(0, "run_id", pa.repeat(run_id, new.num_rows))
        lake.write(LINEAGE, named.to_reader(), _LINEAGE_OPTIONS)
    return True


def _run_row(manifest: dict[str, Any]) -> dict[str, Any]:
    settings, exported = manifest["settings"], manifest["export"]
    return {
        "run_id": manifest["run_id"],
        "run": manifest["run"],
        "method": settings["method"],
        "recipe": exported["recipe"],
        "status": manifest["status"],
        "step": manifest.get("step", 0),
        "total_steps": manifest["order"]["total_steps"],
        "base_model": settings["model"]["path"],
        **{
            name: manifest["identity"][name]
            for name in ("base_model_sha256", "tokenizer_sha256", "prepared_key")
        },
        "export_manifest_sha256": exported["manifest_sha256"],
        "table_versions": json.dumps(exported["manifest"].get("tables"), sort_keys=True),
        "settings": json.dumps(settings, sort_keys=True),
        "trained_tokens": manifest.get("totals", {}).get("trained_tokens", 0),
        "eval_loss": (manifest.get("eval") or {}).get("loss"),
        "started_at": datetime.fromisoformat(manifest["sessions"][0]["started_at"]),
        "written_at": datetime.fromisoformat(manifest["written_at"]),
        "objective": settings.get("objective", "sft"),
    }


def _last_step(run_id: str) -> int:
    """The last step of a run that the lake has; 0 for none."""
    if lake.open_table(LINEAGE) is None:
        return 0
    with lake.in_memory() as connection:
        query = f"select max(step) from {lake.table_scan(LINEAGE)} where run_id = ?"
        (found,) = connection.execute(query, [run_id]).fetchall()[0]
    return int(found or 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="train.lineage", description="Tell the lake what a training run saw."
    )
    parser.add_argument("run", type=Path, help="a run's folder")
    folder = parser.parse_args(arguments).run
    try:
        if not tell_lake(RunFolder(folder)):
            raise TrainingError(
                f"there is no lake at {lake_root()}. Build one with `dbt build`, or let "
                "TRAJLAKE_LAKE point to it."
            )
    except TrajlakeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder} is in {RUNS} and {LINEAGE} up to its last checkpoint")
    return 0


if __name__ == "__main__":
    sys.exit(main())
