"""The openai rater: the real client against a real server on loopback, into a real lake."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from _judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, JudgeServer

from udfs import lake
from udfs.errors import ConfigError
from udfs.llm import Budget, Endpoint, Journal, asking, batch, journal_path
from udfs.rater import rate
from udfs.rater.judge import Judge
from udfs.rater.ledger import SCHEMA, rate_unrated
from udfs.rater.openai_rater import OpenAIRater
from udfs.rater.prompt import DEFAULT_TEMPLATE
from udfs.schema import STEP

KEY = "sk-loopback-0123456789abcdef"
PARAMETERS = {"temperature": 0, "max_tokens": 100}
PRICES = {"judge-1": {"input": 1.0, "output": 10.0}}
COST_USD = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6

LEDGER = lake.WriteOptions(strategy="append", commit="batch")


@pytest.fixture
def judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    """A judge, and an empty lake."""
    server = JudgeServer()
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("TRAJLAKE_DB", str(tmp_path / "trajlake.duckdb"))
    monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield server
    server.close()


def write_trajectories(queries: list[str]) -> None:
    """A `trajectories` table with one short run for each query."""
    sha256 = [hashlib.sha256(query.encode()).hexdigest() for query in queries]
    steps = [
        [
            {
                "step_id": 1,
                "input": query,
                "output": "Done.",
                "tool_calls": [],
                "observations": [],
                "is_trainable": True,
            }
        ]
        for query in queries
    ]
    table = pa.table(
        {
            "trajectory_id": [f"{i:06}" for i in range(len(queries))],
            "content_sha256": sha256,
            "user_query": queries,
            "system_prompt": pa.nulls(len(queries), pa.string()),
            "steps": pa.array(steps, pa.list_(STEP)),
            "score": pa.nulls(len(queries), pa.float64()),
        }
    )
    lake.write("trajectories", table.to_reader(), lake.WriteOptions())


def a_judge(**settings: Any) -> OpenAIRater:
    given: dict[str, Any] = {
        "model": "judge-1",
        "parameters": PARAMETERS,
        "prices": PRICES,
        "timeout_s": 1.0,
        "max_retries": 1,
        "concurrency": 8,
    }
    return OpenAIRater(Endpoint(**given | settings), Judge())


def journaled() -> list[dict[str, Any]]:
    """What the journal has."""
    with Journal("ratings", SCHEMA, "rating_id") as journal:
        return list(journal.rows())


def build(rater: OpenAIRater | None = None, max_trajectories: int | None = None) -> None:
    """Rate what is unrated, into the lake."""
    with lake.connect() as connection:
        trajectories = connection.table("trajectories")
        rows = rate_unrated(trajectories, rater or a_judge(), max_trajectories)
        lake.write("ratings", rows, LEDGER)


def ratings() -> dict[str, list[dict[str, Any]]]:
    """The ledger: query → its ratings, the first attempt first."""
    with lake.connect() as connection:
        rows = connection.sql(
            """
            select user_query, ratings.*
            from ratings
            inner join trajectories using (content_sha256)
            order by attempt
            """
        ).to_arrow_table()
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.to_pylist():
        found.setdefault(row["user_query"], []).append(row)
    return found


def statuses() -> dict[str, list[str]]:
    return {query: [row["status"] for row in rows] for query, rows in ratings().items()}


def test_every_trajectory_gets_the_judges_score_and_its_cost_once(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    write_trajectories([f"task {i}" for i in range(30)])

    build()

    rows = [row for (row,) in ratings().values()]
    assert len(rows) == 30
    assert {row["user_query"]: row["rater_score"] for row in rows} == {
        f"task {i}": float(i % 6) for i in range(30)
    }
    for row in rows:
        number = row["user_query"].split()[1]
        assert row["status"] == "ok"
        assert row["explanation"] == f"Task {number} was done so."
        assert json.loads(row["raw_response"])["model"] == "judge-1"
        assert (row["prompt_tokens"], row["completion_tokens"]) == (700, 50)
        assert row["cost_usd"] == pytest.approx(COST_USD)
        assert (row["rater"], row["rate_model"], row["prompt_version"], row["attempt"]) == (
            "openai",
            "judge-1",
            DEFAULT_TEMPLATE,
            1,
        )
        assert json.loads(row["rate_parameters"]) == PARAMETERS
    assert {key: judge.bodies[0][key] for key in ("model", *PARAMETERS)} == {
        "model": "judge-1",
        **PARAMETERS,
    }
    said = capfd.readouterr().err
    assert "30 trajectories for judge-1" in said and "prompt tokens (characters / 4)" in said
    assert f"30 of 30 asked ${30 * COST_USD:.4f}" in said

    version = lake.open_table("ratings").version()
    build()
    assert lake.open_table("ratings").version() == version
    assert set(judge.asked.values()) == {1}


# What a judge can do to a question → the status that it ends in, and how often it was asked in a
# first and in a second build with one retry.
FAULTS = {
    "out-of-range": ("out_of_range", 3, 3),
    "prose": ("unparseable", 3, 3),
    "cut-short": ("unparseable", 1, 1),
    "empty": ("refused", 1, 1),
    "refusal": ("refused", 1, 1),
    "filtered": ("refused", 1, 1),
    "too-long": ("too_long", 1, 1),
    "500-once": ("ok", 2, 2),
    "cut-once": ("ok", 2, 2),
    "hang-once": ("ok", 2, 2),
    "408-once": ("ok", 2, 2),
    "429-once": ("ok", 2, 2),
    "500": ("failed", 2, 4),
    "408": ("failed", 2, 4),
    "429": ("failed", 2, 4),
    "cut": ("failed", 2, 4),
    "hang": ("failed", 2, 4),
    "400": ("failed", 1, 2),
    "no-json": ("failed", 1, 2),
    "no-choices": ("failed", 1, 2),
}


def test_every_fault_ends_in_its_status_and_only_failures_are_asked_again(
    judge: JudgeServer,
) -> None:
    queries = {do: f"task {i} do:{do}" for i, do in enumerate(FAULTS)}
    write_trajectories([*queries.values(), "task 100"])
    rater = a_judge(timeout_s=0.5, concurrency=20)

    build(rater)
    first = dict(judge.asked)
    assert statuses() == {queries[do]: [end] for do, (end, *_) in FAULTS.items()} | {
        "task 100": ["ok"]
    }
    build(rater)

    after = ratings()
    for i, (do, (end, asked, asked_in_all)) in enumerate(FAULTS.items()):
        rows = after[queries[do]]
        assert (first[i], judge.asked[i]) == (asked, asked_in_all), do
        assert [row["attempt"] for row in rows] == ([1, 2] if end == "failed" else [1]), do
        for row in rows:
            assert (row["rater_score"] is not None) == (row["status"] == "ok"), do
            assert row["explanation"], do
    assert "InternalServerError" in after[queries["500"]][0]["explanation"]
    assert "APITimeoutError" in after[queries["hang"]][0]["explanation"]
    assert "Bad gateway" in after[queries["no-json"]][0]["raw_response"]
    assert judge.asked[100] == 1


def test_retry_after_is_honoured(judge: JudgeServer) -> None:
    write_trajectories(["task 4 do:429-once"])
    started = time.monotonic()

    build()

    assert time.monotonic() - started >= 1.0
    assert statuses() == {"task 4 do:429-once": ["ok"]}
    assert judge.asked[4] == 2


def test_a_refused_key_stops_the_run_at_once_and_keeps_what_was_answered(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    judge.latency_s = 0.05
    write_trajectories([f"task {i}" for i in range(4)] + [f"task {i} do:401" for i in range(9, 99)])

    with pytest.raises(Exception, match=r"refuses the key\. Set OPENAI_API_KEY") as caught:
        build(a_judge(concurrency=8))

    assert sum(judge.asked.values()) <= 2 * 8
    assert KEY not in str(caught.value) and KEY not in capfd.readouterr().err
    assert KEY not in journal_path("ratings").read_text()
    answered = {i for i in range(4) if judge.asked[i]}
    assert len(journaled()) == len(answered)


@pytest.mark.parametrize(
    ("fault", "remedy"),
    [("unsupported", "Change the var rater_parameters"), ("no-quota", "Raise it, or use another")],
)
def test_an_error_that_holds_for_every_question_stops_the_run(
    judge: JudgeServer, fault: str, remedy: str
) -> None:
    write_trajectories([f"task {i} do:{fault}" for i in range(50)])

    with pytest.raises(Exception, match=remedy):
        build()
    assert sum(judge.asked.values()) <= 8
    assert set(judge.asked.values()) == {1}


def test_an_endpoint_that_is_down_stops_the_run(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    write_trajectories([f"task {i}" for i in range(200)])

    with pytest.raises(Exception, match="failed 20 times without one answer"):
        build(a_judge(max_retries=0))


def test_what_is_missing_is_said_before_anything_is_asked(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="Set the var rater_model"):
        a_judge(model="")
    with pytest.raises(ConfigError, match="no price is known for model 'judge-2'"):
        a_judge(model="judge-2", max_usd=1.0)
    with pytest.raises(ConfigError, match="no max_tokens"):
        a_judge(parameters={}, max_usd=1.0)
    with pytest.raises(ConfigError, match="USD per million tokens"):
        assert a_judge(prices={"judge-1": {"input": 1.0}}, max_usd=1.0)
    with pytest.raises(ConfigError, match="sets stream"):
        a_judge(parameters={"stream": True})
    with pytest.raises(ConfigError, match="rater_requests_per_minute is 0"):
        a_judge(requests_per_minute=0)
    with pytest.raises(ConfigError, match="Set online or batch"):
        a_judge(transport="pigeon")
    with lake.connect() as connection, pytest.raises(ConfigError, match="'oracle' is not known"):
        rate(connection.sql("select 1"), rater="oracle")
    monkeypatch.delenv("OPENAI_API_KEY")
    write_trajectories(["task 1"])
    with pytest.raises(Exception, match="Set OPENAI_API_KEY"):
        build()
    assert not judge.asked


def test_a_budget_is_kept_and_the_next_build_goes_on(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    write_trajectories([f"task {i}" for i in range(40)])
    budget = 10.5 * COST_USD

    build(a_judge(max_usd=budget))

    spent = sum(row["cost_usd"] for rows in ratings().values() for row in rows)
    assert 0 < spent <= budget
    assert len(ratings()) == sum(judge.asked.values()) <= 10
    assert "stopped at rater_max_usd" in capfd.readouterr().err
    build()
    assert len(ratings()) == 40 and set(judge.asked.values()) == {1}


def test_what_never_reached_the_endpoint_costs_nothing(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spent_usd() -> float:
        budget = Budget(1.0)
        endpoint = Endpoint("judge-1", PARAMETERS, PRICES, max_retries=0, timeout_s=1.0)
        build(OpenAIRater(endpoint, Judge(), budget))
        assert {status for each in statuses().values() for status in each} == {"failed"}
        return budget.spent_usd

    write_trajectories(["task 1 do:hang", "task 2 do:hang"])
    assert spent_usd() > 0
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    assert spent_usd() == 0


def test_only_so_many_trajectories_are_rated_in_one_build(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    write_trajectories([f"task {i}" for i in range(12)])

    build(max_trajectories=5)
    assert len(ratings()) == 5
    assert "7 trajectories stay unrated because of rater_max_trajectories" in capfd.readouterr().err
    build(max_trajectories=5)
    assert len(ratings()) == 10
    build(max_trajectories=5)
    assert len(ratings()) == 12
    assert "2 trajectories stay unrated" in (said := capfd.readouterr().err)
    assert said.count("stay unrated") == 1


def test_a_model_without_a_price_is_rated_at_unknown_cost(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    write_trajectories(["task 1", "task 2"])

    build(a_judge(model="judge-2", parameters={}))

    assert [row["cost_usd"] for rows in ratings().values() for row in rows] == [None, None]
    assert capfd.readouterr().err.count("rater_prices has no 'judge-2'") == 1


def test_a_reply_without_usage_has_unknown_tokens(judge: JudgeServer) -> None:
    write_trajectories(["task 1 do:no-usage"])

    build()

    ((row,),) = ratings().values()
    assert (row["status"], row["rater_score"]) == ("ok", 3.0)
    assert (row["prompt_tokens"], row["completion_tokens"], row["cost_usd"]) == (None, None, None)


def test_another_parameter_is_another_rater(judge: JudgeServer) -> None:
    write_trajectories(["task 1"])

    build()
    build(a_judge(parameters={"temperature": 1}))
    build()

    assert judge.asked[1] == 2
    assert len({row["rater_id"] for (rows) in ratings().values() for row in rows}) == 2


def test_one_content_is_rated_once(judge: JudgeServer) -> None:
    write_trajectories(["task 1", "task 1", "task 2"])

    build()

    assert judge.asked == {1: 1, 2: 1}


def test_no_more_requests_at_a_time_than_allowed(judge: JudgeServer) -> None:
    judge.latency_s = 0.05
    write_trajectories([f"task {i}" for i in range(60)])

    build(a_judge(concurrency=6))

    assert judge.most_at_once == 6


def test_ratings_come_out_while_others_are_still_asked(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.latency_s = 0.02
    write_trajectories([f"task {i}" for i in range(200)])

    with lake.connect() as connection, monkeypatch.context() as patch:
        patch.setattr(asking, "_COMMIT_ROWS", 10)
        rows = rate_unrated(connection.table("trajectories"), a_judge())
        first = rows.read_next_batch()
        asked = sum(judge.asked.values())
        del rows  # whoever reads has gone: nothing more is asked

    assert first.num_rows == 10
    assert asked < 200
    time.sleep(0.1)
    assert sum(judge.asked.values()) < 200
    build()
    assert len(ratings()) == 200 and set(judge.asked.values()) == {1}


BUILD_IN_ANOTHER_PROCESS = """
import sys

from udfs import lake
from udfs.llm import Endpoint, asking
from udfs.rater.judge import Judge
from udfs.rater.ledger import rate_unrated
from udfs.rater.openai_rater import OpenAIRater

asking._COMMIT_ROWS = int(sys.argv[1])
endpoint = Endpoint(
    model="judge-1", parameters=%r, prices=%r, concurrency=int(sys.argv[2]), timeout_s=5.0
)
with lake.connect() as connection:
    rows = rate_unrated(connection.table("trajectories"), OpenAIRater(endpoint, Judge()))
    lake.write("ratings", rows, lake.WriteOptions(strategy="append", commit="batch"))
""" % (PARAMETERS, PRICES)  # noqa: UP031  the script has braces of its own


def build_in_another_process(commit_rows: int, concurrency: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", BUILD_IN_ANOTHER_PROCESS, str(commit_rows), str(concurrency)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.mark.parametrize(("count", "commit_rows", "concurrency"), [(160, 20, 8), (5_000, 500, 64)])
def test_a_killed_build_loses_no_answer_and_asks_none_twice(
    judge: JudgeServer, count: int, commit_rows: int, concurrency: int
) -> None:
    judge.latency_s = 0.03
    write_trajectories([f"task {i}" for i in range(count)])

    process = build_in_another_process(commit_rows, concurrency)
    while sum(judge.asked.values()) < count // 2:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(0.2)

    committed, written = set(ratings()), len(journaled())
    asked = sum(judge.asked.values())
    assert committed
    # All that was asked is written down but the questions that were in the air.
    assert written >= asked - concurrency

    build(a_judge(timeout_s=5.0, concurrency=concurrency))

    assert statuses() == {f"task {i}": ["ok"] for i in range(count)}
    assert sum(judge.asked.values()) - count == asked - written
    assert journal_path("ratings").read_bytes() == b""


def test_a_killed_first_build_keeps_its_answers_in_the_journal(judge: JudgeServer) -> None:
    write_trajectories([f"task {i}" for i in range(30)])
    with lake.connect() as connection:
        rows = rate_unrated(connection.table("trajectories"), a_judge())
        rows.read_all()  # answered, never committed

    assert lake.open_table("ratings") is None
    build()

    assert len(ratings()) == 30 and set(judge.asked.values()) == {1}
    build()
    assert journal_path("ratings").read_bytes() == b""


def test_a_reply_torn_by_a_crash_is_asked_again_and_the_others_are_not(
    judge: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    write_trajectories([f"task {i}" for i in range(10)])
    with lake.connect() as connection:
        rate_unrated(connection.table("trajectories"), a_judge()).read_all()
    journal_path("ratings").write_bytes(journal_path("ratings").read_bytes()[:-40])

    build()

    assert sorted(judge.asked.values()) == [1] * 9 + [2]
    assert len(ratings()) == 10 and set(map(len, ratings().values())) == {1}
    assert "a reply that a crash cut off" in caplog.text


def test_two_builds_at_once_pay_for_nothing_twice(
    judge: JudgeServer, caplog: pytest.LogCaptureFixture
) -> None:
    judge.latency_s = 0.02
    write_trajectories([f"task {i}" for i in range(300)])
    other = build_in_another_process(50, 8)
    while not judge.asked:
        assert other.poll() is None
        time.sleep(0.005)

    build()

    assert other.wait(30) == 0
    assert statuses() == {f"task {i}": ["ok"] for i in range(300)}
    assert set(judge.asked.values()) == {1}
    assert "Another build is writing ratings" in caplog.text


def test_requests_keep_to_the_minute_and_retries_count(judge: JudgeServer) -> None:
    write_trajectories([f"task {i} do:500-once" for i in range(4)])
    started = time.monotonic()

    build(a_judge(requests_per_minute=240))

    assert time.monotonic() - started >= 7 * 0.25  # eight requests, a quarter of a second apart
    assert list(statuses().values()) == [["ok"]] * 4


def test_tokens_keep_to_the_minute(judge: JudgeServer) -> None:
    write_trajectories([f"task {i}" for i in range(10)])
    started = time.monotonic()

    build(a_judge(concurrency=1, tokens_per_minute=60 * 3_000))

    # Ten replies of 750 tokens at 3,000 a second; the last does not wait for its own.
    assert 9 * 0.25 <= time.monotonic() - started < 6


def test_a_full_disk_stops_the_run_and_keeps_what_was_answered(judge: JudgeServer) -> None:
    judge.latency_s = 0.01
    write_trajectories([f"task {i}" for i in range(60)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with lake.connect() as connection:
        rows = rate_unrated(connection.table("trajectories"), a_judge(concurrency=4))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
        try:
            with pytest.raises(Exception, match=r"cannot be written .*Make room"):
                rows.read_all()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    asked, written = sum(judge.asked.values()), len(journaled())
    assert 0 < written < asked <= written + 4
    build()
    assert statuses() == {f"task {i}": ["ok"] for i in range(60)}
    assert sum(judge.asked.values()) == 60 + asked - written


# Trajectory → its ledger rows after the batch is collected, and after a later build.
BATCHED = {
    "task 1": ["ok"],
    "task 2": ["ok"],
    "task 3 do:prose-once": ["ok"],
    "task 4 do:too-long": ["too_long"],
    "task 5 do:500": ["failed"],
    "task 6 do:expired": ["failed"],
    "task 7 do:left-out": ["failed"],
}


def test_a_batch_is_submitted_once_and_collected_when_it_is_done(
    judge: JudgeServer, capfd: pytest.CaptureFixture[str]
) -> None:
    prices = {"judge-1": PRICES["judge-1"] | {"batch_discount": 0.5}}
    rater = a_judge(transport="batch", prices=prices)
    write_trajectories(list(BATCHED))

    build(rater)
    assert "7 requests submitted as batch-0" in capfd.readouterr().err
    assert not judge.asked and ratings() == {}

    build(rater)  # under way: nothing comes, nothing is asked twice
    build(a_judge())  # by whatever transport
    assert not judge.asked and len(judge.batches.created) == 1 and ratings() == {}

    write_trajectories([*BATCHED, "task 8"])
    judge.batches.status = "completed"
    build(rater)

    assert statuses() == BATCHED
    (row,) = ratings()["task 1"]
    assert row["rater_score"] == 1.0 and row["cost_usd"] == pytest.approx(COST_USD / 2)
    assert row["latency_ms"] is None
    (again,) = ratings()["task 3 do:prose-once"]
    assert again["cost_usd"] == pytest.approx(1.5 * COST_USD)  # asked again at once, at full price
    explanations = {
        task: ratings()[task][0]["explanation"].split(":")[0]
        for task, statuses in BATCHED.items()
        if statuses == ["failed"]
    }
    assert list(explanations.values()) == ["500", "batch_expired", "BatchCompleted"]
    assert len(judge.batches.created) == 2  # task 8, which was new

    build(rater)  # task 8 is collected, and what failed is submitted anew
    assert len(judge.batches.created) == 3
    assert len(judge.batches.files[judge.batches.created[2]["input_file_id"]].splitlines()) == 3
    build(rater)
    assert ratings()["task 8"][0]["status"] == "ok" and judge.asked[8] == judge.asked[1] == 1


def test_a_batch_that_its_endpoint_fails_or_forgets_lets_its_trajectories_go(
    judge: JudgeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rater = a_judge(transport="batch")
    write_trajectories(["task 1", "task 2"])
    build(rater)
    judge.batches.status = "failed"
    build(rater)
    assert statuses() == {"task 1": ["failed"], "task 2": ["failed"]}
    assert "Enqueued token limit" in ratings()["task 1"][0]["explanation"]

    judge.batches.status = "in_progress"
    build(rater)
    judge.batches.created.pop()  # as if the build had died before the batch was begun
    build(rater)
    assert len(ratings()["task 1"]) == 1
    monkeypatch.setattr(batch, "_LISTED_AFTER", timedelta(0))
    build(rater)
    assert "BatchUnknown" in ratings()["task 1"][1]["explanation"]


def test_an_endpoint_without_batches_says_so_and_nothing_is_held_back(judge: JudgeServer) -> None:
    write_trajectories(["task 1"])
    judge.batches.refuses = True
    with pytest.raises(Exception, match="Set the var rater_transport to online"):
        build(a_judge(transport="batch"))

    build()
    assert statuses() == {"task 1": ["ok"]}


def test_a_batch_keeps_to_the_budget(judge: JudgeServer, capfd: pytest.CaptureFixture[str]) -> None:
    write_trajectories([f"task {i}" for i in range(40)])

    build(a_judge(transport="batch", max_usd=10.5 * COST_USD))

    (created,) = judge.batches.created
    submitted = len(judge.batches.files[created["input_file_id"]].splitlines())
    assert 0 < submitted < 40
    assert f"{40 - submitted} are left for a later build" in capfd.readouterr().err
