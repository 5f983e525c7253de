"""Comparing runs at one task, over a real server, into a real lake."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from _judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, JudgeServer

from udfs import lake
from udfs.llm import journal_path
from udfs.rater.pairwise import compare
from udfs.schema import STEP

PRICES = {"judge-1": {"input": 1.0, "output": 10.0}}
COST_USD = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge, and an empty lake."""
    judge = JudgeServer()
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("TRAJLAKE_DB", str(tmp_path / "trajlake.duckdb"))
    monkeypatch.setenv("OPENAI_BASE_URL", judge.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    yield judge
    judge.close()


def write_trajectories(tasks: dict[str, str]) -> None:
    """Runs of one step: what the run says → the key of its task."""
    steps = [
        [
            {
                "step_id": 1,
                "input": said,
                "output": "Done.",
                "tool_calls": [],
                "observations": [],
                "is_trainable": True,
            }
        ]
        for said in tasks
    ]
    table = pa.table(
        {
            "trajectory_id": list(tasks),
            "content_sha256": [hashlib.sha256(said.encode()).hexdigest() for said in tasks],
            "system_prompt": pa.nulls(len(tasks), pa.string()),
            "steps": pa.array(steps, pa.list_(STEP)),
        }
    )
    lake.write("trajectories", table.to_reader(), lake.WriteOptions())
    keys = pa.table({"trajectory_id": list(tasks), "task_key": list(tasks.values())})
    lake.write("task_keys", keys.to_reader(), lake.WriteOptions())


def build(max_pairs: int = 100, **settings: Any) -> dict[frozenset[str], dict[str, Any]]:
    """Compare, and give the latest comparison of each pair."""
    given = {"model": "judge-1", "parameters": {"max_tokens": 100}, "prices": PRICES}
    with lake.connect() as connection:
        rows = compare(
            connection.table("trajectories"),
            connection.table("task_keys"),
            max_pairs=max_pairs,
            max_retries=0,
            timeout_s=5.0,
            **given | settings,
        )
        lake.write("pairwise_ratings", rows, lake.WriteOptions(strategy="append", commit="batch"))
    if lake.open_table("pairwise_ratings") is None:
        return {}
    with lake.connect() as connection:
        found = connection.sql(
            """
            select pairs.*, a.trajectory_id as a, b.trajectory_id as b,
            from pairwise_ratings as pairs
            inner join trajectories as a on a.content_sha256 = content_sha256_a
            inner join trajectories as b on b.content_sha256 = content_sha256_b
            order by attempt
            """
        ).to_arrow_table()
    return {frozenset((row["a"], row["b"])): row for row in found.to_pylist()}


def test_a_pair_is_asked_about_in_both_orders(server: JudgeServer) -> None:
    write_trajectories({"task 1": "one", "task 5": "one", "task 11": "two", "task 17": "two"})

    rows = build()

    assert set(rows) == {frozenset(("task 1", "task 5")), frozenset(("task 11", "task 17"))}
    row = rows[frozenset(("task 1", "task 5"))]
    assert row[row["preferred"]] == "task 5"
    assert row["preferred"] == row["preferred_a_first"] == row["preferred_b_first"]
    assert (row["status"], row["requests"], row["prompt_version"]) == ("ok", 2, "pairwise-v1")
    assert row["cost_usd"] == pytest.approx(2 * COST_USD)
    assert len(row["raw_responses"]) == 2
    assert row["content_sha256_a"] < row["content_sha256_b"]
    assert rows[frozenset(("task 11", "task 17"))]["preferred"] == "tie"
    orders = {tuple(re.findall(r"task (\d+)", str(body["messages"]))) for body in server.bodies}
    assert orders == {("1", "5"), ("5", "1"), ("11", "17"), ("17", "11")}
    version = lake.open_table("pairwise_ratings").version()
    build()
    assert lake.open_table("pairwise_ratings").version() == version
    assert len(server.bodies) == 4 and journal_path("pairwise_ratings").read_bytes() == b""


def test_a_judge_that_prefers_a_place_has_no_preference(server: JudgeServer) -> None:
    write_trajectories({"task 1 do:first": "one", "task 5 do:first": "one"})

    (row,) = build().values()

    assert (row["preferred_a_first"], row["preferred_b_first"]) == ("a", "b")
    assert row["preferred"] == "tie"


def test_the_runs_of_a_task_are_compared_in_a_ring(server: JudgeServer) -> None:
    write_trajectories({f"task {n}": "one" for n in range(6)} | {"task 100": "alone"})

    rows = build(max_pairs=4)
    assert len(rows) == 4
    rows = build()

    assert len(rows) == 6 and len(server.bodies) == 12
    beside = [run for pair in rows for run in pair]
    assert {run: beside.count(run) for run in beside} == {f"task {n}": 2 for n in range(6)}


def test_without_an_answer_the_other_order_is_not_paid_for(server: JudgeServer) -> None:
    write_trajectories(
        {
            "task 1 do:prose": "one",
            "task 2 do:prose": "one",
            "task 3 do:500": "two",
            "task 4 do:500": "two",
        }
    )

    rows = build()

    unread = rows[frozenset(("task 1 do:prose", "task 2 do:prose"))]
    assert (unread["status"], unread["preferred"], unread["requests"]) == ("unparseable", None, 3)
    assert unread["cost_usd"] == pytest.approx(3 * COST_USD)
    assert unread["explanation_b_first"] is None
    failed = rows[frozenset(("task 3 do:500", "task 4 do:500"))]
    assert (failed["status"], failed["attempt"]) == ("failed", 1)
    assert build()[frozenset(("task 3 do:500", "task 4 do:500"))]["attempt"] == 2


def test_one_content_is_not_compared_with_itself(server: JudgeServer) -> None:
    write_trajectories({"task 1": "one"})
    assert build() == {}
    assert not server.bodies
