"""What is read of tables and runs, from real Delta tables and files."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from orchestration.assets import facts
from orchestration.assets.facts import Rated, TableState
from udfs import lake
from udfs.lake import WriteOptions

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def empty_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("TRAJLAKE_DB", str(tmp_path / "none.duckdb"))


def append(name: str, *rows: dict[str, object]) -> None:
    table = pa.Table.from_pylist(list(rows))
    lake.write(name, table.to_reader(), WriteOptions(strategy="append"))


def rating(content: str, *, minutes: int, cost: float | None = 0.5, status: str = "ok") -> dict:
    return {
        "rater": "openai",
        "rate_model": "judge-1",
        "content_sha256": content,
        "status": status,
        "cost_usd": cost,
        "rated_at": NOW + timedelta(minutes=minutes),
    }


def test_a_table_has_rows_and_a_version() -> None:
    append("t", {"a": 1}, {"a": 2})
    append("t", {"a": 3})
    lake.write("empty", pa.table({"a": pa.array([], pa.int64())}).to_reader(), WriteOptions())

    assert facts.table_states() == {"t": TableState(1, 3), "empty": TableState(0, 0)}
    assert facts.table_state("none") is None


def test_a_lake_that_is_not_built_has_nothing_to_say() -> None:
    assert facts.table_states() == {}
    assert facts.rated_since(NOW) == []
    assert facts.funnel("default") == []
    assert facts.view_rows("steps") is None


def test_ratings_are_summed_up_from_a_moment_on() -> None:
    append("ratings", rating("a", minutes=-1), rating("b", minutes=0), rating("b", minutes=1))
    append("ratings", rating("c", minutes=2, status="failed"))

    assert facts.rated_since(NOW) == [
        Rated("openai", "judge-1", 3, 2, {"ok": 2, "failed": 1}, 1.5),
    ]


def test_the_funnel_is_that_of_the_recipe() -> None:
    counts = {"raw_records": 5, "trajectories": 4, "rated": 3, "kept": 2, "train_positions": 6}
    append("funnel", {"recipe": "it's", "source": "desk", **counts})
    append("funnel", {"recipe": "other", "source": "shop", **counts})

    assert facts.funnel("it's") == [{"source": "desk", **counts}]


def test_losses_are_those_of_the_metrics(tmp_path: Path) -> None:
    lines = [{"step": 1, "loss": 9.0, "rows": 2}, {"step": 2, "loss": 8.5, "rows": 2}]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))

    assert facts.losses(tmp_path) == [(1, 9.0), (2, 8.5)]
