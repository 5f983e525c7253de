"""Committees and refuted trajectories, as `dbt build` runs them, against a judge on loopback."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from _judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, JudgeServer

from udfs import lake
from udfs.rater import rate
from udfs.schema import STEP

COST_USD = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6


@pytest.fixture
def judge(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge, and an empty lake."""
    server = JudgeServer()
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    yield server
    server.close()


def asked(judge: JudgeServer) -> Counter[str]:
    """How often each model was asked since the last look."""
    found = Counter(body["model"] for body in judge.bodies)
    judge.bodies.clear()
    return found


def current(workplace: Path, columns: str) -> dict[str, tuple[Any, ...]]:
    """`rated_trajectories` as another process sees it: query → the columns."""
    with duckdb.connect(workplace / "trajlake.duckdb", read_only=True) as connection:
        lake.load_delta_extension(connection)
        rows = connection.sql(f"select user_query, {columns} from rated_trajectories").fetchall()
    return {row[0]: row[1:] for row in rows}


def write_chats(workplace: Path) -> None:
    """Three plain questions, and one whose answer calls a tool that is not there."""
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"id": "1", "type": "function", "function": {"name": "multiply", "arguments": "{}"}}
    answers: dict[str, list[dict[str, Any]]] = {
        query: [{"role": "assistant", "content": "It is 42."}]
        for query in ("task 4", "task 3", "task 6")
    }
    answers["task 9"] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Error: unknown tool multiply"},
        {"role": "assistant", "content": "It is 42."},
    ]
    folder = workplace / "raw" / "chats"
    folder.mkdir()
    (folder / "chats.jsonl").write_text(
        "".join(
            json.dumps({"tools": tools, "messages": [{"role": "user", "content": query}, *turns]})
            + "\n"
            for query, turns in answers.items()
        )
    )


def test_a_committee_votes_and_nobody_is_asked_twice(
    workplace: Path, run: Callable[..., Any], judge: JudgeServer
) -> None:
    write_chats(workplace)

    def build(settings: dict[str, Any]) -> None:
        given = json.dumps({"rater_parameters": {"temperature": 0}} | settings)
        run("dbt", "build", "--select", "+rated_trajectories", "--vars", given)

    # judge-1 gives 4, 3 and 0 points; one member's replies have no score.
    committee = {
        "rater_committee": [
            {"model": "judge-1"},
            {"model": "always-4.0", "judge": "kind"},
            {"model": "always-prose"},
        ],
        "rater_tie_breaker": {"model": "always-2.5", "when_spread_over": 2.0},
        "rater_skip_refuted": True,
    }
    build(committee)
    assert current(workplace, "rater_score, rating_status, rater_votes, rater_spread") == {
        "task 4": (4.0, "ok", 2, 0.0),
        "task 3": (3.5, "ok", 2, 1.0),
        "task 6": (2.5, "ok", 2, 4.0),
        "task 9": (None, "refuted", None, None),
    }
    found = current(workplace, "rate_model, rating_explanation")
    assert found["task 9"][1].startswith("verification: step 1: unknown_tool: 'multiply'")
    assert found["task 3"][0] == "mean of judge-1, kind, always-prose, always-2.5"
    said = found["task 3"][1]
    assert "judge-1: 3.0" in said and "kind: 4.0" in said and "always-prose: unparseable" in said
    questions = asked(judge)
    assert (questions["judge-1"], questions["always-4.0"], questions["always-2.5"]) == (3, 3, 1)

    build(committee)
    assert asked(judge) == {}

    # A member alone has its ratings already; what nobody was asked about is asked about now.
    build({"rater": "openai", "rater_model": "judge-1"})
    assert current(workplace, "rater_score, rater_votes") == {
        "task 4": (4.0, 1),
        "task 3": (3.0, 1),
        "task 6": (0.0, 1),
        "task 9": (3.0, 1),
    }
    assert asked(judge) == {"judge-1": 1}

    # A member that fails is asked again by a later build; without it there are too few votes.
    failing = {"rater_committee": [{"model": "judge-1"}, {"model": "always-400"}]}
    build(failing)
    assert set(current(workplace, "rater_score, rating_status, rater_votes").values()) == {
        (None, "incomplete", 1)
    }
    assert asked(judge) == {"always-400": 4}
    build(failing | {"rater_min_votes": 1})
    assert current(workplace, "rater_score, rating_status")["task 3"] == (3.0, "ok")
    assert asked(judge) == {"always-400": 4}


def write_trajectories(queries: list[str]) -> None:
    """A `trajectories` table with one short run for each query."""
    steps = [
        [{"step_id": 1, "input": query, "output": "Done.", "tool_calls": [], "observations": []}]
        for query in queries
    ]
    table = pa.table(
        {
            "trajectory_id": queries,
            "content_sha256": [hashlib.sha256(query.encode()).hexdigest() for query in queries],
            "user_query": queries,
            "system_prompt": pa.nulls(len(queries), pa.string()),
            "steps": pa.array(steps, pa.list_(STEP)),
            "score": pa.nulls(len(queries), pa.float64()),
        }
    )
    lake.write("trajectories", table.to_reader(), lake.WriteOptions())


def build(**settings: Any) -> list[tuple[Any, ...]]:
    """Rate into the lake; gives the ledger's judge, ratings and cost."""
    with lake.connect() as connection:
        rows = rate(connection.table("trajectories"), **settings)
        lake.write("ratings", rows, lake.WriteOptions(strategy="append", commit="batch"))
    with lake.connect() as connection:
        return connection.sql(
            "select judge, count(*), round(sum(cost_usd), 6) from ratings group by 1 order by 1"
        ).fetchall()


def test_samples_of_one_judge_are_raters_of_their_own(judge: JudgeServer) -> None:
    write_trajectories([f"task {n}" for n in range(7)])
    member = {"model": "judge-1", "samples": 3, "parameters": {"temperature": 1}}
    found = [(name, ratings) for name, ratings, _ in build(committee=[member])]
    assert found == [("judge-1 #1", 7), ("judge-1 #2", 7), ("judge-1 #3", 7)]
    assert asked(judge) == {"judge-1": 21}
    build(committee=[{**member, "samples": 4}])
    assert asked(judge) == {"judge-1": 7}


def test_a_budget_holds_for_the_committee_together(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is paid for is paid portion by portion: all votes on some before any on the rest."""
    monkeypatch.setattr("udfs.rater.committee._PORTION_ROWS", 4)
    write_trajectories([f"task {n}" for n in range(40)])
    settings = {
        "committee": [{"model": "judge-1"}, {"model": "judge-2"}],
        "parameters": {"temperature": 0, "max_tokens": 50},
        "prices": {name: {"input": 1.0, "output": 10.0} for name in ("judge-1", "judge-2")},
        "concurrency": 1,
    }
    found = build(max_usd=25 * COST_USD, **settings)
    cost_usd = sum(cost for _, _, cost in found)
    assert 20 * COST_USD <= cost_usd <= 25 * COST_USD
    votes = {name: ratings for name, ratings, _ in found}
    assert 0 <= votes["judge-1"] - votes["judge-2"] <= 4
    assert build(**settings) == [
        ("judge-1", 40, round(40 * COST_USD, 6)),
        ("judge-2", 40, round(40 * COST_USD, 6)),
    ]
    assert asked(judge) == {"judge-1": 40, "judge-2": 40}


def test_a_limit_of_trajectories_holds_for_all_members(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    write_trajectories([f"task {n}" for n in range(9)])
    committee = [{"model": "judge-1"}, {"model": "judge-2"}]
    found = build(committee=committee, max_trajectories=4)
    assert [(name, ratings) for name, ratings, _ in found] == [("judge-1", 4), ("judge-2", 4)]
    assert "5 trajectories stay unrated because of rater_max_trajectories" in capfd.readouterr().err
    found = build(committee=committee, max_trajectories=4)
    assert [(name, ratings) for name, ratings, _ in found] == [("judge-1", 8), ("judge-2", 8)]


def test_a_tie_breaker_is_asked_only_where_the_latest_votes_lie_apart(judge: JudgeServer) -> None:
    """A member that shortens may have voted twice on one content, by two contexts."""
    write_trajectories(["task 1", "task 2"])
    committee = [{"model": "always-4.0"}, {"model": "always-3.5"}]
    tie_breaker = {"model": "always-2.5", "when_spread_over": 2.0}
    build(committee=committee)
    ledger = lake.open_table("ratings").to_pyarrow_table()  # type: ignore[union-attr]
    one, two = sorted(
        (row for row in ledger.to_pylist() if row["judge"] == "always-3.5"),
        key=lambda row: str(row["content_sha256"]),
    )
    changed = [
        one | {"rated_at": one["rated_at"] - timedelta(days=1), "rating_id": "earlier"},
        two | {"rated_at": two["rated_at"] + timedelta(days=1), "rating_id": "later"},
    ]
    rows = pa.Table.from_pylist([row | {"rater_score": 0.0} for row in changed], ledger.schema)
    lake.write("ratings", rows.to_reader(), lake.WriteOptions(strategy="append"))
    asked(judge)

    build(committee=committee, tie_breaker=tie_breaker)

    assert asked(judge) == {"always-2.5": 1}
    with lake.connect() as connection:
        assert connection.sql(
            "select content_sha256 from ratings where judge = 'always-2.5'"
        ).fetchall() == [(two["content_sha256"],)]


def test_the_same_content_from_two_sources_is_voted_on_once(judge: JudgeServer) -> None:
    write_trajectories(["task 1", "task 2"])
    table = lake.open_table("trajectories").to_pyarrow_table()  # type: ignore[union-attr]
    copies = table.set_column(0, "trajectory_id", pa.array(["copy 1", "copy 2"]))
    lake.write("trajectories", copies.to_reader(), lake.WriteOptions(strategy="append"))
    build(committee=[{"model": "judge-1"}, {"model": "judge-2"}])
    assert asked(judge) == {"judge-1": 2, "judge-2": 2}


def test_a_member_may_be_at_another_endpoint(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_endpoint = JudgeServer()
    monkeypatch.setenv("OTHER_KEY", "any other")
    other = {"model": "b", "base_url": other_endpoint.base_url, "key_variable": "OTHER_KEY"}
    write_trajectories(["task 1"])
    build(committee=[{"model": "a"}, other])
    assert (asked(judge), asked(other_endpoint)) == ({"a": 1}, {"b": 1})
    other_endpoint.close()
