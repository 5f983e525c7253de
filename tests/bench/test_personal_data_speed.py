"""What it costs to go through a million trajectories for personal data.

    make bench

The model `personal_data` is built by dbt over a million trajectories of 2 KB, one in twenty with
something to be found; then with nothing new, then with one more in a hundred. Beside it, on some
of the same texts: the same rules by Python's `re` alone, text by text, as a script would do it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import write_deltalake
from rich.console import Console
from rich.table import Table

from udfs.curation.personal_patterns import find
from udfs.lake import load_delta_extension
from udfs.schema import STEP

PROJECT = Path(__file__).resolve().parents[2]
TRAJECTORIES = int(os.environ.get("TRAJLAKE_BENCH_TRAJECTORIES", 1_000_000))
_BATCH = 50_000

_WORDS = re.findall(
    r"\S+",
    """
    the agent searched for a hotel near station and found 3 results on 2026-04-12 with price
    $129.99 order #W2417020 (page 2 of 14) version 4.10.0 at 40.7128, -74.0060 key: value token
    Observation: Title [SEP] Battlestar Galactica (2004) was written by Ronald and others;
    status 200 {"id": 1801728040, "next_page_token": "CAUQAA"} see www.shop.org/p?id=77
    """,
)
_FINDS = (
    "mail ann.lee@uni-koeln.de",
    "call +49 30 901820",
    '{"password": "Tr0ub4dor&3"}',
    "the card 4929 1234 5678 9015",
    "client_secret=v8Kq27zLpW41xTnB",
)


def trajectories(first: int, count: int) -> Iterator[pa.Table]:
    """Trajectories of four steps and about 2 KB each."""
    chance = random.Random(first)
    pool = [" ".join(chance.choices(_WORDS, k=36)) for _ in range(5_000)]
    for start in range(first, first + count, _BATCH):
        rows = range(start, min(start + _BATCH, first + count))
        texts = chance.choices(pool, k=8 * len(rows))
        for i in range(0, len(texts), 160):  # of 20 trajectories
            texts[i] += " " + chance.choice(_FINDS)
        steps = _steps(texts, len(rows))
        names = [f"{number:064x}" for number in rows]
        nothing = pa.nulls(len(rows), pa.string())
        yield pa.table(
            {
                "trajectory_id": names,
                "content_sha256": names,
                "user_query": [f"Question {number}?" for number in rows],
                "system_prompt": nothing,
                "tools": nothing,
                "other_information": ["{}"] * len(rows),
                "steps": steps,
            }
        )


def _steps(texts: list[str], rows: int) -> pa.ListArray:
    seen = STEP.field("observations").type
    outputs, replies = texts[0::2], texts[1::2]
    count = 4 * rows
    observations = pa.ListArray.from_arrays(
        pa.array(range(count + 1), pa.int32()),
        pa.StructArray.from_arrays(
            [pa.array(["environment"] * count), *[pa.nulls(count, pa.string())] * 2,
             pa.array(replies)],
            fields=list(seen.value_type),
        ),
    )  # fmt: skip
    columns: dict[str, Any] = {
        "step_id": pa.array([1, 2, 3, 4] * rows, pa.int32()),
        "output": pa.array(outputs),
        "observations": observations,
        "next_observation": pa.array(replies),
    }
    children = [columns.get(f.name, pa.nulls(count, f.type)) for f in STEP]
    offsets = pa.array(range(0, count + 1, 4), pa.int32())
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays(children, fields=list(STEP))
    )


def build() -> tuple[float, float, int]:
    """Seconds, seconds of all cores and peak megabytes of `dbt run --select personal_data`."""
    started, peak = time.perf_counter(), 0
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["dbt", "run", "--quiet", "--select", "personal_data"]
    with psutil.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                peak = max(peak, process.memory_info().rss)
            time.sleep(0.05)
    assert process.returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - started, cpu, peak // 1_000_000


def by_re_alone(texts: list[str]) -> float:
    """Seconds of one core for all rules over all texts, one by one."""
    started = time.process_time()
    for text in texts:
        find(text)
    return time.process_time() - started


def test_a_million_trajectories(workplace: Path) -> None:
    path = workplace / "lake" / "trajectories"
    size = 0
    for batch in trajectories(0, TRAJECTORIES):
        write_deltalake(path, batch, mode="append")
        flat = batch["steps"].combine_chunks().flatten()
        replies = pc.struct_field(flat, "next_observation")
        size += sum(
            pc.sum(pc.binary_length(texts)).as_py()
            for texts in (pc.struct_field(flat, "output"), replies)
        )
        sample = [*pc.struct_field(flat, "output").to_pylist(), *replies.to_pylist()][:40_000]
    with duckdb.connect(os.environ["TRAJLAKE_DB"]) as connection:
        load_delta_extension(connection)
        connection.execute(f"create view trajectories as select * from delta_scan('{path}')")

    table = Table(
        "build", "seconds", "CPU seconds", "trajectories/s", "MB/s", "peak MB",
        title=f"{TRAJECTORIES:,} trajectories, {size / 1e6:,.0f} MB of text",
    )  # fmt: skip

    def add(name: str, seconds: float, cpu: float, rows: int, peak: int | None) -> None:
        speed = size / TRAJECTORIES * rows / 1e6 / seconds
        table.add_row(
            name, f"{seconds:.1f}", f"{cpu:.1f}", f"{rows / seconds:,.0f}", f"{speed:.0f}",
            f"{peak:,}" if peak else "",
        )  # fmt: skip

    everything = build()
    add("everything", *everything[:2], TRAJECTORIES, everything[2])
    again = build()
    add("nothing new", *again[:2], 0, again[2])
    for batch in trajectories(TRAJECTORIES, TRAJECTORIES // 100):
        write_deltalake(path, batch, mode="append")
    grown = build()
    add("1% new", *grown[:2], TRAJECTORIES // 100, grown[2])

    length = sum(len(text) for text in sample)
    alone = by_re_alone(sample) * size / length
    add(f"`re` alone, by {length / 1e6:.0f} MB", alone, alone, TRAJECTORIES, None)
    Console(width=100).print(table)
    print(f"`re` alone takes {alone / everything[1]:.1f} times as much CPU")
