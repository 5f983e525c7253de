"""The lake as a reader opens it: every view and table, read-only, while a build may be running.

DuckDB lets one process write a database file or several read it, never both at once: a reader of
`trajlake.duckdb` would be refused by a build, or refuse it. So no command opens the file. It holds
views and seeds only, a megabyte or two; what is opened is a copy, made in a moment and gone when
the connection closes. The tables themselves are Delta tables, which anyone may read at any time.

A copy that a write came in between is made again: the file or its log changed meanwhile, or
DuckDB's checksums do not hold. Where the file is missing, broken or of another lake, the tables are
there without it, and a note says what is missing and what to do.

Not for a process that has the file open by DuckDB itself: on POSIX systems, closing a file that was
only read gives up every lock of the process on it.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from udfs.errors import LakeError
from udfs.lake import load_delta_extension, table_names, table_scan
from udfs.settings import database_file, lake_root

# A write takes milliseconds, so a second look nearly always finds the file at rest.
_TRIES = 40
_PAUSE_S = 0.025

_IS_WRITTEN = "it is being written all the time"


class UnreadableDatabase(Exception):
    """The database file cannot be used; the text says why."""


def _on_stderr(line: str) -> None:
    print(line, file=sys.stderr)


def open_lake(report: Callable[[str], None] = _on_stderr) -> duckdb.DuckDBPyConnection:
    """A connection to everything in the lake, on which nothing of it can be changed.

    Times are in UTC. Views see the Delta tables as they are when a query begins.

    Args:
        report: is told where only the tables are there, and why.

    Raises:
        LakeError: nothing has been built yet.
    """
    tables = table_names()
    try:
        connection = open_database()
    except UnreadableDatabase as error:
        if not tables:
            raise LakeError(
                f"The lake at {lake_root()} has not been built yet ({error}). Run `dbt build` in "
                "an active environment, or `make build` on a fresh machine."
            ) from error
        report(
            f"note: {error}. Only the Delta tables are here, no views and no seeds; `dbt build` "
            "makes them."
        )
        connection = duckdb.connect(config=_config())
    load_delta_extension(connection)
    known = {
        name
        for (name,) in connection.execute(
            "select view_name from duckdb_views() union select table_name from duckdb_tables()"
        ).fetchall()
    }
    for name in tables:
        if name not in known:  # not built into views yet
            connection.execute(f'create temp view "{name}" as select * from {table_scan(name)}')
    connection.execute("set timezone = 'UTC'")
    return connection


def open_database() -> duckdb.DuckDBPyConnection:
    """A read-only connection to a copy of the database file.

    Raises:
        UnreadableDatabase: there is none, it is broken, or its views are of another lake.
    """
    database = database_file()
    problem = _IS_WRITTEN
    for _ in range(_TRIES):
        if _state(database)[0] is None:
            raise UnreadableDatabase(f"there is no {database}")
        try:
            connection = _open_copy(database)
        except (duckdb.Error, OSError) as error:
            problem = str(error).splitlines()[0]
        else:
            if connection:
                _check_lake(database, connection)
                return connection
            problem = _IS_WRITTEN
        time.sleep(_PAUSE_S)
    raise UnreadableDatabase(f"{database} cannot be read ({problem})")


def _open_copy(database: Path) -> duckdb.DuckDBPyConnection | None:
    """Copy the file and its log, and open that; None where a write came in between.

    The copy has the file's name, which is the catalog's, and views name their catalog. Once it is
    open its folder may go: the system keeps an open file until it is closed.
    """
    with tempfile.TemporaryDirectory(prefix="trajlake-") as folder:
        copy = Path(folder, database.name)
        before = _state(database)
        for end in (".wal", ""):
            source = database.with_name(database.name + end)
            if not end or source.exists():
                shutil.copyfile(source, copy.with_name(copy.name + end))
        if _state(database) != before:
            return None
        return duckdb.connect(str(copy), read_only=True, config=_config())


def _state(database: Path) -> tuple[object, object]:
    """What changes when the file or its log is written; None where there is none."""

    def of(path: Path) -> tuple[int, int, int] | None:
        try:
            found = path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    return of(database), of(database.with_name(f"{database.name}.wal"))


def _config() -> dict[str, str | bool | int | float | list[str]]:
    """Where a large query spills to: by itself DuckDB would choose a folder beside the copy."""
    return {"temp_directory": f"{tempfile.gettempdir()}/trajlake-spill-{os.getpid()}"}


def _check_lake(database: Path, connection: duckdb.DuckDBPyConnection) -> None:
    """Refuse views over another lake: `TRAJLAKE_LAKE` would be passed over in silence."""
    lakes = {
        path.replace("''", "'").rpartition("/")[0]
        for (path,) in connection.execute(
            r"""
            select regexp_extract(sql, 'AS SELECT \* FROM delta_scan\(''((?:[^'']|'''')+)''\);$', 1)
            from duckdb_views()
            where not internal
            """
        ).fetchall()
        if path
    }
    if lakes and lakes != {lake_root()}:
        connection.close()
        raise UnreadableDatabase(
            f"the views in {database} are over the lake at {', '.join(sorted(lakes))}, and "
            f"TRAJLAKE_LAKE is {lake_root()}"
        )
