"""Opening the lake while others hold its database, and where that is broken."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from udfs.errors import LakeError
from udfs.locks import lock_holder
from udfs.views import UnreadableDatabase, open_database, open_lake

# Changes two views and a seed together, again and again, with checkpoints as they come.
WRITER = """
import duckdb, sys, time
end = time.monotonic() + float(sys.argv[2])
number = 0
while time.monotonic() < end:
    with duckdb.connect(sys.argv[1]) as connection:
        connection.execute("set wal_autocheckpoint = '10KB'")
        for _ in range(20):
            number += 1
            connection.execute(f'''
                begin;
                create or replace view first as select {number} as n;
                create or replace view second as select {number} as n, '{"x" * number}' as pad;
                create or replace table seed as select {number} as n from range({number});
                commit;
            ''')
            time.sleep(0.005)
"""

HOLDER = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("open", flush=True)
sys.stdin.read()
"""


@contextmanager
def held(database: Path, how: str) -> Iterator[int]:
    """Another process that has the file open, to `read` or to `write`; gives its id."""
    command = [sys.executable, "-c", HOLDER, str(database), how]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline()
        yield process.pid
        process.stdin.close()


@pytest.fixture
def database(workplace: Path) -> Path:
    """A lake with one table, and a database with a view over it and one that is not a table."""
    table = workplace / "lake" / "trajectories"
    write_deltalake(table, pa.table({"source": ["a", "b"]}))
    file = workplace / "trajlake.duckdb"
    with duckdb.connect(str(file)) as connection:
        connection.execute(
            f"""
            load delta;
            create view trajectories as select * from delta_scan('{table}');
            create view names as select source as name from {file.stem}.main.trajectories;
            create table recipes as select 'default' as recipe;
            """
        )
    return file


def test_every_copy_of_a_file_that_is_being_written_is_of_one_moment(workplace: Path) -> None:
    file = workplace / "trajlake.duckdb"
    duckdb.connect(str(file)).execute(
        "create view first as select 0 as n; create view second as select 0 as n;"
        "create table seed as select 0 as n from range(0)"
    ).close()
    with subprocess.Popen([sys.executable, "-c", WRITER, str(file), "4"]) as writer:
        seen = set()
        while writer.poll() is None:
            with open_database() as connection:
                first, second, rows, of_seed = (
                    connection.execute(
                        "select first.n, second.n, (select count(*) from seed), "
                        "(select coalesce(max(n), 0) from seed) from first, second"
                    ).fetchone()
                    or ()
                )
            assert first == second == rows == of_seed
            seen.add(first)
    assert writer.returncode == 0
    assert len(seen) > 3  # it was written meanwhile


@pytest.mark.parametrize("how", ["read", "write"])
def test_the_lake_opens_while_another_process_holds_the_database(database: Path, how: str) -> None:
    with held(database, how), open_lake() as connection:
        assert connection.sql("select count(*) from names, recipes").fetchone() == (2,)


def test_an_open_lake_keeps_no_writer_out_and_leaves_no_copy_behind(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = database.parent / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    with open_lake() as connection:
        with held(database, "write"):
            assert lock_holder(database)
        assert connection.sql("from names").fetchall() == [("a",), ("b",)]
        assert not list(temporary.iterdir())


def test_nothing_can_be_changed(database: Path) -> None:
    with open_lake() as connection:
        for change in ("drop view names", "insert into recipes values ('mine')"):
            with pytest.raises(duckdb.InvalidInputException, match="read-only"):
                connection.execute(change)


def test_times_are_in_utc(database: Path) -> None:
    with open_lake() as connection:
        (zone,) = connection.sql("select current_setting('timezone')").fetchone() or ()
    assert zone == "UTC"


@pytest.mark.parametrize("content", [None, b"", b"no database", b"\0" * 20_000])
def test_without_a_database_the_tables_are_there_and_a_note_says_what_is_missing(
    database: Path, content: bytes | None
) -> None:
    database.unlink()
    if content is not None:
        database.write_bytes(content)
    notes: list[str] = []
    with open_lake(notes.append) as connection:
        assert connection.sql("select count(*) from trajectories").fetchone() == (2,)
    # An empty file is an empty database to DuckDB, as at the beginning of a build.
    assert content == b"" or ("`dbt build`" in notes[0] and str(database) in notes[0])


def test_a_torn_log_is_told_from_a_whole_one(database: Path) -> None:
    with duckdb.connect(str(database)) as connection:
        connection.execute("pragma disable_checkpoint_on_shutdown")
        connection.execute("create view late as select 1 as n")
    log = database.with_name(f"{database.name}.wal")
    assert log.stat().st_size
    with open_lake() as connection:
        assert connection.sql("from late").fetchall() == [(1,)]
    content = log.read_bytes()
    log.write_bytes(content[:-5] + b"\xff" * 5)
    notes: list[str] = []
    with open_lake(notes.append) as connection:  # either without the last write, or by a note
        assert connection.sql("select count(*) from trajectories").fetchone() == (2,)


def test_views_of_another_lake_are_not_taken_for_this_one(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(database.parent / "other"))
    with pytest.raises(UnreadableDatabase, match=r"over the lake at .*/lake, and TRAJLAKE_LAKE"):
        open_database()
    with pytest.raises(LakeError, match="has not been built yet"):
        open_lake()


def test_a_table_that_has_no_view_yet_is_there(database: Path) -> None:
    write_deltalake(database.parent / "lake" / "ratings_batches", pa.table({"custom_id": ["x"]}))
    with open_lake() as connection:
        assert connection.sql("from ratings_batches").fetchall() == [("x",)]
        assert connection.sql("from names").fetchall() == [("a",), ("b",)]


def test_the_holder_of_a_file_is_named(database: Path) -> None:
    assert lock_holder(database) is None
    for how, writes in (("read", False), ("write", True)):
        with held(database, how) as pid:
            holder = lock_holder(database)
        assert holder and (holder.pid, holder.writes) == (pid, writes)
        assert str(pid) in str(holder)
    assert os.getpid() != pid


def test_a_file_that_is_written_all_the_time_is_given_up_after_a_while(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter(range(1_000))
    monkeypatch.setattr("udfs.views._state", lambda path: (next(times), None))
    started = time.monotonic()
    with pytest.raises(UnreadableDatabase, match="written all the time"):
        open_database()
    assert time.monotonic() - started < 10
