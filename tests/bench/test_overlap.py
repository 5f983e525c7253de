"""A million trajectories looked through for the questions of HotpotQA's dev set.

    make bench

The trajectories are written into a lake directly: a query of about 30 words, a prompt with the
query at its end, four steps, 2.9 KB each. Their words are pieces of 4 to 12 words of the
benchmark's own questions, so that the search has to look closely far more often than in texts of
strangers. One in a hundred asks a question of the benchmark. Measured is the model
`benchmark_checks` in a process of its own, then again after 1% new trajectories.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from rich.console import Console
from rich.table import Table
from test_growth import measure

from udfs import lake
from udfs.schema import STEP

TRAJECTORIES = 1_000_000
ASKED_EVERY = 100
BATCH = 20_000

SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("content_sha256", pa.string()),
        ("user_query", pa.string()),
        ("system_prompt", pa.string()),
        ("steps", pa.list_(STEP)),
    ]
)


def batches(questions: list[str], first: int, last: int) -> Iterator[pa.RecordBatch]:
    """Trajectories by number. Texts are drawn from some ten thousand, as drawing words anew for
    each would take longer than what is measured."""
    drawn = random.Random(first)
    pieces = []
    for question in questions:
        words = question.split()
        size = min(drawn.randint(4, 12), len(words) // 2)
        start = drawn.randrange(len(words) - size)
        pieces.append(" ".join(words[start : start + size]))

    def text(words: int) -> str:
        return " ".join(drawn.choice(pieces) for _ in range(words // 7))

    observations = [text(60) for _ in range(10_000)]
    for start in range(first, last, BATCH):
        rows = []
        for number in range(start, min(start + BATCH, last)):
            query = drawn.choice(questions) if number % ASKED_EVERY == 0 else text(30)
            prompt = f"Answer the question.\n{text(120)}\nQuestion: {query}\nThought:"
            steps = []
            for step_id in range(1, 5):
                seen = drawn.choice(observations)
                steps.append(
                    {
                        "step_id": step_id,
                        "input": prompt if step_id == 1 else None,
                        "output": "Thought: I search for it.\nAction: search[it]",
                        "tool_calls": [],
                        "observations": [{"source": "environment", "content": seen}],
                        "is_trainable": True,
                    }
                )
            rows.append(
                {
                    "trajectory_id": f"{number:064x}",
                    "content_sha256": f"{number:064x}",
                    "user_query": query,
                    "steps": steps,
                }
            )
        yield pa.RecordBatch.from_pylist(rows, SCHEMA)


def test_a_million_trajectories(
    workplace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(shared / "benchmarks", workplace / "benchmarks", dirs_exist_ok=True)
    (benchmark,) = (shared / "benchmarks").glob("*.json")
    questions = [item["question"] for item in json.loads(benchmark.read_text("utf-8"))]
    more = TRAJECTORIES + TRAJECTORIES // 100

    def write(first: int, last: int) -> None:
        rows = pa.RecordBatchReader.from_batches(SCHEMA, batches(questions, first, last))
        write_deltalake(lake.table_path("trajectories"), rows, mode="append")

    table = Table("build", "seconds", "peak memory", title=f"{TRAJECTORIES:,} trajectories")
    write(0, TRAJECTORIES)
    with duckdb.connect(str(workplace / "trajlake.duckdb")) as connection:
        lake.load_delta_extension(connection)
        path = lake.sql_text(lake.table_path("trajectories"))
        connection.execute(f"create view trajectories as select * from delta_scan({path})")
    measure(["dbt", "run", "--quiet", "--select", "benchmark_items"])
    check = ["dbt", "run", "--quiet", "--select", "benchmark_checks"]
    for name, added in (("all", 0), ("after 1% new ones", more), ("nothing new", 0)):
        if added:
            write(TRAJECTORIES, added)
        seconds, peak = measure(check)
        table.add_row(name, f"{seconds:.1f}", f"{peak:,} MB")
    Console().print(table)

    with lake.connect() as connection:
        (checked, found) = connection.execute(
            "select count(*), count(*) filter (len(matches) > 0) from benchmark_checks"
        ).fetchall()[0]
    assert checked == more
    assert found >= more // ASKED_EVERY
