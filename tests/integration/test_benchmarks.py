"""Benchmarks as `dbt build` reads and finds them: what is new is checked, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from udfs import lake

PROJECT = Path(__file__).resolve().parents[2]

HUTS = "Which mountain hut lies higher, Ansel Hut or Kite Refuge?"
WIND = "What do the shepherds of Kestle call the north wind?"


def rows(query: str) -> list[tuple[Any, ...]]:
    with lake.connect() as connection:
        return connection.execute(query).fetchall()


def versions() -> list[int]:
    tables = [lake.open_table(name) for name in ("benchmark_items", "benchmark_checks")]
    return [table.version() for table in tables if table is not None]


def checks() -> dict[str, list[str]]:
    """query → the items found in it, of every trajectory that was checked."""
    found = rows(
        """
        select user_query, list_transform(matches, lambda m: m.benchmark || ' ' || m.item_id)
        from benchmark_checks
        inner join trajectories using (trajectory_id, content_sha256)
        """
    )
    return dict(found)


def test_a_build_checks_what_is_new(workplace: Path, run: Callable[..., Any]) -> None:
    def build(*, ok: bool = True, raw: dict[str, str] | None = None, **benchmarks: str) -> str:
        for name, question in (raw or {}).items():
            path = workplace / "raw" / "chats" / f"{name}.jsonl"
            path.parent.mkdir(exist_ok=True)
            turns = [("user", question), ("assistant", "It is.")]
            messages = [{"role": role, "content": content} for role, content in turns]
            path.write_text(json.dumps({"messages": messages}))
        for name, question in benchmarks.items():
            line = json.dumps({"id": "q1", "question": question})
            (workplace / "benchmarks" / f"{name}.jsonl").write_text(line)
        printed: str = run("dbt", "build", "--select", "+benchmark_overlap", ok=ok).stdout
        return printed

    # Without a benchmark there is nothing that anybody has looked for.
    build(raw={"huts": HUTS, "wind": f"Tell me: {WIND}"})
    assert checks() == {}
    assert rows("select * from benchmark_items") == []

    build(huts=HUTS)
    assert checks() == {HUTS: ["huts q1"], f"Tell me: {WIND}": []}
    before = versions()
    build()
    assert versions() == before

    # A trajectory more: no other is looked at again.
    build(raw={"again": f"{HUTS} Quick!"})
    assert checks() == {
        HUTS: ["huts q1"],
        f"Tell me: {WIND}": [],
        f"{HUTS} Quick!": ["huts q1"],
    }
    (added,) = rows(
        f"""
        select count(*) from delta_scan('{lake.table_path("benchmark_checks")}')
        where trajectory_id not in (
            select trajectory_id
            from delta_scan('{lake.table_path("benchmark_checks")}', version => {before[1]})
        )
        """
    )
    assert added == (1,)
    assert versions() == [before[0], before[1] + 1]
    newest = lake.commit_metadata("benchmark_checks")
    assert newest["operationParameters"]["mode"] == "Append"

    # A benchmark more: all are checked again, also those that were clean.
    build(wind=WIND)
    assert checks()[f"Tell me: {WIND}"] == ["wind q1"]
    assert lake.commit_metadata("benchmark_checks")["operationParameters"]["mode"] == "Overwrite"

    # What a build cannot read, it does not pass over, and it leaves the tables as they were.
    before = versions()
    (workplace / "benchmarks" / "cut_off.json").write_text('[{"question": "' + HUTS)
    printed = build(ok=False)
    assert "'cut_off.json' cannot be read at item 1, which begins at byte 1" in printed
    assert "move it out of the benchmarks folder" in " ".join(printed.split())
    assert versions() == before

    (workplace / "benchmarks" / "cut_off.json").write_text(json.dumps([HUTS, "Who is he?"]))
    printed = build()
    assert "Got 1 result, configured to warn" in printed  # too few words
    assert checks()[HUTS] == ["cut_off cut_off.json:1", "huts q1"]

    for path in (workplace / "benchmarks").iterdir():
        path.unlink()
    build()
    assert checks() == {}


def test_a_share_of_ngrams_that_changes_is_looked_for_in_all(
    workplace: Path, run: Callable[..., Any]
) -> None:
    item = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen ends."
    query = item.replace("ends", "stays")
    (workplace / "benchmarks" / "counting.jsonl").write_text(json.dumps(item))
    (workplace / "raw" / "chats").mkdir()
    turns = [{"role": "user", "content": query}, {"role": "assistant", "content": "Well."}]
    (workplace / "raw" / "chats" / "1.jsonl").write_text(json.dumps({"messages": turns}))
    select = ("--select", "+benchmark_overlap")
    run("dbt", "build", *select)
    assert checks()[query] == ["counting counting.jsonl:1"]
    run("dbt", "build", *select, "--vars", "overlap_ngram_share: 0.7")
    assert checks()[query] == []


def test_the_sample_benchmark_is_asked_once_by_the_sample_records(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_RAW", str(PROJECT / "raw"))
    monkeypatch.setenv("TRAJLAKE_BENCHMARKS", str(PROJECT / "benchmarks"))
    run("dbt", "build", "--select", "+benchmark_overlap")
    found = rows(
        """
        select trajectories.source, match.item_id, match.kind, match.where_found
        from (select trajectory_id, unnest(matches) as match from benchmark_checks)
        inner join trajectories using (trajectory_id)
        """
    )
    assert found == [("hotpot_react", "highland-1", "exact", "user_query")]


def test_every_fireact_question_is_found_in_hotpotqa_and_nothing_elsewhere(
    run: Callable[..., Any], shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_RAW", str(shared / "raw"))
    monkeypatch.setenv("TRAJLAKE_BENCHMARKS", str(shared / "benchmarks"))
    run("dbt", "build", "--select", "+benchmark_overlap")
    found = rows(
        """
        select trajectories.source, raw_file, count(*), count(*) filter (len(matches) > 0)
        from trajectories
        inner join benchmark_checks using (trajectory_id)
        group by all
        """
    )
    contaminated = {name: counts for _, name, *counts in found if counts[1]}
    assert contaminated == {
        "fireact_hotpotqa/gpt-3.5-turbo-0613.json": [465, 465],
        "fireact_hotpotqa/llama-2-13b.json": [499, 499],
    }
    clean = {source for source, *_ in found} - {"fireact_hotpotqa"}
    assert clean == {"tau_bench_few_shot", "toolbench_dfs", "toolalpaca_eval", "adp_samples"}
