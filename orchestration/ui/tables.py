"""Delta tables as a request sees them: each at the version that was newest when it began.

A build commits table by table, and may stop half way. A request asks what is there once, at its
beginning, and reads that; a table that is missing or cannot be read is a sentence on the page.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
from deltalake.exceptions import DeltaError

from udfs import lake
from udfs.errors import LakeError
from udfs.lake import load_delta_extension, path_scan, table_path

Row = dict[str, Any]

# What pages read.
TABLES = (
    "benchmark_checks",
    "benchmark_items",
    "conversations",
    "curated_trajectories",
    "funnel",
    "human_labels",
    "labels",
    "near_duplicates",
    "personal_data",
    "preference_pairs",
    "quarantine",
    "ratings",
    "raw_records",
    "sft_samples",
    "task_keys",
    "training_lineage",
    "training_plan",
    "training_runs",
    "trajectories",
    "trajectory_flags",
    "verifications",
)

# After so long a query is ended: a page that takes longer helps nobody.
_LONGEST_S = 60.0

# How often an object store is asked for newer versions; a folder is looked at every time.
_REMOTE_S = 5.0

# States whose views are kept for requests that still read them.
_KEPT_STATES = 20

_WORD = re.compile(r"\w+")


class Unavailable(Exception):
    """Something that cannot be shown; the text says why and what to do, for a reader."""


@dataclass(frozen=True, eq=False)
class State:
    """The lake at a moment: table → version and identity, and why other tables cannot be read."""

    versions: Mapping[str, int]
    identities: Mapping[str, str]
    problems: Mapping[str, str]
    schema: str
    made: set[str] = field(default_factory=set)

    def key(self, names: tuple[str, ...]) -> str:
        """What changes when one of these tables does, or is made anew."""
        found = [(name, self.versions.get(name), self.identities.get(name)) for name in names]
        return hashlib.sha256(repr(found).encode()).hexdigest()


@dataclass(frozen=True)
class _Seen:
    """A table when it was last looked at: what its log ended with, its version and identity, or
    a problem."""

    mark: object
    version: int | None
    identity: str
    problem: str | None
    at: float


class Tables:
    """The tables of the lake, for any number of threads."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(
            config={"temp_directory": f"{tempfile.gettempdir()}/trajlake-spill-{os.getpid()}"}
        )
        load_delta_extension(self._connection)
        self._connection.execute("set global timezone = 'UTC'")
        self._lock = threading.RLock()
        self._seen: dict[str, _Seen] = {}
        self._states: list[State] = []
        self._made_states = 0

    def now(self) -> State:
        """The lake as it is now."""
        with self._lock:
            for name in TABLES:
                self._look_at(name)
            versions = {n: s.version for n, s in self._seen.items() if s.version is not None}
            identities = {name: self._seen[name].identity for name in versions}
            problems = {n: s.problem for n, s in self._seen.items() if s.problem is not None}
            given = (versions, identities, problems)
            for state in self._states:
                if (state.versions, state.identities, state.problems) == given:
                    return state
            state = State(*given, f"s{self._made_states}")
            self._made_states += 1
            self._keep(state)
            return state

    def _keep(self, state: State) -> None:
        """Have a place for a state's views, at the cost of the oldest one's."""
        if state in self._states:
            return
        self._connection.execute(f"create schema {state.schema}")
        state.made.clear()
        self._states.append(state)
        if len(self._states) > _KEPT_STATES:
            self._connection.execute(f"drop schema {self._states.pop(0).schema} cascade")

    def _look_at(self, name: str) -> None:
        path, seen = table_path(name), self._seen.get(name)
        is_remote = "://" in path
        if is_remote and seen and time.monotonic() - seen.at < _REMOTE_S:
            return
        mark = None if is_remote else _end_of_log(Path(path))
        if seen and not is_remote and seen.mark == mark:
            return
        version, identity, problem = None, "", None
        try:
            table = lake.open_table(name)
            if table is None:
                problem = f"This lake has no table {name}. `dbt build` makes it."
            else:
                version, identity = table.version(), str(table.metadata().id)
        except (DeltaError, LakeError, OSError) as error:
            problem = _unreadable(name, error)
        self._seen[name] = _Seen(mark, version, identity, problem, time.monotonic())

    def view(self, state: State, name: str) -> None:
        """Have a table ready to be read in a state.

        Raises:
            Unavailable: it is missing or cannot be read.
        """
        with self._lock:
            if name in state.problems:
                raise Unavailable(state.problems[name])
            if name in state.made:
                return
            scan = path_scan(table_path(name), state.versions[name])
            try:
                self._connection.execute(
                    f"create view {state.schema}.{name} as select * from {scan}"
                )
            except duckdb.Error as error:
                raise Unavailable(_unreadable(name, error)) from error
            state.made.add(name)

    @contextmanager
    def reader(self, state: State | None = None) -> Iterator[Reader]:
        """A connection of one's own to the lake as it is in a state, or now."""
        state = state or self.now()
        with self._lock:
            self._keep(state)
            cursor = self._connection.cursor()
        try:
            cursor.execute(f"set schema = '{state.schema}'")
            yield Reader(self, state, cursor)
        finally:
            cursor.close()


class Reader:
    """Questions of one request to the lake in one state."""

    def __init__(self, tables: Tables, state: State, connection: duckdb.DuckDBPyConnection) -> None:
        self._tables = tables
        self.state = state
        self.connection = connection
        self._answers: dict[str, list[Row]] = {}

    def remembered(self, sql: str, parameters: Mapping[str, Any]) -> list[Row]:
        """The same as `rows`; the same question is asked once."""
        key = repr((sql, sorted(parameters.items())))
        if key not in self._answers:
            self._answers[key] = self.rows(sql, parameters)
        return self._answers[key]

    def rows(self, sql: str, parameters: Mapping[str, Any] | None = None) -> list[Row]:
        """The rows of a query.

        Raises:
            Unavailable: a table is missing, is of another version of the code, cannot be read, or
                the query takes too long.
        """
        with explained(self.names(sql)), limited(self.connection):
            result = self.execute(sql, parameters)
            names = [column[0] for column in result.description]
            return [dict(zip(names, row, strict=True)) for row in result.fetchall()]

    def execute(
        self, sql: str, parameters: Mapping[str, Any] | None = None
    ) -> duckdb.DuckDBPyConnection:
        """Begin a query, without a limit of time; raises as `rows` does."""
        names = self.names(sql)
        for name in names:
            self._tables.view(self.state, name)
        used = {key: value for key, value in (parameters or {}).items() if f"${key}" in sql}
        with explained(names):
            return self.connection.execute(sql, used)

    @staticmethod
    def names(sql: str) -> list[str]:
        """The tables that a query names."""
        words = set(_WORD.findall(sql))
        return [name for name in TABLES if name in words]


@contextmanager
def explained(names: list[str]) -> Iterator[None]:
    """Turns errors of DuckDB into sentences for a reader."""
    try:
        yield
    except duckdb.InterruptException as error:
        raise Unavailable(
            f"This took more than {_LONGEST_S:.0f} seconds and was ended. Narrow it down, or ask "
            "by `trajlake sql`."
        ) from error
    except (duckdb.BinderException, duckdb.CatalogException) as error:
        raise Unavailable(
            f"This lake's {' or '.join(names)} is not as this version of the project makes it "
            f"({_first_line(error)}). `dbt build` makes it anew."
        ) from error
    except duckdb.Error as error:
        raise Unavailable(_unreadable(" or ".join(names), error)) from error


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, seconds: float = _LONGEST_S) -> Iterator[None]:
    """Ends a query that takes too long."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _unreadable(name: str, error: Exception) -> str:
    return (
        f"The table {name} cannot be read ({_first_line(error)}). `trajlake doctor` says more; "
        "`dbt build` makes it anew where it holds nothing that was given or paid for."
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]


def _end_of_log(path: Path) -> object:
    """What changes when a table in a folder gets another version; None where there is no log."""
    newest: tuple[str, int, int] | None = None
    try:
        with os.scandir(path / "_delta_log") as entries:
            for entry in entries:
                if entry.name.endswith(".json") and (newest is None or entry.name > newest[0]):
                    found = entry.stat()
                    newest = (entry.name, found.st_ino, found.st_mtime_ns)
    except OSError:
        return None
    return newest
