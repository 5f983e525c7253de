"""A million trajectories through curation, plan and export: all, then 1% more, then nothing new.

    make bench
    ROWS=100000 pytest -s tests/bench/test_million.py

The trajectories of `_synthetic` and a score for each lie in the lake to begin with, as landing,
standardizer and rater leave them there (`test_growth` measures these). Everything after them is
built by `dbt build` with all its tests, then exported. The peak is the sum over all processes.
Beside it, in the same run: `json.loads` + `json.dumps` of the exported conversations in one Python
process.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from _curation_fixtures import RATING, RECORD
from _synthetic import benchmark_questions, reader, trajectories
from deltalake import WriterProperties, write_deltalake
from rich.console import Console
from rich.table import Table
from test_growth import LOADS_AND_DUMPS, PROJECT, measure

from udfs import lake
from udfs.rater import RulesRater, calibration

ROWS = int(os.environ.get("ROWS", "1000000"))


MODELS = (
    *("recipes", "recipe_sources", "recipe_quotas", "benchmark_items", "conversations"),
    *("verifications", "raters", "committee_ratings", "rated_trajectories", "task_keys"),
    *("models/curation", "models/marts"),
)
WRITER = WriterProperties(compression="ZSTD", max_row_group_size=65_536)


def rated(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A rating for each trajectory: 1.25 to 5, four in five of them 4 or more."""
    rows = batch.num_rows
    scores = pc.if_else(
        pc.less(batch["score"], 0.2), pc.add(pc.multiply(batch["score"], 10), 1.25), 4.5
    )
    columns = {
        "rating_id": batch["content_sha256"],
        "content_sha256": batch["content_sha256"],
        "rater_id": pa.repeat(RulesRater().identity.rater_id, rows),
        "rater": pa.repeat("rules", rows),
        "rate_model": pa.repeat("rules", rows),
        "rate_parameters": pa.repeat("{}", rows),
        "rater_score": scores,
        "status": pa.repeat("ok", rows),
        "attempt": pa.repeat(pa.scalar(1, pa.int32()), rows),
        "rated_at": batch["ingested_at"],
    }
    return pa.RecordBatch.from_arrays(
        [columns.get(f.name, pa.nulls(rows, f.type)).cast(f.type) for f in RATING], schema=RATING
    )


def put(folder: Path, rows: int, start: int) -> None:
    """Add trajectories `start` to `start + rows - 1`, with their records and ratings."""
    streams = {
        "trajectories": reader(rows, start=start),
        "ratings": pa.RecordBatchReader.from_batches(
            RATING, (rated(batch) for batch in trajectories(rows, start=start))
        ),
        "raw_records": pa.RecordBatchReader.from_batches(
            RECORD, (batch.select(RECORD.names) for batch in trajectories(rows, start=start))
        ),
        "rating_calibrations": calibration.SCHEMA.empty_table().to_reader(),
        "quarantine": RECORD.empty_table().to_reader(),
    }
    for name, stream in streams.items():
        write_deltalake(folder / name, stream, mode="append", writer_properties=WRITER)


def floors(target: Path) -> dict[str, float]:
    """Seconds of each floor of the last build: models by folder, and all tests."""
    results = json.loads((target / "run_results.json").read_text())["results"]
    nodes = json.loads((target / "manifest.json").read_text())["nodes"]
    seconds: dict[str, float] = defaultdict(float)
    for result in results:
        node = nodes.get(result["unique_id"])
        is_model = node is not None and node["resource_type"] == "model"
        floor = Path(node["original_file_path"]).parts[1] if is_model and node else "tests, seeds"
        seconds[floor] += result["execution_time"]
    return seconds


def slowest(target: Path, most: int = 12) -> str:
    results = json.loads((target / "run_results.json").read_text())["results"]
    times = sorted((r["execution_time"], r["unique_id"].split(".")[2]) for r in results)[-most:]
    return ", ".join(f"{name} {seconds:.1f}" for seconds, name in reversed(times))


def test_a_million_trajectories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, benchmarks = (tmp_path / name for name in ("target", "benchmarks"))
    for name, place in {
        "TRAJLAKE_LAKE": tmp_path / "lake",
        "TRAJLAKE_EXPORTS": tmp_path / "exports",
        "TRAJLAKE_DB": tmp_path / "trajlake.duckdb",
        "TRAJLAKE_BENCHMARKS": benchmarks,
        "DBT_TARGET_PATH": target,
        "DBT_LOG_PATH": tmp_path / "logs",
    }.items():
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(PROJECT)
    benchmarks.mkdir()
    (benchmarks / "questions.jsonl").write_text(
        "".join(json.dumps({"question": question}) + "\n" for question in benchmark_questions())
    )
    put(tmp_path / "lake", ROWS, 0)
    with duckdb.connect(str(tmp_path / "trajlake.duckdb")) as connection:
        lake.load_delta_extension(connection)
        for name in lake.table_names():
            path = lake.sql_text(lake.table_path(name))
            connection.execute(f"create view {name} as select * from delta_scan({path})")
    size = sum(file.stat().st_size for file in (tmp_path / "lake" / "trajectories").rglob("*"))
    console = Console(width=130)
    table = Table(
        title=f"{ROWS:,} trajectories, {size / 1e6:,.0f} MB as a Delta table", title_justify="left"
    )
    names = ("core", "rating", "curation", "marts", "tests, seeds")
    for column in ("", "seconds", "peak MB", *names):
        table.add_column(column, justify="right")

    def build(name: str) -> float:
        seconds, peak = measure(["dbt", "build", "--quiet", "--select", *MODELS])
        by_floor = floors(target)
        table.add_row(
            name, f"{seconds:.1f}", f"{peak:,.0f}", *(f"{by_floor[each]:.1f}" for each in names)
        )
        console.print(f"{name}: {seconds:.1f} s, {peak:,.0f} MB. {slowest(target)}")
        return seconds

    def export(name: str) -> None:
        seconds, peak = measure(["trajlake", "export", "default"])
        table.add_row(name, f"{seconds:.1f}", f"{peak:,.0f}")

    full = build("everything")
    export("export")
    put(tmp_path / "lake", ROWS // 100, ROWS)
    more = build("1% new")
    export("export of it")
    nothing = build("nothing new")
    lines = tmp_path / "all.jsonl"
    with lake.connect() as connection:
        connection.execute(
            f"copy (select messages, tools from conversations) to {lake.sql_text(str(lines))} "
            "(format json)"
        )
    seconds, peak = measure(
        [sys.executable, "-c", LOADS_AND_DUMPS, str(lines), str(tmp_path / "out")]
    )
    table.add_row("peer: loads + dumps", f"{seconds:.1f}", f"{peak:,.0f}")
    console.print(table)
    console.print(
        f"1% new takes {more / full:.1%} of everything, nothing new {nothing:.1f} s; everything "
        f"{full / seconds:.1f} times loads + dumps"
    )
