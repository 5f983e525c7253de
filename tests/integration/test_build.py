"""`dbt build` as a person runs it: on sample records, on real ones, twice, and killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from udfs import lake

PROJECT = Path(__file__).resolve().parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]

# What says when a build ran, and so differs between two builds of the same records.
TIMES = ("landed_at", "ingested_at", "rated_at", "latency_ms", "file_modified_at")


def rows(query: str) -> list[tuple[Any, ...]]:
    with lake.connect() as connection:
        return connection.execute(query).fetchall()


def versions() -> dict[str, int]:
    return {
        name: table.version() for name in lake.table_names() if (table := lake.open_table(name))
    }


def content(lake_folder: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every table of a lake as sorted rows, without what says when it was built."""
    tables = {}
    with duckdb.connect() as connection:
        lake.load_delta_extension(connection)
        for folder in sorted(p.parent for p in lake_folder.glob("*/_delta_log")):
            scan = connection.sql(f"select * from delta_scan('{folder}')")
            columns = ", ".join(f'"{c}"' for c in scan.columns if c not in TIMES)
            tables[folder.name] = connection.sql(
                f"select {columns} from scan order by all"
            ).fetchall()
    return tables


def test_the_sample_records_build_into_an_export_and_a_second_build_makes_no_version(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_RAW", str(PROJECT / "raw"))
    run("dbt", "build", "--quiet")
    run("trajlake", "export", "default")
    printed = run("trajlake", "summary").stdout
    for source in sorted(p.name for p in (PROJECT / "raw").iterdir()):
        assert source in printed
    assert rows("select count(*) from trajectories where source = 'hotpot_react'") > [(0,)]
    (unfair,) = rows(
        """
        select count(*) from raw_records
        where raw_record_id not in (select unnest(raw_record_ids) from trajectories)
            and raw_record_id not in (select raw_record_id from quarantine)
        """
    )
    assert unfair == (0,)

    before = versions()
    ratings = rows("select count(*) from ratings")
    (workplace / "trajlake.duckdb").unlink()  # it holds nothing that a build does not make again
    run("dbt", "build", "--quiet")
    assert versions() == before
    assert rows("select count(*) from ratings") == ratings


def test_a_file_dropped_in_is_there_after_the_next_build(run: Run, workplace: Path) -> None:
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (workplace / "raw" / "mine").mkdir()
    (workplace / "raw" / "mine" / "one.jsonl").write_text(json.dumps({"messages": turns}))
    run("dbt", "build", "--quiet")
    (workplace / "raw" / "mine" / "two.json").write_text(
        json.dumps([{"messages": [{"role": "user", "content": "3 + 3?"}, turns[1]]}])
    )
    run("dbt", "build", "--quiet")
    assert rows("select user_query from trajectories order by 1") == [("2 + 2?",), ("3 + 3?",)]


def test_real_records_are_all_accounted_for(run: Run, workplace: Path, shared: Path) -> None:
    shutil.copytree(shared / "raw", workplace / "raw", dirs_exist_ok=True)
    run("dbt", "build", "--quiet")
    accepted = dict(rows("select source, count(*) from trajectories group by source"))
    assert accepted["fireact_hotpotqa"] == 964
    assert accepted["tau_bench_few_shot"] == 88

    # FireAct: one step for each observation; the environment's verdicts are kept.
    for raw_file, score, other, raw, steps in rows(
        """
        select raw_file, score, other_information, decode(raw), len(steps)
        from trajectories inner join raw_records using (raw_record_id, raw_file)
        where trajectories.source = 'fireact_hotpotqa'
        """
    ):
        record, kept = json.loads(raw), json.loads(other)
        assert score == float(record["reward"])
        assert (kept["em"], kept["f1"]) == (record["em"], record["f1"])
        if "gpt" in raw_file:
            assert steps == sum(turn["role"] == "assistant" for turn in record["traj"])
        else:
            assert steps == record["traj"].count("\nObservation: ")

    # OpenHands: every call has its result, by its id.
    calls = rows(
        """
        with steps as (
            select trajectory_id, unnest(steps) as step from trajectories
            where raw_file like '%openhands%'
        )

        select
            trajectory_id,
            list_transform(step.tool_calls, lambda call: call.call_id),
            list_transform(step.observations, lambda seen: seen.call_id),
        from steps
        where len(step.tool_calls) > 0 and step.tool_calls[1].name <> 'finish'
        """
    )
    assert len({trajectory for trajectory, _, _ in calls}) == 3
    assert all(asked == answered for _, asked, answered in calls)

    # Everything else is standardised too, but for what holds no run.
    refused = rows("select raw_file, raw_position, reason from quarantine order by all")
    assert refused == [
        ("README.md", None, "unsupported_file"),
        ("toolalpaca_eval/ToolAlpaca7b.json", 11, "unknown_format"),  # counts of the verdicts
        ("toolalpaca_eval/ToolAlpaca7b.json", 52, "unknown_format"),  # an empty `input`
    ]
    assert rows("select count(*) from quarantine where detail = ''") == [(0,)]


def test_a_misspelt_setting_of_a_source_stops_the_build_at_once(tmp_path: Path) -> None:
    from udfs.errors import ConfigError
    from udfs.sources import declared_sources

    path = tmp_path / "sources.yml"
    entry = "sources: [{name: raw, tables: [{name: mine, config: {meta: %s}}]}]"
    for meta, message in (
        ("{enviroment: x}", "source 'mine': unknown key 'enviroment'. Keys: format, "),
        ("{format: chatt}", "format 'chatt' does not exist. Choose from: "),
        ("{is_synthetic: 'no'}", "has to be a bool"),
    ):
        path.write_text(entry % meta)
        declared_sources.cache_clear()
        with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
            declared_sources(path)


def test_killed_ten_times_it_ends_like_an_undisturbed_build(
    run: Run, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sorted((PROJECT / "raw").rglob("*.*"))
    records = workplace / "raw" / "dropped"
    records.mkdir()
    moments = random.Random(20261120)
    longest = 10.0
    known_ratings: set[tuple[Any, ...]] = set()
    for round_ in range(10):
        turns = [
            {"messages": [{"role": "user", "content": f"What is {round_} + {i}?"},
                          {"role": "assistant", "content": f"{round_ + i}."}]}
            for i in range(200)
        ]  # fmt: skip
        (records / f"{round_}.json").write_text(json.dumps(turns))
        file = sample[round_ % len(sample)]
        shutil.copy(file, records / f"{round_}-{file.name}")
        started = time.monotonic()
        build = subprocess.Popen(
            ["dbt", "build", "--quiet"], start_new_session=True, stdout=subprocess.DEVNULL
        )
        try:
            build.wait(moments.uniform(1.0, longest))
            longest = time.monotonic() - started
        except subprocess.TimeoutExpired:
            os.killpg(build.pid, signal.SIGKILL)
            build.wait()
        if "ratings" in lake.table_names():
            ratings = rows("select content_sha256, rater_id, rating_id from ratings")
            assert len(ratings) == len(set(ratings))
            assert known_ratings <= set(ratings)  # none that was there is lost
            known_ratings = set(ratings)
    run("dbt", "build", "--quiet")
    disturbed = content(workplace / "lake")

    monkeypatch.setenv("TRAJLAKE_LAKE", str(workplace / "undisturbed"))
    monkeypatch.setenv("TRAJLAKE_DB", str(workplace / "undisturbed.duckdb"))
    run("dbt", "build", "--quiet")
    undisturbed = content(workplace / "undisturbed")
    assert disturbed.keys() == undisturbed.keys()
    for table, expected in undisturbed.items():
        assert disturbed[table] == expected, table
