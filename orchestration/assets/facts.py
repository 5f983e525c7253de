"""What there is to say of a table, a rating, an export or a run, read from the lake and its files.

Table states come from Delta's logs alone: no row is read, so a look costs the same at any size.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from udfs import lake
from udfs.errors import LakeError
from udfs.lake import sql_text
from udfs.views import open_lake

# A view is counted if that takes no longer.
_MOST_SECONDS = 2.0


@dataclass(frozen=True)
class TableState:
    """A Delta table: its newest version, and the rows it has there."""

    version: int
    rows: int


@dataclass(frozen=True)
class Rated:
    """What one rater has done since a moment. `cost_usd` is null where nothing has a price."""

    rater: str
    rate_model: str
    ratings: int
    contents: int
    statuses: Mapping[str, int]
    cost_usd: float | None


def table_state(name: str) -> TableState | None:
    """A table's state, None where there is none."""
    table = lake.open_table(name)
    if table is None:
        return None
    files = pa.table(table.get_add_actions(flatten=True))
    rows = pc.sum(files["num_records"]).as_py() if files.num_rows else 0
    return TableState(table.version(), int(rows or 0))


def table_states() -> dict[str, TableState]:
    """The states of all tables of the lake."""
    found = {name: table_state(name) for name in lake.table_names()}
    return {name: state for name, state in found.items() if state}


def view_rows(name: str) -> int | None:
    """How many rows a view or seed has; None where counting takes too long, or it is not there."""
    with _open() as connection:
        if connection is None:
            return None
        timer = threading.Timer(_MOST_SECONDS, connection.interrupt)
        timer.start()
        try:
            (count,) = connection.execute(f'select count(*) from "{name}"').fetchall()[0]
        except duckdb.Error:
            return None
        finally:
            timer.cancel()
        return int(count)


def rated_since(moment: datetime) -> list[Rated]:
    """What each rater has done since then, from the ledger."""
    return [
        Rated(*row)
        for row in _rows(
            "ratings",
            f"""
            select
                rater,
                rate_model,
                count(*),
                count(distinct content_sha256),
                histogram(status),
                sum(cost_usd)
            from ratings
            where rated_at >= {sql_text(moment.isoformat())}::timestamptz
            group by all
            order by all
            """,
        )
    ]


def funnel(recipe: str) -> list[dict[str, Any]]:
    """The funnel of a recipe, source by source: `source`, `raw_records`, `trajectories`, `rated`,
    `kept`, `train_positions`."""
    columns = ("source", "raw_records", "trajectories", "rated", "kept", "train_positions")
    rows = _rows(
        "funnel",
        f"select {', '.join(columns)} from funnel where recipe = {sql_text(recipe)} "
        "order by source",
    )
    return [dict(zip(columns, row, strict=True)) for row in rows]


def file_sha256(file: Path) -> str:
    """The hash of a small file."""
    return sha256(file.read_bytes()).hexdigest()


def run_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a training run."""
    found: dict[str, Any] = json.loads((run / "manifest.json").read_bytes())
    return found


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a training run."""
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [(each["step"], each["loss"]) for each in map(json.loads, lines)]


def _rows(table: str, query: str) -> list[tuple[Any, ...]]:
    """A query's rows; none where the lake does not have its table yet."""
    if lake.open_table(table) is None:
        return []
    with lake.in_memory() as connection:
        connection.execute("set timezone = 'UTC'")
        connection.execute(f"create temp view {table} as select * from {lake.table_scan(table)}")
        return connection.execute(query).fetchall()


@contextmanager
def _open() -> Iterator[duckdb.DuckDBPyConnection | None]:
    try:
        connection = open_lake(report=lambda line: None)
    except LakeError:
        yield None
        return
    with connection:
        yield connection
