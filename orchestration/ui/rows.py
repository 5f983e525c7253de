"""One narrow row per trajectory: what a list of trajectories is filtered, sorted and counted by.

Delta tables keep what belongs together in wide files; a page of fifty rows out of a million, with
counts, would read them from end to end. So what lists need is copied once into a file of DuckDB's
(some 150 bytes a row, kept beside the database file for the next start), which is opened read-only
and without access to anything outside it. When the lake has changed, the rows are read anew beside
the pages, which go on showing the old ones and say so.

Pages follow each other by key, not by offset: the page after trajectory X costs the same wherever
X stands, and its address shows the same trajectories after others have come.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sqlglot
from sqlglot import exp

from orchestration.ui.tables import Reader, Row, State, Tables, Unavailable, explained, limited
from udfs.errors import ConfigError
from udfs.folders import atomic_file
from udfs.recipes import FILTER_COLUMNS, checked_condition
from udfs.settings import lake_root

PAGE_ROWS = 50

# Other columns, or others of what is in them, are other rows.
_VERSION = 1

# Of a query, so many characters are in the list; all of it can be searched.
_HEAD = 200

# The number that stands for a trajectory with its content, here and in the full-text index; of 63
# bits, because the index takes no larger ones for deletions.
KEY = "(md5_number_lower(concat(trajectory_id, content_sha256)) >> 1)"
_KEY_OF_ROW = (
    "(md5_number_lower(concat(trajectories.trajectory_id, trajectories.content_sha256)) >> 1)"
)

# Columns by the table that they are from: name → SQL over that table's row.
_FROM_TRAJECTORIES = (
    "trajectory_id", "content_sha256", "source", "environment", "task_type", "task_id",
    "model_name", "score", "license", "is_synthetic", "generator", "raw_file", "raw_position",
    "format", "format_confidence", "parser_version", "ingested_at",
)  # fmt: skip

_JOINED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "trajectory_flags": (
        "trajectory_id",
        {
            "step_count": "step_count",
            "trainable_step_count": "cast(len(trainable_steps) as integer)",
            "flagged_step_count": "flagged_step_count",
            "repeated_step_count": "repeated_step_count",
            "self_correction_count": "self_correction_count",
            "first_error_step": "first_error_step",
            "has_loop": "has_loop",
            "is_finished": "is_finished",
            "flag_names": "flag_names",
        },
    ),
    "verifications": (
        "trajectory_id",
        {
            "calls": "calls",
            "calls_checked": "calls_checked",
            "format_ok": "format_ok",
            "first_failed_step": "first_failed_step",
            "error_observations": "error_observations",
            "error_classes": "error_classes",
        },
    ),
    "conversations": ("trajectory_id", {"estimated_tokens": "estimated_tokens"}),
    "task_keys": ("trajectory_id", {"task_key": "task_key"}),
    "near_duplicates": (
        "content_sha256",
        {
            "near_duplicate_cluster": "cluster_id",
            "near_duplicate_cluster_size": "cluster_size",
        },
    ),
    "benchmark_checks": ("trajectory_id", {"benchmarks": "benchmarks"}),
    "personal_data": (
        "trajectory_id",
        {"personal_data_kinds": "kinds", "personal_data_count": "finding_count"},
    ),
    # Of a content's ratings the newest; `rater_score` is the verdict's, where there is one.
    "ratings": (
        "content_sha256",
        {
            "rater_id": "rater_id",
            "rate_model": "rate_model",
            "rating_status": "status",
            "rated_at": "rated_at",
            "shown_share": "shown_share",
            "rated": "rater_score",
        },
    ),
}
_NEWEST_RATING = """
    select content_sha256, unnest(arg_max(
        {
            'rater_id': rater_id, 'rate_model': rate_model, 'status': status,
            'rated_at': rated_at, 'shown_share': shown_share, 'rater_score': rater_score
        },
        rated_at
    ))
    from ratings
    group by content_sha256
"""

READ = ("trajectories", "curated_trajectories", *_JOINED)

# Conditions may name these; the others of them are read from `trajectories` itself.
_OF_TRAJECTORIES = ("user_query", "system_prompt", "tools", "steps", "other_information")
_TYPES = {field.name: field.type for field in FILTER_COLUMNS} | {
    "reason": pa.string(),
    "is_kept": pa.bool_(),
    "rated_at": pa.timestamp("us", tz="UTC"),
}
_NARROW = (
    *_FROM_TRAJECTORIES,
    "rater_score",
    *(n for _, columns in _JOINED.values() for n in columns if n in _TYPES),
    "reason",
    "is_kept",
)
COLUMNS = pa.schema([(name, _TYPES[name]) for name in (*_NARROW, *_OF_TRAJECTORIES)])

# What a list shows, beside the verdict.
_LISTED = (
    "place", "trajectory_id", "content_sha256", "query_head", "query_length", "source",
    "rater_score", "score", "step_count", "flagged_step_count", "estimated_tokens", "model_name",
    "ingested_at",
)  # fmt: skip

# What can be chosen from lists with counts: name in an address → column and title.
FACETS = {
    "source": ("source", "Source"),
    "verdict": ("reason", "Verdict"),
    "environment": ("environment", "Environment"),
    "status": ("rating_status", "Rating"),
    "model": ("model_name", "Model"),
    "format": ("format", "Format"),
}
NONE = "(none)"
_FACET_VALUES = 12

SORTS = {
    "ingested": ("ingested_at", "when it came"),
    "rater": ("rater_score", "rater's score"),
    "score": ("score", "environment's score"),
    "steps": ("step_count", "steps"),
    "tokens": ("estimated_tokens", "tokens"),
    "flags": ("flagged_step_count", "flagged steps"),
    "source": ("source", "source"),
    "id": ("place", "id"),
}
RELEVANCE = "relevance"

# Filters whose counts, and conditions on texts whose answers, are remembered.
_REMEMBERED = 64

# A lake that changes all the time is read again after so many times as long as reading took.
_REST = 3.0
_SHORTEST_REST_S = 2.0


@dataclass(frozen=True)
class Query:
    """What is asked for, as an address has it."""

    q: str = ""
    where: str = ""
    recipe: str = ""
    source: str = ""
    verdict: str = ""
    environment: str = ""
    status: str = ""
    model: str = ""
    format: str = ""
    labelled: str = ""  # yes, no, or either
    sort: str = ""
    order: str = ""
    after: str = ""
    before: str = ""  # an id, or `end` for the last page

    @classmethod
    def of(cls, given: Mapping[str, str]) -> Query:
        """The query of an address; what it does not know is passed over."""
        names = {each.name for each in fields(cls)}
        return cls(**{k: v.strip() for k, v in given.items() if k in names and v.strip()})

    def address(self, **changes: str) -> str:
        """The address of this query with changes, from its first page on unless they say else."""
        asked = replace(self, **{"after": "", "before": ""} | changes)
        given = {f.name: getattr(asked, f.name) for f in fields(asked)}
        text = urlencode({name: value for name, value in given.items() if value})
        return f"/?{text}" if text else "/"

    @property
    def filters(self) -> tuple[str, ...]:
        """What decides which trajectories match, and not in which order."""
        names = ("q", "where", "recipe", "labelled", *FACETS)
        return tuple(getattr(self, name) for name in names)


@dataclass(frozen=True)
class Facet:
    """A list to choose from: values with how many trajectories have each."""

    name: str
    title: str
    values: tuple[tuple[str, int], ...]
    left_out: int
    chosen: str


@dataclass(frozen=True)
class Hits:
    """What full text found: keys, the best first, of `total` documents."""

    keys: npt.NDArray[np.uint64]
    total: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """A page of trajectories."""

    rows: list[Row]
    total: int
    first: int  # the number of the first row, from 1; 0 where there is none
    facets: tuple[Facet, ...]

    @property
    def last(self) -> int:
        """The number of the last row."""
        return self.first + len(self.rows) - 1 if self.rows else 0


class Rows:
    """The rows of the lake in one state, read-only."""

    def __init__(self, tables: Tables, state: State, folder: Path | None = None) -> None:
        """Read them.

        Args:
            tables: the lake.
            state: as it is to be shown.
            folder: where rows are kept for the next start; None for nowhere.

        Raises:
            Unavailable: `trajectories` is missing or cannot be read.
        """
        self.state = state
        self.read_at = datetime.now(UTC)
        self.problems: dict[str, str] = {}
        self._tables = tables
        started = time.monotonic()
        if folder is None or not self._open_kept(folder):
            with tempfile.TemporaryDirectory(prefix="trajlake-rows-") as beside:
                file = Path(beside, "rows.duckdb")
                with tables.reader(state) as reader:
                    self.recipes = self._write(reader, file)
                if folder is not None and not self.problems:
                    file = self._keep(file, folder)
                self._connection = _opened(file)
        self.count: int = self._connection.execute("select count(*) from rows").fetchall()[0][0]
        self.seconds = time.monotonic() - started
        self._lock = threading.Lock()
        self._counts: OrderedDict[object, tuple[int, tuple[Facet, ...]]] = OrderedDict()
        self._matching: OrderedDict[str, npt.NDArray[np.uint64]] = OrderedDict()

    def _open_kept(self, folder: Path) -> bool:
        """Open the rows of this state that an earlier start has kept, if it has."""
        file = folder / self._kept_name()
        if not file.exists():
            return False
        try:
            self._connection = _opened(file)
            found = self._connection.execute("select recipe from recipes order by number")
        except (duckdb.Error, OSError):
            return False
        self.recipes = tuple(recipe for (recipe,) in found.fetchall())
        return True

    def _keep(self, file: Path, folder: Path) -> Path:
        """Move the rows to where the next start finds them, in the place of older ones; gives
        where they are."""
        kept = folder / self._kept_name()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(kept) as staging:
                shutil.copyfile(file, staging)
            for other in folder.glob("rows-*.duckdb"):
                if other != kept:
                    other.unlink(missing_ok=True)
        except OSError:
            return file
        return kept

    def _kept_name(self) -> str:
        state = f"{_VERSION} {duckdb.__version__} {lake_root()} {self.state.key(READ)}"
        return f"rows-{hashlib.sha256(state.encode()).hexdigest()[:16]}.duckdb"

    def _write(self, reader: Reader, file: Path) -> tuple[str, ...]:
        """Write the rows into a file; gives the recipes that have verdicts.

        A table whose files turn out to be broken leaves its columns empty.
        """
        for name in READ[1:]:
            self._check(reader, name, "limit 0")
        try:
            return self._copy(reader, file)
        except Unavailable:
            healthy = [name for name in READ[1:] if name not in self.problems]
            for name in healthy:
                self._check(reader, name, "")
            if all(name not in self.problems for name in healthy):
                raise
            return self._copy(reader, file)

    def _check(self, reader: Reader, name: str, end: str) -> None:
        """Note why a table cannot be read, if it cannot."""
        names = ["is_kept", "reason", "rater_score", "recipe", "trajectory_id"]
        if name in _JOINED:
            names = [_JOINED[name][0], *_JOINED[name][1].values()]
        source = f"({_NEWEST_RATING})" if name == "ratings" else name
        columns = ", ".join(names) if end else f"max(hash({', '.join(names)}))"
        try:
            reader.rows(f"select {columns} from {source} {end}")
        except Unavailable as error:
            self.problems[name] = str(error)

    def _copy(self, reader: Reader, file: Path) -> tuple[str, ...]:
        recipes: list[str] = []
        if "curated_trajectories" not in self.problems:
            found = reader.rows("select distinct recipe from curated_trajectories order by recipe")
            recipes = [row["recipe"] for row in found]
        selected = [f"trajectories.{name}" for name in _FROM_TRAJECTORIES]
        joins: list[str] = []
        for table, (key, columns) in _JOINED.items():
            if table in self.problems:
                selected += [f"cast(null as {_sql_type(n)}) as {n}" for n in columns]
                continue
            source = f"({_NEWEST_RATING})" if table == "ratings" else table
            selected += [f"{table}_of.{name}" for name in columns]
            named = ", ".join(f"{sql} as {name}" for name, sql in columns.items())
            joins.append(
                f"left join (select {key}, {named} from {source}) as {table}_of "
                f"on trajectories.{key} = {table}_of.{key}"
            )
        scores = []
        for number, _ in enumerate(recipes):
            joins.append(
                f"left join (select * from curated_trajectories where recipe = $recipe_{number}) "
                f"as verdict_{number} "
                f"on trajectories.trajectory_id = verdict_{number}.trajectory_id"
            )
            selected += [
                f"verdict_{number}.reason as reason_{number}",
                f"verdict_{number}.is_kept as is_kept_{number}",
            ]
            scores.append(f"verdict_{number}.rater_score")
        scores += ["ratings_of.rated"] if "ratings" not in self.problems else ["null"]
        target = f"rows_{id(self)}"
        file.unlink(missing_ok=True)
        reader.connection.execute(f"attach '{file}' as {target}")
        try:
            reader.execute(
                f"""
                create table {target}.rows as
                select
                    row_number() over (order by trajectories.trajectory_id) as place,
                    {_KEY_OF_ROW} as key,
                    left(trajectories.user_query, {_HEAD}) as query_head,
                    coalesce(length(trajectories.user_query), 0) as query_length,
                    cast(coalesce({", ".join(scores)}) as double) as rater_score,
                    {", ".join(selected)}
                from trajectories
                {" ".join(joins)}
                order by place
                """,
                {f"recipe_{number}": recipe for number, recipe in enumerate(recipes)},
            ).fetchall()
            reader.connection.execute(f"create table {target}.recipes (number int, recipe varchar)")
            for row in enumerate(recipes):
                reader.connection.execute(f"insert into {target}.recipes values (?, ?)", row)
        finally:
            reader.connection.execute(f"detach {target}")
        return tuple(recipes)

    def recipe(self, wanted: str) -> str:
        """The recipe whose verdicts are shown: the wanted one, `default`, or the first.

        Raises:
            Unavailable: there is no such recipe.
        """
        if wanted and wanted not in self.recipes:
            raise Unavailable(
                f"There are no verdicts of a recipe '{wanted}' here; there are: "
                f"{', '.join(self.recipes) or 'none'}."
            )
        if wanted or not self.recipes:
            return wanted
        return "default" if "default" in self.recipes else self.recipes[0]

    def ask(
        self, sql: str, parameters: Mapping[str, Any] | None = None, recipe: str = ""
    ) -> list[Row]:
        """Rows of a query over `found`: all rows, with `reason` and `is_kept` by a recipe."""
        with self._cursor() as cursor, explained(["rows"]), limited(cursor):
            return _rows(cursor, f"with {self._base(recipe)} {sql}", parameters or {})

    def keys(self) -> npt.NDArray[np.uint64]:
        """The numbers of all trajectories, in order."""
        with self._cursor() as cursor:
            found = cursor.execute("select key from rows order by key").fetchnumpy()["key"]
        return np.asarray(found, dtype=np.uint64)

    def report(self, sql: str, recipe: str) -> list[Row]:
        """Rows of a query of the report's over `curated_trajectories`, of a recipe."""
        verdicts = "curated_trajectories as (select *, $recipe as recipe from found)"
        inner = sql.strip()
        rest = f", {inner.removeprefix('with ')}" if inner.startswith("with ") else f" {inner}"
        with self._cursor() as cursor, explained(["rows"]), limited(cursor):
            base = f"with {self._base(recipe)}, {verdicts}{rest}"
            return _rows(cursor, base, {"recipe": recipe})

    def find(
        self,
        query: Query,
        search: Callable[[str], Hits],
        labelled: Callable[[], Sequence[str]],
    ) -> tuple[Found, Hits | None]:
        """A page of what matches a query.

        Args:
            query: what is asked for.
            search: text → what full text finds.
            labelled: gives the contents that somebody has labelled.

        Raises:
            ConfigError: the condition may not be used.
            Unavailable: something cannot be read, or is not there.
        """
        with self._cursor() as cursor, explained(["rows"]), limited(cursor):
            hits = search(query.q) if query.q else None
            asked = _Asked(self, cursor, query, hits, labelled)
            total, facets = self._counted(asked)
            rows, first = asked.page(total)
            return Found(rows, total, first, facets), hits

    def _counted(self, asked: _Asked) -> tuple[int, tuple[Facet, ...]]:
        """How many match, and the lists to choose from; the same question is counted once."""
        is_settled = not asked.query.labelled and (asked.hits is None or not asked.hits.notes)
        key = (asked.query.filters, asked.hits.total if asked.hits else None)
        with self._lock:
            if is_settled and key in self._counts:
                self._counts.move_to_end(key)
                return self._counts[key]
        counted = asked.count()
        with self._lock:
            self._counts[key] = counted
            while len(self._counts) > _REMEMBERED:
                self._counts.popitem(last=False)
        return counted

    def matching(self, condition: str) -> npt.NDArray[np.uint64]:
        """Keys of trajectories for which a condition on their texts holds: read from the table
        itself, once."""
        with self._lock:
            if condition in self._matching:
                self._matching.move_to_end(condition)
                return self._matching[condition]
        with self._tables.reader(self.state) as reader, limited(reader.connection):
            names = ", ".join(name for name in COLUMNS.names if name in _TRAJECTORY_NAMES)
            found = reader.execute(
                f"select {KEY} as key from (select {names} from trajectories) where {condition}"
            ).fetchnumpy()["key"]
        keys = np.asarray(found, dtype=np.uint64)
        with self._lock:
            self._matching[condition] = keys
            while len(self._matching) > _REMEMBERED:
                self._matching.popitem(last=False)
        return keys

    def listed(self, recipe: str, places: Sequence[int]) -> str:
        """The query for what a list shows of the rows of these places."""
        # By DuckDB's own number of a row, from a subquery: it fetches these and scans no others.
        numbers = ", ".join(str(place - 1) for place in places)
        return (
            f"select {', '.join(_LISTED)}, {self._verdict(recipe)} from rows "
            f"where rowid in (select unnest([{numbers}]))"
        )

    def _verdict(self, recipe: str) -> str:
        if not recipe:
            return "cast(null as varchar) as reason, cast(null as boolean) as is_kept"
        number = self.recipes.index(recipe)
        return f"reason_{number} as reason, is_kept_{number} as is_kept"

    def _base(self, recipe: str) -> str:
        verdict = self._verdict(recipe)
        left_out = [f"{n}_{i}" for i in range(len(self.recipes)) for n in ("reason", "is_kept")]
        without = f" exclude ({', '.join(left_out)})" if left_out else ""
        return f"found as (select *{without}, {verdict} from rows)"

    def base(self, recipe: str) -> str:
        """The common table expression `found`."""
        return self._base(recipe)

    def _cursor(self) -> duckdb.DuckDBPyConnection:
        return self._connection.cursor()


_TRAJECTORY_NAMES = {*_FROM_TRAJECTORIES, *_OF_TRAJECTORIES}


class _Asked:
    """A query under way, on a connection of its own."""

    def __init__(
        self,
        rows: Rows,
        cursor: duckdb.DuckDBPyConnection,
        query: Query,
        hits: Hits | None,
        labelled: Callable[[], Sequence[str]],
    ) -> None:
        self.query = query
        self.hits = hits
        self._cursor = cursor
        self._sheet = rows
        self._recipe = rows.recipe(query.recipe)
        self._with = rows.base(self._recipe)
        self._joins = ""
        self._values: dict[str, Any] = {}
        # By facet, so that each list can leave its own choice out; `` for all others.
        self._conditions: dict[str, str] = {}
        if hits is not None:
            ranks = pa.array(np.arange(len(hits.keys)), pa.int64())
            cursor.register("hits", pa.table({"key": pa.array(hits.keys), "relevance": ranks}))
            self._joins += " inner join hits using (key)"
        if query.where:
            self._add_condition(rows, query.where)
        if query.labelled in ("yes", "no"):
            contents = pa.table({"content": pa.array(labelled(), pa.string())})
            cursor.register("labelled", contents)
            word = "in" if query.labelled == "yes" else "not in"
            self._conditions["labelled"] = f"content_sha256 {word} (select content from labelled)"
        for name, (column, _) in FACETS.items():
            if value := getattr(query, name):
                self._values[name] = value
                is_it = f"{column} = ${name}"
                self._conditions[name] = f"{column} is null" if value == NONE else is_it

    def _add_condition(self, rows: Rows, where: str) -> None:
        try:
            condition = checked_condition(where, COLUMNS, what=f"The condition `{where}`")
        except RecursionError:
            raise ConfigError("The condition is nested too deeply. Write a flatter one.") from None
        for number, part in enumerate(_conjuncts(condition)):
            names = _names(part)
            of_texts = names & set(_OF_TRAJECTORIES)
            if not of_texts:
                self._conditions[f"where_{number}"] = f"({part})"
                continue
            if beside := names - _TRAJECTORY_NAMES:
                raise ConfigError(
                    f"The condition `{part}` compares texts ({', '.join(sorted(of_texts))}) with "
                    f"{', '.join(sorted(beside))}, which are read from different tables. Put them "
                    "into conditions of their own with `and` between them, or ask by `trajlake "
                    "sql`."
                )
            keys = pa.table({"key": pa.array(rows.matching(part))})
            self._cursor.register(f"matching_{number}", keys)
            self._conditions[f"where_{number}"] = f"key in (select key from matching_{number})"

    def _from(self, *without: str) -> str:
        kept = [text for name, text in self._conditions.items() if name not in without]
        return f"from found{self._joins}" + (f" where {' and '.join(kept)}" if kept else "")

    def _ask(self, sql: str, **values: Any) -> list[Row]:
        return _rows(self._cursor, f"with {self._with} {sql}", self._values | values)

    def count(self) -> tuple[int, tuple[Facet, ...]]:
        """How many match, and of each list the values with their counts."""
        free = [name for name in FACETS if not getattr(self.query, name)]
        columns = {name: FACETS[name][0] for name in FACETS}
        sets = "".join(f", ({columns[name]})" for name in free)
        marks = ", ".join(f"grouping({columns[name]}) as g_{name}" for name in free)
        values = ", ".join(f"{columns[name]} as v_{name}" for name in free)
        chosen = f", {marks}, {values}" if free else ""
        found = self._ask(
            f"select count(*) as n{chosen} {self._from()} group by grouping sets ((){sets})"
        )
        total = 0
        counts: dict[str, list[tuple[str | None, int]]] = {name: [] for name in FACETS}
        for row in found:
            of = [name for name in free if row[f"g_{name}"] == 0]
            if of:
                counts[of[0]].append((row[f"v_{of[0]}"], row["n"]))
            else:
                total = row["n"]
        for name in FACETS:
            if name not in free:
                rows = self._ask(
                    f"select {columns[name]} as v, count(*) as n {self._from(name)} group by v"
                )
                counts[name] = [(row["v"], row["n"]) for row in rows]
        return total, tuple(self._facet(name, counts[name]) for name in FACETS)

    def _facet(self, name: str, counts: list[tuple[str | None, int]]) -> Facet:
        named = [(NONE if value is None else value, number) for value, number in counts]
        named.sort(key=lambda each: (-each[1], each[0]))
        chosen = getattr(self.query, name)
        shown = named[:_FACET_VALUES]
        if chosen and chosen not in dict(shown):
            shown.append((chosen, dict(named).get(chosen, 0)))
        return Facet(name, FACETS[name][1], tuple(shown), max(0, len(named) - len(shown)), chosen)

    def page(self, total: int) -> tuple[list[Row], int]:
        """The rows of the page, and the number of the first."""
        column, descending = self._order()
        query = self.query
        anchor: Row | None = None
        is_backward = bool(query.before)
        anchor_id = query.after or query.before
        if anchor_id and anchor_id != "end":
            rows = self._ask(
                f"select {column} as value, place from found{self._joins} "
                "where trajectory_id = $anchor",
                anchor=anchor_id,
            )
            if not rows:
                raise Unavailable(
                    "The trajectory that this page begins at is not there any more, or does not "
                    "match. Start at the first page."
                )
            anchor = rows[0]
        beyond = f"({_beyond(column, descending, anchor, is_backward)})" if anchor else "true"
        word = "desc" if descending != is_backward else "asc"
        nulls, places = ("first", "desc") if is_backward else ("last", "asc")
        base = self._from()
        base += f" {'and' if ' where ' in base else 'where'} {beyond}"
        values = {"value": anchor["value"], "place": anchor["place"]} if anchor else {}
        # Which rows first, and all of their columns then: a join would carry them for all rows.
        found = self._ask(
            f"select place, {column} as value {base} "
            f"order by {column} {word} nulls {nulls}, place {places} limit {PAGE_ROWS}",
            **{k: v for k, v in values.items() if f"${k}" in beyond},
        )
        if is_backward:
            found.reverse()
        rows = self._whole([row["place"] for row in found])
        for row, order in zip(rows, found, strict=True):
            row[column] = order["value"]
        return rows, self._number(rows, column, descending, total)

    def _whole(self, places: list[int]) -> list[Row]:
        """The rows of these places, in this order."""
        if not places:
            return []
        rows = _rows(self._cursor, self._sheet.listed(self._recipe, places), {})
        of_place = {row["place"]: row for row in rows}
        return [of_place[place] for place in places]

    def _number(self, rows: list[Row], column: str, descending: bool, total: int) -> int:
        """The number of the first row among all that match."""
        if not rows:
            return 0
        if not self.query.after and not self.query.before:
            return 1
        if self.query.before == "end":
            return total - len(rows) + 1
        first = {"value": rows[0][column], "place": rows[0]["place"]}
        before = _beyond(column, descending, first, True)
        base = self._from()
        base += f" {'and' if ' where ' in base else 'where'} ({before})"
        used = {k: v for k, v in first.items() if f"${k}" in before}
        return int(self._ask(f"select count(*) as n {base}", **used)[0]["n"]) + 1

    def _order(self) -> tuple[str, bool]:
        """The column that is sorted by, and whether its highest value comes first."""
        query = self.query
        if self.hits is not None and query.sort in ("", RELEVANCE):
            return "relevance", False
        column = SORTS.get(query.sort, SORTS["ingested"])[0]
        return column, query.order != "up"


def _opened(file: Path) -> duckdb.DuckDBPyConnection:
    """A file of rows, read-only and without access to anything else."""
    connection = duckdb.connect(
        str(file), read_only=True, config={"enable_external_access": "false"}
    )
    connection.execute("set global timezone = 'UTC'")
    return connection


def _beyond(column: str, descending: bool, anchor: Row, is_backward: bool) -> str:
    """The condition that a row comes after a row with $value and $place, or before it.

    Rows without a value come last, whatever the direction; equal ones go by place.
    """
    if is_backward:
        if anchor["value"] is None:
            return f"{column} is not null or place < $place"
        word = ">" if descending else "<"
        return f"{column} {word} $value or ({column} = $value and place < $place)"
    if anchor["value"] is None:
        return f"{column} is null and place > $place"
    word = "<" if descending else ">"
    return f"{column} {word} $value or {column} is null or ({column} = $value and place > $place)"


def _rows(cursor: duckdb.DuckDBPyConnection, sql: str, values: Mapping[str, Any]) -> list[Row]:
    used = {name: value for name, value in values.items() if f"${name}" in sql}
    result = cursor.execute(sql, used)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _conjuncts(condition: str) -> list[str]:
    """The parts of a checked condition that all have to hold."""
    tree = sqlglot.parse_one(condition, dialect="duckdb")
    parts = tree.flatten() if isinstance(tree, exp.And) else [tree]
    return [part.sql(dialect="duckdb") for part in parts]


def _names(condition: str) -> set[str]:
    """The columns that a checked condition names."""
    tree = sqlglot.parse_one(condition, dialect="duckdb")
    return {node.name.lower() for node in tree.find_all(exp.Column)}


def _sql_type(name: str) -> str:
    kind = _TYPES.get(name, pa.float64())
    if pa.types.is_list(kind):
        return "varchar[]"
    if pa.types.is_timestamp(kind):
        return "timestamptz"
    if pa.types.is_boolean(kind):
        return "boolean"
    if pa.types.is_integer(kind):
        return "bigint"
    return "double" if pa.types.is_floating(kind) else "varchar"


@dataclass
class Current:
    """The newest rows at hand, and what is known of newer ones."""

    rows: Rows
    is_older: bool
    is_reading: bool
    problem: str | None = None
    versions: Mapping[str, int] = field(default_factory=dict)


class RowsKeeper:
    """Keeps the rows of the newest state at hand, reading beside the pages."""

    def __init__(self, tables: Tables, folder: Path | None = None) -> None:
        """Read the rows as they are now.

        Args:
            tables: the lake.
            folder: where rows are kept for the next start; None for nowhere.

        Raises:
            Unavailable: there are no trajectories that can be read.
        """
        self._tables = tables
        self._folder = folder
        self._rows = Rows(tables, tables.now(), folder)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._problem: str | None = None
        self._finished = time.monotonic()
        self.changed: list[Callable[[Rows], None]] = []

    def current(self, state: State) -> Current:
        """The rows at hand; newer ones are read where the lake has changed."""
        with self._lock:
            is_older = state.key(READ) != self._rows.state.key(READ)
            rest = max(_SHORTEST_REST_S, _REST * self._rows.seconds)
            is_rested = time.monotonic() - self._finished > rest
            is_reading = self._thread is not None and self._thread.is_alive()
            if is_older and is_rested and not is_reading:
                self._thread = threading.Thread(target=self._read, args=(state,), daemon=True)
                self._thread.start()
                is_reading = True
            return Current(self._rows, is_older, is_reading, self._problem if is_older else None)

    def _read(self, state: State) -> None:
        try:
            rows = Rows(self._tables, state, self._folder)
        except Unavailable as error:
            self._problem = str(error)
        else:
            with self._lock:
                self._rows, self._problem = rows, None
            for tell in self.changed:
                tell(rows)
        finally:
            self._finished = time.monotonic()
