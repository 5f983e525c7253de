"""How long pages of the browser take at a million trajectories, beside plain queries.

    pytest -s tests/bench/test_ui_speed.py
    ROWS=100000 pytest -s tests/bench/test_ui_speed.py
    BROWSER_LAKE=lake BROWSER_FOLDER=folder pytest -s tests/bench/test_ui_speed.py

The last one takes a lake that `_browser_lake.py` has written, and leaves the index in the folder.

Pages are asked for by HTTP, each with addresses that nobody has asked before and then again; what
is printed is the median and the slowest. The peer is the same question in one DuckDB process that
scans the Delta tables: the fifty rows and their number, without the lists to choose from. For full
text the peer looks through the texts with `contains`.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

import duckdb
import psutil
from _browser_lake import write_lake
from rich.console import Console
from rich.table import Table

from udfs.lake import load_delta_extension

ROWS = int(os.environ.get("ROWS", "1000000"))
TRAJLAKE = Path(sys.executable).with_name("trajlake")

JOINED = """
    from trajectories
    left join (
        select trajectory_id, reason, rater_score from curated_trajectories
        where recipe = 'default'
    ) using (trajectory_id)
    left join (select trajectory_id, step_count from trajectory_flags) using (trajectory_id)
    left join (select trajectory_id, estimated_tokens from conversations) using (trajectory_id)
    where {where}
"""
LIST = f"""
    select trajectory_id, left(user_query, 200), source, reason, rater_score, score, step_count,
        estimated_tokens
    {JOINED}
    order by {{order}} desc nulls last, trajectory_id
    limit 50 offset {{offset}}
"""
COUNT = f"select count(*) {JOINED}"
IN_TEXTS = (
    "contains(user_query, '{0}') or len(list_filter(steps, lambda s: contains(s.output, '{0}') "
    "or contains(s.next_observation, '{0}'))) > 0"
)


def seconds(ask: Callable[[], object]) -> float:
    started = time.perf_counter()
    ask()
    return time.perf_counter() - started


class Pages:
    """A browser's requests to a server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.first_byte = 0.0

    def get(self, path: str) -> str:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=120)
        started = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        begun = answer.read(8_192)
        self.first_byte = time.perf_counter() - started
        text = (begun + answer.read()).decode()
        connection.close()
        assert answer.status == 200, text[:2_000]
        return text

    def times(self, paths: list[str]) -> list[float]:
        return [seconds(lambda path=path: self.get(path)) for path in paths]  # type: ignore[misc]


def peer(lake: Path) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    load_delta_extension(connection)
    for name in ("trajectories", "curated_trajectories", "trajectory_flags", "conversations"):
        connection.execute(f"create view {name} as select * from delta_scan('{lake / name}')")
    return connection


class Server:
    """`trajlake ui` in a process of its own, until `stop`."""

    def __init__(self, lake: Path, folder: Path) -> None:
        environment = os.environ | {
            "TRAJLAKE_LAKE": str(lake),
            "TRAJLAKE_DB": str(folder / "trajlake.duckdb"),
            "TRAJLAKE_EXPORTS": str(folder / "exports"),
        }
        started = time.perf_counter()
        log = folder / "log"
        with log.open("w") as output:
            self._server = subprocess.Popen(
                [str(TRAJLAKE), "ui", "--port", "0"],
                env=environment,
                stdout=output,
                stderr=output,
            )
        while not (found := re.search(r":(\d+)/", log.read_text())):
            assert self._server.poll() is None, log.read_text()
            time.sleep(0.05)
        self.ready = time.perf_counter() - started
        self.process = psutil.Process(self._server.pid)
        self.pages = Pages(int(found.group(1)))

    def used(self) -> str:
        times = self.process.cpu_times()
        memory = self.process.memory_info().rss / 1e6
        return f"{times.user + times.system:.0f} s of cores, {memory:,.0f} MB"

    def stop(self) -> None:
        self._server.terminate()
        self._server.wait(20)


def test_pages_of_a_million(tmp_path: Path) -> None:
    lake = Path(os.environ.get("BROWSER_LAKE") or tmp_path / "lake").resolve()
    if not (lake / "trajectories").exists():
        write_lake(ROWS, lake)
    folder = Path(os.environ.get("BROWSER_FOLDER") or tmp_path)
    console = Console(width=120)
    server = Server(lake, folder)
    try:
        console.print(f"first start: ready after {server.ready:.1f} s, {server.used()}")
        meanwhile = server.pages.times(["/", "/?sort=score", "/?source=shop"])
        started = time.perf_counter()
        while "All " not in server.pages.get("/?q=answer"):
            time.sleep(2)
        index = time.perf_counter() - started
        files = [file for file in folder.glob("*.ui/**/*") if file.is_file()]
        rows = sum(file.stat().st_size for file in files if file.name.startswith("rows-"))
        size = sum(file.stat().st_size for file in files) - rows
        console.print(
            f"index complete after {index:.0f} s more, {server.used()}; pages meanwhile took "
            f"{1000 * max(meanwhile):.0f} ms at most; on disk: rows {rows / 1e6:,.0f} MB, index "
            f"{size / 1e6:,.0f} MB"
        )
    finally:
        server.stop()
    server = Server(lake, folder)
    try:
        console.print(f"second start: ready after {server.ready:.1f} s, {server.used()}")
        while "All " not in server.pages.get("/?q=answer"):
            time.sleep(0.2)
        measure(console, server.pages, peer(lake), server.pages.get("/"))
    finally:
        server.stop()


def measure(
    console: Console, pages: Pages, connection: duckdb.DuckDBPyConnection, first: str
) -> None:
    ids = re.findall(r'class="item" href="/trajectory/([0-9a-f]{64})', first)
    middle = ["8", "3", "c"]
    deep = [
        f"/?sort=score&after={row[0]}"
        for each in middle
        for row in connection.execute(
            f"select trajectory_id from trajectories where starts_with(trajectory_id, '{each}') "
            "limit 1"
        ).fetchall()
    ]

    def asked(where: str = "true", order: str = "ingested_at", offset: int = 0) -> float:
        def ask() -> None:
            sql = LIST.format(where=where, order=order, offset=offset)
            connection.execute(sql).fetchall()
            connection.execute(COUNT.format(where=where)).fetchall()

        return seconds(ask)

    table = Table(title="pages, in ms", title_justify="left")
    for column in ("page", "first", "again: median", "slowest", "peer", "peer / page"):
        table.add_column(column, justify="left" if column == "page" else "right")

    def row(name: str, paths: list[str], compared: float | None) -> float:
        fresh = pages.times(paths)
        again = pages.times(paths * 3)
        middle = statistics.median(again)
        table.add_row(
            name,
            f"{1000 * max(fresh):.0f}",
            f"{1000 * middle:.0f}",
            f"{1000 * max(again):.0f}",
            "" if compared is None else f"{1000 * compared:,.0f}",
            "" if compared is None else f"{compared / middle:.0f}×",
        )
        return middle

    row("first page", ["/"], asked())
    row("last page", ["/?before=end"], None)
    row("deep page, by score", deep, asked(order="score", offset=500_000))
    row("sorted by tokens", ["/?sort=tokens"], None)
    row("lists: source, verdict", ["/?source=shop&verdict=kept"], None)
    where = "rater_score >= 4 and step_count < 5"
    compared = asked("rater_score >= 4 and step_count < 5")
    row("condition", [f"/?where={quote(where)}"], compared)
    where = "contains(user_query, 'kai bo')"
    row("condition on a text", [f"/?where={quote(where)}"], asked(where))
    compared = asked(IN_TEXTS.format("gaibo"))
    row("full text, a word of one in ten", ["/?q=gaibo"], compared)
    row("full text, a word of nearly all", ["/?q=answer"], None)
    row("full text, list, sort", ["/?q=answer&source=shop&sort=score"], None)
    row("look: all of it", [f"/trajectory/{each}" for each in ids[:4]], None)
    begun = []
    for each in ids[4:10]:
        pages.get(f"/trajectory/{each}")
        begun.append(pages.first_byte)
    console.print(f"look: its steps are there after {1000 * statistics.median(begun):.0f} ms")
    row("compare", [f"/compare?left={ids[0]}&right={ids[1]}"], None)
    row("overview", ["/overview"], None)
    console.print(table)
    console.print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
