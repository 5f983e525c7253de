"""How quickly each format becomes rows, against two floors, in one run on the same lines.

    make bench

For each source of `../shared/raw`, its records are repeated to a given size, each copy with other
bytes, so that none is a duplicate. Measured end to end is `dbt run` from JSON Lines to the Delta
tables (landing, trajectories, quarantine): the time that dbt counts for the three models, which
leaves its own start out. Its peers are
`json.loads` + `json.dumps` of the same lines in one Python process, and DuckDB scanning them into
Parquet, the floor for anything that ends in Parquet. A ratio of 2 means twice as long.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from test_growth import LOADS_AND_DUMPS, SCAN_TO_PARQUET, measure

from udfs import lake

MEGABYTES = 240
MIXED_MEGABYTES = 1_000

# What names a run in a record; rows of one step each are put together by it.
_RUN_NAMES = {"id", "task_name"}

FILES = {
    "FireAct, chat": "fireact_hotpotqa/gpt-3.5-turbo-0613.json",
    "FireAct, text": "fireact_hotpotqa/llama-2-13b.json",
    "tau-bench": "tau_bench_few_shot/retail.jsonl",
    "OpenHands, tool calls": "adp_samples/swe-gym_openhands_sampled_trajectories.r0-2.json",
    "AgentTuning, chat": "adp_samples/agenttuning_alfworld.json",
    "NNetNav, step rows": "adp_samples/nnetnav-wa.json",
}


def records(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    document = json.loads(text)
    return list(document.values()) if isinstance(document, dict) else document


def copies(originals: list[dict[str, Any]], megabytes: float) -> Iterator[str]:
    """JSON lines up to a size; every copy of a record names itself and a run of its own."""
    size, copy = 0, 0
    while size < megabytes * 1e6:
        for record in originals:
            named = {name: f"{record[name]}-{copy}" for name in _RUN_NAMES & record.keys()}
            marked = record | {"copy": copy} | named
            line = json.dumps(marked, ensure_ascii=False) + "\n"
            size += len(line)
            yield line
        copy += 1


def test_standardizer(workplace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table("source", title="From JSON Lines to the Delta tables", title_justify="left")
    for column in ("records", "MB", "end to end", "records/s", "peak MB"):
        table.add_column(column, justify="right")
    table.add_column("to loads+dumps", justify="right")
    table.add_column("to DuckDB", justify="right")
    sources: dict[str, list[dict[str, Any]]] = {
        name: records(shared / "raw" / file) for name, file in FILES.items()
    }
    sources["all of them, mixed"] = [each for some in sources.values() for each in some]
    rows = []
    for number, (name, originals) in enumerate(sources.items()):
        folder = workplace / str(number)
        lines = folder / "raw" / "source" / "lines.jsonl"
        lines.parent.mkdir(parents=True)
        with lines.open("w", encoding="utf-8") as file:
            size = MEGABYTES if name in FILES else MIXED_MEGABYTES
            count = sum(file.write(line) > 0 for line in copies(originals, size))
        monkeypatch.setenv("TRAJLAKE_RAW", str(folder / "raw"))
        monkeypatch.setenv("TRAJLAKE_LAKE", str(folder / "lake"))
        monkeypatch.setenv("TRAJLAKE_DB", str(folder / "trajlake.duckdb"))
        peers = [
            measure([sys.executable, "-c", code, str(lines), str(folder / "peer.out")])[0]
            for code in (LOADS_AND_DUMPS, SCAN_TO_PARQUET)
        ]
        _, peak = measure(["dbt", "run", "--quiet", "--select", "+quarantine"])
        with lake.connect() as connection:
            refused = connection.sql("select reason, count(*) from quarantine group by all")
            assert refused.fetchall() == [], "what is refused costs less than what is read"
        results = json.loads((workplace / "target" / "run_results.json").read_text("utf-8"))
        seconds = sum(result["execution_time"] for result in results["results"])
        rows.append((name, count, lines.stat().st_size / 1e6, seconds, peak, peers))
    for name, count, megabytes, seconds, peak, (loads_dumps, scan) in rows:
        table.add_row(
            name,
            f"{count:,}",
            f"{megabytes:,.0f}",
            f"{seconds:.1f} s",
            f"{count / seconds:,.0f}",
            f"{peak:,}",
            f"{seconds / loads_dumps:.1f}×",
            f"{seconds / scan:.1f}×",
        )
    Console(width=120).print(table)
    # A gigabyte may not take what a quarter of one does not.
    assert all(peak < 3_072 for *_, peak, _ in rows), "memory grows with the input"
