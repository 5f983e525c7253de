"""How time and memory grow with the input: 1×, 10× and 100× of the FireAct runs.

    make bench

Each copy of a run has a question of its own, so that nothing is a duplicate. Every floor of the
house runs in a process of its own, whose peak memory the operating system gives. Beside them, in
the same run and on the same lines: `json.loads` + `json.dumps` in one Python process (what a
converter script cannot be quicker than), and DuckDB scanning the JSON into Parquet (the floor for
anything that ends in Parquet). Read the ratios, not the seconds: machines differ.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from rich.table import Table

PROJECT = Path(__file__).resolve().parents[2]

COPIES = (1, 10, 100)

LOADS_AND_DUMPS = """
import json, sys
with open(sys.argv[1]) as lines, open(sys.argv[2], "w") as out:
    for line in lines:
        out.write(json.dumps(json.loads(line)) + "\\n")
"""

SCAN_TO_PARQUET = """
import duckdb, sys
duckdb.sql(f"copy (from read_json('{sys.argv[1]}')) to '{sys.argv[2]}' (format parquet)")
"""

FLOORS = {
    "landing": ["dbt", "run", "--quiet", "--select", "raw_records"],
    "standardizer": ["dbt", "run", "--quiet", "--select", "models/core"],
    "seeds": ["dbt", "seed", "--quiet"],
    "rating (rules)": ["dbt", "run", "--quiet", "--select", "models/rating"],
    "curation, plan, samples": ["dbt", "run", "--quiet",
                                "--select", "benchmark_items", "models/curation", "models/marts"],
    "export": ["trajlake", "export", "default"],
    "all dbt tests": ["dbt", "test", "--quiet"],
    "a second build": ["dbt", "build", "--quiet"],
}  # fmt: skip


def variants(records: list[dict[str, object]], copies: int) -> Iterator[str]:
    """JSON lines: every record `copies` times, each time asking in other words."""
    for copy in range(copies):
        for record in records:
            line = json.dumps(record, ensure_ascii=False)
            question = json.dumps(record["question"], ensure_ascii=False)[1:-1]
            yield line.replace(question, f"{question} ({copy})") + "\n"


def fireact(shared: Path) -> list[dict[str, object]]:
    records = []
    for path in sorted((shared / "raw" / "fireact_hotpotqa").glob("*.json")):
        for key, run in json.loads(path.read_text("utf-8")).items():
            traj = run["traj"]
            text = traj[0]["content"] if isinstance(traj, list) else traj
            question = text.split("### Instruction:\n")[-1].split("\n")[0]
            records.append({"id": f"{path.stem}-{key}", "question": question, **run})
    return records


def measure(command: list[str]) -> tuple[float, int]:
    """Seconds and peak megabytes of one command, with all processes that it starts.

    The peak is the largest sum of resident memory that was seen, looking twenty times a second;
    pages that processes share count once for each.
    """
    started = time.perf_counter()
    peak = 0
    with psutil.Popen(command, cwd=PROJECT) as process:
        while process.poll() is None:
            peak = max(peak, sum(_resident(each) for each in _family(process)))
            time.sleep(0.05)
    assert process.returncode == 0, f"{' '.join(command)} exited {process.returncode}"
    return time.perf_counter() - started, peak // 1_000_000


def _family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def test_growth(workplace: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = fireact(shared)
    table = Table("floor", title="FireAct runs, each floor in a process of its own")
    results: dict[str, list[tuple[float, int]]] = {}
    for copies in COPIES:
        folder = workplace / f"x{copies}"
        lines = folder / "raw" / "fireact" / "runs.jsonl"
        lines.parent.mkdir(parents=True)
        with lines.open("w", encoding="utf-8") as file:
            file.writelines(variants(records, copies))
        table.add_column(
            f"{copies * len(records):,} records\n{lines.stat().st_size / 1e6:,.1f} MB",
            justify="right",
        )
        for name in ("raw", "lake", "exports"):
            monkeypatch.setenv(f"TRAJLAKE_{name.upper()}", str(folder / name))
        monkeypatch.setenv("TRAJLAKE_DB", str(folder / "trajlake.duckdb"))
        peers = {
            "peer: json.loads + json.dumps": LOADS_AND_DUMPS,
            "peer: DuckDB JSON to Parquet": SCAN_TO_PARQUET,
        }
        commands = {
            name: [sys.executable, "-c", code, str(lines), str(folder / "peer.out")]
            for name, code in peers.items()
        } | FLOORS | {"(dbt alone)": ["dbt", "parse", "--quiet"]}  # fmt: skip
        for name, command in commands.items():
            results.setdefault(name, []).append(measure(command))
    for name, found in results.items():
        table.add_row(name, *(f"{seconds:.1f} s  {peak:,} MB" for seconds, peak in found))
    Console(width=120).print(table)

    # Linear growth: ten times the input may not take much more than ten times as long.
    for name, found in results.items():
        assert found[2][0] < 15 * max(found[1][0], 1.0), f"{name} grows faster than its input"
