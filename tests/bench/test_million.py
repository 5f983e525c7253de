"""A million trajectories through the whole house: all of them, then 1% more, then nothing new.

    make bench
    ROWS=100000 pytest -s tests/bench/test_million.py

The trajectories of `_synthetic` are written as files of chat messages with tool calls, a folder a
source, and built by `dbt build` with all its tests, from raw bytes to the plan, then exported.
The peak is the sum over all processes of the build. Beside it, in the same run and over the same
lines: `json.loads` + `json.dumps` in one Python process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from _synthetic import benchmark_questions, trajectories
from rich.console import Console
from rich.table import Table
from test_growth import LOADS_AND_DUMPS, measure

PROJECT = Path(__file__).resolve().parents[2]
ROWS = int(os.environ.get("ROWS", "1000000"))


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A trajectory as OpenAI's messages."""
    told: list[dict[str, Any]] = [{"role": "system", "content": row["system_prompt"]}]
    for step in row["steps"]:
        if step["input"]:
            told.append({"role": "user", "content": step["input"]})
        calls = [
            {
                "id": call["call_id"],
                "type": "function",
                "function": {"name": call["name"], "arguments": call["arguments"]},
            }
            for call in step["tool_calls"]
        ]
        said: dict[str, Any] = {"role": "assistant", "content": step["output"]}
        told.append(said | {"tool_calls": calls} if calls else said)
        told += [
            {"role": "tool", "tool_call_id": seen["call_id"], "content": seen["content"]}
            for seen in step["observations"]
        ]
    return told


def write_raw(folder: Path, rows: int, start: int) -> None:
    """Rows `start` to `start + rows - 1` as one file in each source's folder."""
    files = {}
    for batch in trajectories(rows, start=start):
        for row in batch.to_pylist():
            if row["source"] not in files:
                (folder / row["source"]).mkdir(parents=True, exist_ok=True)
                files[row["source"]] = (folder / row["source"] / f"{start}.jsonl").open("wb")
            record = {
                "task_id": row["task_id"],
                "model": row["model_name"],
                "score": row["score"],
                "tools": orjson.loads(row["tools"]),
                "messages": messages(row),
            }
            files[row["source"]].write(orjson.dumps(record) + b"\n")
    for file in files.values():
        file.close()


def floors(target: Path) -> dict[str, float]:
    """Seconds of each floor of the last build: models by folder, and all tests."""
    results = json.loads((target / "run_results.json").read_text())["results"]
    nodes = json.loads((target / "manifest.json").read_text())["nodes"]
    seconds: dict[str, float] = defaultdict(float)
    for result in results:
        node = nodes.get(result["unique_id"])
        is_model = node is not None and node["resource_type"] == "model"
        floor = Path(node["original_file_path"]).parts[1] if is_model and node else "tests, seeds"
        seconds[floor] += result["execution_time"]
    return seconds


def slowest(target: Path, most: int = 12) -> str:
    results = json.loads((target / "run_results.json").read_text())["results"]
    times = sorted((r["execution_time"], r["unique_id"].split(".")[2]) for r in results)[-most:]
    return ", ".join(f"{name} {seconds:.1f}" for seconds, name in reversed(times))


def test_a_million_trajectories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, target, benchmarks = (tmp_path / name for name in ("raw", "target", "benchmarks"))
    for name, place in {
        "TRAJLAKE_RAW": raw,
        "TRAJLAKE_LAKE": tmp_path / "lake",
        "TRAJLAKE_EXPORTS": tmp_path / "exports",
        "TRAJLAKE_DB": tmp_path / "trajlake.duckdb",
        "TRAJLAKE_BENCHMARKS": benchmarks,
        "DBT_TARGET_PATH": target,
        "DBT_LOG_PATH": tmp_path / "logs",
    }.items():
        monkeypatch.setenv(name, str(place))
    monkeypatch.chdir(PROJECT)
    benchmarks.mkdir()
    (benchmarks / "questions.jsonl").write_text(
        "".join(json.dumps({"question": question}) + "\n" for question in benchmark_questions())
    )
    write_raw(raw, ROWS, 0)
    size = sum(file.stat().st_size for file in raw.rglob("*.jsonl"))
    console = Console(width=130)
    table = Table(title=f"{ROWS:,} trajectories, {size / 1e6:,.0f} MB", title_justify="left")
    names = ("bronze", "core", "rating", "curation", "marts", "tests, seeds")
    for column in ("", "seconds", "peak MB", *names):
        table.add_column(column, justify="right")

    def build(name: str) -> float:
        seconds, peak = measure(["dbt", "build", "--quiet"])
        by_floor = floors(target)
        table.add_row(
            name, f"{seconds:.1f}", f"{peak:,.0f}", *(f"{by_floor[each]:.1f}" for each in names)
        )
        console.print(f"{name}: {seconds:.1f} s, {peak:,.0f} MB. {slowest(target)}")
        return seconds

    def export(name: str) -> None:
        seconds, peak = measure(["trajlake", "export", "default"])
        table.add_row(name, f"{seconds:.1f}", f"{peak:,.0f}")

    full = build("everything")
    export("export")
    write_raw(raw, ROWS // 100, ROWS)
    more = build("1% new")
    export("export of it")
    nothing = build("nothing new")
    lines = tmp_path / "all.jsonl"
    with lines.open("wb") as out:
        subprocess.run(["cat", *map(str, sorted(raw.rglob("*.jsonl")))], stdout=out, check=True)
    seconds, peak = measure(
        [sys.executable, "-c", LOADS_AND_DUMPS, str(lines), str(tmp_path / "out")]
    )
    table.add_row("peer: loads + dumps", f"{seconds:.1f}", f"{peak:,.0f}")
    console.print(table)
    console.print(
        f"1% new takes {more / full:.1%} of everything, nothing new {nothing:.1f} s; everything "
        f"{full / seconds:.1f} times loads + dumps"
    )
    if ROWS >= 1_000_000:  # less is mostly the start of dbt and its tests
        assert more < full / 10
