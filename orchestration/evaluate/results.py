"""What was measured: the append-only table `measured_results`.

The model `benchmark_results` has its rows beside the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from uuid import uuid4

import pyarrow as pa

from udfs import lake

TABLE = "measured_results"

SCHEMA = pa.schema(
    [
        ("result_id", pa.string()),
        ("benchmark", pa.string()),
        ("metric", pa.string()),
        ("model_name", pa.string()),
        ("setting", pa.string()),
        ("run_id", pa.string()),
        ("endpoint", pa.string()),
        ("value", pa.float64()),
        ("step_budget", pa.int32()),
        ("item_count", pa.int64()),
        ("overlapping_trajectories", pa.int64()),
        ("measured_at", pa.timestamp("us", tz="UTC")),
    ]
)


@dataclass(frozen=True)
class Result:
    """One number.

    Args:
        benchmark: what was measured with.
        metric: what the number is.
        model_name: the model's name at the endpoint.
        setting: how it acted: environment and style, or a category of the benchmark.
        run_id: the training run in `training_runs` that it comes from; null where nobody said.
        endpoint: where it was asked, without secrets.
        value: the number; null where it could not be measured.
        step_budget: the most replies of the model in a task; null where that is the benchmark's.
        item_count: over how many tasks; null where the benchmark does not say.
        overlapping_trajectories: how many kept trajectories were asked what the benchmark asks;
            null where nobody has looked.
    """

    benchmark: str
    metric: str
    model_name: str
    setting: str
    run_id: str | None
    endpoint: str
    value: float | None
    step_budget: int | None
    item_count: int | None
    overlapping_trajectories: int | None


def append(results: Sequence[Result]) -> None:
    """Store results in one Delta commit; nothing that was measured is ever changed.

    Raises:
        LakeError: the table in the lake has other columns.
    """
    measured_at = datetime.now(UTC)
    rows = [
        {"result_id": uuid4().hex, **asdict(result), "measured_at": measured_at}
        for result in results
    ]
    reader = pa.Table.from_pylist(rows, schema=SCHEMA).to_reader()
    lake.write(TABLE, reader, lake.WriteOptions(strategy="append"))
