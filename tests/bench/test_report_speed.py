"""How long the report of a large lake takes, and how much memory.

    REPORT_ROWS=100000 pytest -s tests/bench/test_report_speed.py

Synthetic trajectories (`_synthetic.py`), 2 KB each, with a rater's score by chance, so that the
recipe drops a third of them. dbt builds everything behind the rating; then the report runs in a
process of its own, the start of Python included.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from _synthetic import reader
from deltalake import write_deltalake
from rich.console import Console
from test_growth import measure

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace

from udfs.lake import load_delta_extension
from udfs.rater import RulesRater
from udfs.rater.verification import VERIFICATION, verify_trajectories

MODELS = ("benchmark_items", "conversations", "raters", "committee_ratings", "rated_trajectories",
          "task_keys", "curation", "marts")  # fmt: skip

# What the rater would have said: three in ten below the recipe's filter.
RATINGS = """
    select
        content_sha256 as rating_id,
        content_sha256,
        $rater_id as rater_id,
        'rules' as rater,
        'rules' as rate_model,
        '{}' as rate_parameters,
        5 - cast(hash(content_sha256) % 31 as double) / 10 * (hash(content_sha256) % 2) as rater_score,
        cast(null as varchar) as explanation,
        'ok' as status,
        cast(null as double) as cost_usd,
        cast(null as double) as shown_share,
        cast(1 as integer) as attempt,
        timestamptz '2026-01-01 00:00:00+00' as rated_at
    from (select distinct content_sha256 from trajectories)
"""  # noqa: E501


def verified(lake: Path) -> Iterator[pa.RecordBatch]:
    """What `verifications` holds, batch by batch."""
    with duckdb.connect() as connection:
        load_delta_extension(connection)
        batches = connection.sql(
            "select trajectory_id, content_sha256, tools, steps "
            f"from delta_scan('{lake}/trajectories')"
        ).to_arrow_reader(8_192)
        for batch in batches:
            found = verify_trajectories(batch["tools"], batch["steps"])
            yield pa.RecordBatch.from_arrays(
                [batch["trajectory_id"], batch["content_sha256"], *found.flatten()],
                ["trajectory_id", "content_sha256", *VERIFICATION.names],
            )


def test_report_of_a_large_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = int(os.environ.get("REPORT_ROWS") or 20_000)
    workspace = Workspace(tmp_path)
    workspace.write_recipes([RECIPE | {"drops_near_duplicates": True}], [EVERY_SOURCE])
    workspace.write_trajectories([])
    write_deltalake(workspace.lake / "trajectories", reader(rows), mode="overwrite")
    first = next(batches := verified(workspace.lake))

    def all_verified() -> Iterator[pa.RecordBatch]:
        yield first
        yield from batches

    write_deltalake(
        workspace.lake / "verifications",
        pa.RecordBatchReader.from_batches(first.schema, all_verified()),
        mode="overwrite",
    )
    with duckdb.connect(workspace.environment["TRAJLAKE_DB"]) as connection:
        load_delta_extension(connection)
        rated = connection.execute(RATINGS, {"rater_id": RulesRater().identity.rater_id})
        write_deltalake(workspace.lake / "ratings", rated.to_arrow_reader(), mode="overwrite")
        records = connection.sql("select trajectory_id as raw_record_id, source from trajectories")
        write_deltalake(workspace.lake / "raw_records", records.to_arrow_reader(), mode="overwrite")
    workspace._dbt("seed", "recipes", "recipe_sources", "recipe_quotas", ok=True)
    workspace.run(*MODELS)
    for name, value in workspace.environment.items():
        monkeypatch.setenv(name, value)
    seconds, megabytes = measure(["trajlake", "report"])
    page = workspace.exports / "default-report.html"
    Console().print(
        f"report of {rows:,} trajectories: {seconds:.1f} s, {megabytes:,} MB, "
        f"page of {page.stat().st_size / 1e6:.1f} MB"
    )
    assert page.stat().st_size < 3_000_000
