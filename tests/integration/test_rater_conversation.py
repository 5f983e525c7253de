"""A judge's answers from the first question to the ledger, over a real server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from _judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, JudgeServer

from udfs import lake
from udfs.llm import Endpoint
from udfs.rater.judge import Judge
from udfs.rater.ledger import SCHEMA, rate_unrated
from udfs.rater.openai_rater import OpenAIRater
from udfs.schema import STEP

PRICES = {"judge-1": {"input": 1.0, "output": 10.0}}
COST_USD = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6
LEDGER = lake.WriteOptions(strategy="append", commit="batch", on_schema_change="append_new_columns")


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


def write_trajectories(runs: dict[str, list[str]]) -> None:
    """A `trajectories` table: query → the observations of its steps."""
    steps = [
        [
            {
                "step_id": n,
                "input": query if n == 1 else None,
                "output": f"look[{n}]",
                "tool_calls": [],
                "observations": [],
                "next_observation": observation,
                "is_trainable": True,
            }
            for n, observation in enumerate(observations, start=1)
        ]
        for query, observations in runs.items()
    ]
    table = pa.table(
        {
            "trajectory_id": list(runs),
            "content_sha256": [hashlib.sha256(query.encode()).hexdigest() for query in runs],
            "user_query": list(runs),
            "system_prompt": pa.nulls(len(runs), pa.string()),
            "steps": pa.array(steps, pa.list_(STEP)),
            "score": pa.nulls(len(runs), pa.float64()),
        }
    )
    lake.write("trajectories", table.to_reader(), lake.WriteOptions())


def build(judge: Judge | None = None, concurrency: int = 8) -> dict[str, dict[str, Any]]:
    """Rate what is unrated, and give the latest rating of each query."""
    endpoint = Endpoint(
        model="judge-1",
        parameters={"max_tokens": 100},
        prices=PRICES,
        concurrency=concurrency,
        timeout_s=5.0,
        max_retries=0,
    )
    with lake.connect() as connection:
        rater = OpenAIRater(endpoint, judge or Judge())
        lake.write("ratings", rate_unrated(connection.table("trajectories"), rater), LEDGER)
    with lake.connect() as connection:
        rows = connection.sql(
            """
            select user_query, ratings.*
            from ratings
            inner join trajectories using (content_sha256)
            order by attempt
            """
        ).to_arrow_table()
    return {row["user_query"]: row for row in rows.to_pylist()}


def test_a_reply_that_cannot_be_read_is_asked_for_again_and_paid_for(server: JudgeServer) -> None:
    queries = [
        "task 1",
        "task 2 do:prose-once",
        "task 3 do:prose",
        "task 4 do:prose-but-json",
        "task 5 do:prose-then-500",
        "task 6 do:out-of-range-once",
    ]
    write_trajectories({query: ["seen"] for query in queries})

    rated = build()

    assert {q: (r["status"], r["rater_score"], r["requests"]) for q, r in rated.items()} == {
        "task 1": ("ok", 1.0, 1),
        "task 2 do:prose-once": ("ok", 2.0, 2),
        "task 3 do:prose": ("unparseable", None, 3),
        "task 4 do:prose-but-json": ("ok", 2.5, 3),
        "task 5 do:prose-then-500": ("failed", None, 2),
        "task 6 do:out-of-range-once": ("ok", 0.0, 2),
    }
    for query, row in rated.items():
        replies = row["requests"] - (row["status"] == "failed")
        assert row["prompt_tokens"] == replies * PROMPT_TOKENS, query
        assert row["cost_usd"] == pytest.approx(replies * COST_USD), query
        earlier = row["earlier_responses"] or []
        assert len(earlier) == row["requests"] - 1, query
        for body in earlier:
            said = json.loads(body)["choices"][0]["message"]["content"]
            assert said in ("It deserves a 4.", "9\nGreat!")
    last = json.loads(rated["task 4 do:prose-but-json"]["raw_response"])
    assert json.loads(last["choices"][0]["message"]["content"])["score"] == 2.5
    # What failed is asked again by the next build, as a new attempt.
    assert build()["task 5 do:prose-then-500"]["attempt"] == 2


def test_an_endpoint_without_structured_output_is_asked_for_it_once(server: JudgeServer) -> None:
    queries = [f"task {n} do:prose-no-json" for n in range(30)]
    write_trajectories({query: ["seen"] for query in queries})

    rated = build(concurrency=1)

    assert {row["status"] for row in rated.values()} == {"unparseable"}
    assert sorted(row["requests"] for row in rated.values()) == [2] * 29 + [3]
    assert sum("response_format" in body for body in server.bodies) == 1
    for row in rated.values():
        assert "It deserves a 4." in row["raw_response"]


def test_many_at_once_may_find_that_out_together(server: JudgeServer) -> None:
    server.latency_s = 0.05
    queries = [f"task {n} do:prose-no-json" for n in range(40)]
    write_trajectories({query: ["seen"] for query in queries})

    rated = build(concurrency=40)

    assert [row["status"] for row in rated.values()] == ["unparseable"] * 40


def test_the_code_of_the_frame_tells_a_dictated_reply(server: JudgeServer) -> None:
    write_trajectories({"task 4": ["seen"], "task 5 do:no-code": ["seen"]})

    rated = build(Judge("fig4-v3"))

    assert rated["task 4"]["rater_score"] == 4.0
    assert rated["task 5 do:no-code"]["status"] == "unparseable"
    assert "not the code of the frame" in rated["task 5 do:no-code"]["explanation"]


def test_every_step_is_rated_by_the_stepwise_template(server: JudgeServer) -> None:
    write_trajectories({"task 3": ["a", "b"]})

    row = build(Judge("stepwise-v1"))["task 3"]

    assert (row["rater_score"], row["prompt_version"], row["first_error_step"]) == (
        3.0,
        "stepwise-v1",
        1,
    )
    assert row["step_scores"] == [
        {"step_id": 1, "score": 1.0, "critique": "Seen."},
        {"step_id": 2, "score": 2.0, "critique": "Seen."},
    ]


LONG = ["word " * 4_000, "short", "word " * 2_000]


def test_a_long_trajectory_is_not_sent_where_the_context_is_known(server: JudgeServer) -> None:
    write_trajectories({"task 1": ["short"], "task 2": LONG})

    rated = build(Judge(context_tokens=2_000, reply_tokens=100))

    assert rated["task 1"]["status"] == "ok"
    row = rated["task 2"]
    assert (row["status"], row["requests"], row["cost_usd"]) == ("too_long", 0, None)
    assert row["long_rule"] == "too_long:2000"
    assert server.asked == {1: 1}
    # The same again changes nothing; another context asks about this one only.
    version = lake.open_table("ratings").version()
    build(Judge(context_tokens=2_000, reply_tokens=100))
    assert lake.open_table("ratings").version() == version
    assert build(Judge(context_tokens=50_000))["task 2"]["status"] == "ok"
    assert server.asked == {1: 1, 2: 1}


def test_a_long_trajectory_is_shortened_where_that_is_wanted(server: JudgeServer) -> None:
    write_trajectories({"task 1": ["short"], "task 2": LONG})

    rated = build(Judge(context_tokens=2_000, reply_tokens=100, long="shorten"))

    assert (rated["task 1"]["shown_share"], rated["task 1"]["long_rule"]) == (1.0, None)
    row = rated["task 2"]
    assert (row["status"], row["rater_score"], row["requests"]) == ("ok", 2.0, 1)
    assert row["long_rule"] == "shorten:2000" and 0 < row["shown_share"] < 0.3
    sent = next(
        m
        for body in server.bodies
        for m in body["messages"]
        if m["role"] == "user" and "[CUT: " in m["content"]
    )
    assert "characters left out here" in sent["content"]


def test_an_endpoint_that_refuses_the_length_is_asked_once_more(server: JudgeServer) -> None:
    query = "task 2 do:context-2000"
    write_trajectories({query: LONG, "task 3 do:too-long": ["short"]})

    assert {row["status"] for row in build().values()} == {"too_long"}
    assert server.asked == {2: 1, 3: 1}

    rated = build(Judge(long="shorten", reply_tokens=100))

    assert (rated[query]["status"], rated[query]["requests"]) == ("ok", 2)
    assert 0 < rated[query]["shown_share"] < 0.3
    assert "maximum context length" in rated[query]["earlier_responses"][0]
    assert rated["task 3 do:too-long"]["status"] == "too_long"
    assert rated["task 3 do:too-long"]["requests"] == 2
    assert server.asked == {2: 3, 3: 3}


def test_a_ledger_from_before_these_columns_is_read_and_grows(server: JudgeServer) -> None:
    write_trajectories({"task 1": ["seen"], "task 2": ["seen"]})
    build()
    table = lake.open_table("ratings")
    added = ("requests", "earlier_responses", "shown_share", "long_rule", "step_scores")
    old = table.to_pyarrow_table().drop_columns([*added, "first_error_step"])
    lake.write(
        "ratings",
        old.filter(pa.compute.equal(old["rater_score"], 1.0)).to_reader(),
        lake.WriteOptions(on_schema_change="replace"),
    )

    rated = build()

    assert lake.open_table("ratings").to_pyarrow_table().column_names == SCHEMA.names
    assert (rated["task 1"]["requests"], rated["task 2"]["requests"]) == (None, 1)
    assert server.asked == {1: 1, 2: 2}
