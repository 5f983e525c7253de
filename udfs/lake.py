"""The lake: Delta tables at ``<TRAJLAKE_LAKE>/<table>``, written as streams and read anywhere.

One write is one Delta commit: a build that is killed leaves the version before it. (An `upsert`
commits the rows that replace others before those that are new; every row goes with the one it
replaces.) Memory is bounded by a batch of rows and the Parquet writer's buffers, never by the
table; an `upsert` holds 8 bytes a row of the table and the rows that replace others. A table that
is written batch by batch gathers small files: where there are many, a write ends with a commit
that puts them together. It changes no row, so nothing that reads the table is built again.

| option             | values                                   | default     | meaning |
|--------------------|------------------------------------------|-------------|---------|
| `strategy`         | `overwrite` `append` `insert` `upsert`   | `overwrite` | what happens to rows that are there; `insert` adds rows whose key is new, `upsert` also replaces rows whose key is known |
| `unique_key`       | column or columns                        |             | the key that `insert` and `upsert` merge by; a null is no known key |
| `delete_when_null` | column                                   |             | with `upsert`: a row with a null there only deletes the row of its key |
| `partition_by`     | column or columns                        |             | Hive-style partitions of a new table |
| `table_properties` | mapping                                  |             | Delta table properties of a new table |
| `on_schema_change` | `fail` `append_new_columns` `replace`    | `fail`      | what to do when the columns differ from the table's; `replace` goes with `overwrite` only |
| `commit`           | `table` `batch`                          | `table`     | one commit for the whole stream, or one for every batch as it comes |
| `not_null`         | column or columns                        |             | a row without a value there ends the write; in a model's YAML these are the columns with the constraint `not_null` |

A lake may begin in the past of another one: some of its tables are then versions of tables there
(`Pins`), which are read where they are and never written.
"""  # noqa: E501

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, get_args, get_type_hints

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Schema, WriterProperties, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from duckdb_extensions import import_extension

from udfs.errors import LakeError
from udfs.settings import lake_root

# Small row groups let a reader skip and share work; zstd at its quickest halves what snappy leaves.
_WRITER = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=65_536)

# Rows replaced in one commit: their keys are spelt out in its predicate.
_REPLACED_ROWS = 5_000

# So many files smaller than this are put together into larger ones.
_SMALL_FILES = 32
_SMALL_FILE_BYTES = 16 * 1024 * 1024
_LARGE_FILE_BYTES = 4 * _SMALL_FILE_BYTES

# How often a long write says how far it is, in seconds.
_PROGRESS_EVERY_S = 5.0

# The keys under which a commit records what it was made from.
FINGERPRINT = "trajlake.fingerprint"
INPUTS = "trajlake.inputs"
REBUILD_KEY = "trajlake.rebuild_key"
VARS = "trajlake.vars"

# Commits that move files or say something of the table, and change no row.
NO_ROWS = ("OPTIMIZE", "VACUUM", "SET TBLPROPERTIES")

# Delta's default lets go of versions older than 30 days once enough new ones are there, whether
# their files are still there or not. Versions are let go of on purpose: `vacuum`.
_TABLE_PROPERTIES = {"delta.enableExpiredLogCleanup": "false"}

# Where a lake says which of its tables are versions of another lake's.
_PINS = "_pinned.json"


@dataclass(frozen=True)
class WriteOptions:
    """How a stream of rows meets the table that is there; the options of the table above."""

    strategy: Literal["overwrite", "append", "insert", "upsert"] = "overwrite"
    unique_key: tuple[str, ...] = ()
    delete_when_null: str | None = None
    partition_by: tuple[str, ...] = ()
    table_properties: Mapping[str, str] = field(default_factory=dict)
    on_schema_change: Literal["fail", "append_new_columns", "replace"] = "fail"
    commit: Literal["table", "batch"] = "table"
    not_null: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, model: str, config: Mapping[str, Any]) -> WriteOptions:
        """Check a model's configuration.

        Raises:
            LakeError: an option has a value that is not one of the table's, or two that do not
                go together.
        """
        values: dict[str, Any] = {k: v for k, v in config.items() if v is not None}
        for name in ("unique_key", "partition_by", "not_null"):
            given = values.get(name, ())
            values[name] = (given,) if isinstance(given, str) else tuple(given)
        for name, hint in get_type_hints(cls).items():
            allowed = get_args(hint)
            is_choice = name in values and allowed and isinstance(allowed[0], str)
            if is_choice and values[name] not in allowed:
                raise LakeError(
                    f"Model '{model}': {name}='{values[name]}' is not one of "
                    f"{', '.join(allowed)}. Set one of them in the model's config."
                )
        options = cls(**values)
        merges = options.strategy in ("insert", "upsert")
        if merges and not options.unique_key:
            raise LakeError(
                f"Model '{model}': strategy='{options.strategy}' merges by a key and none is "
                "given. Set 'unique_key', or use strategy='append'."
            )
        if options.unique_key and not merges:
            raise LakeError(
                f"Model '{model}': strategy='{options.strategy}' does not support 'unique_key'. "
                "Remove 'unique_key', or use strategy='insert' or 'upsert'."
            )
        if options.delete_when_null and options.strategy != "upsert":
            raise LakeError(
                f"Model '{model}': strategy='{options.strategy}' does not support "
                "'delete_when_null'. Remove it, or use strategy='upsert'."
            )
        if options.on_schema_change == "replace" and options.strategy != "overwrite":
            raise LakeError(
                f"Model '{model}': on_schema_change='replace' would drop columns of rows that "
                "stay. Use strategy='overwrite', or on_schema_change='append_new_columns'."
            )
        return options


@dataclass(frozen=True)
class Pins:
    """Which of a lake's tables are versions of tables of another lake.

    `replays` are tables that are built here in place of a version there, which their first
    version has the number of; so what names versions says the same in both lakes.
    """

    lake: str = ""
    versions: Mapping[str, int] = field(default_factory=dict)
    replays: Mapping[str, int] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Make a folder a lake with these pins.

        Raises:
            LakeError: it holds something else already.
        """
        there = Pins.of(str(root))
        if there == self:
            return
        if there.lake or (root.is_dir() and any(root.glob("*/_delta_log"))):
            raise LakeError(
                f"{root} holds a lake already, which would become another one by pinned versions. "
                "Set TRAJLAKE_LAKE to an empty folder."
            )
        root.mkdir(parents=True, exist_ok=True)
        (root / _PINS).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def of(cls, root: str) -> Pins:
        """The pins of a lake; empty where it has none, as one in an object store."""
        if "://" in root:
            return cls()
        try:
            return cls(**json.loads((Path(root) / _PINS).read_bytes()))
        except FileNotFoundError:
            return cls()


def pins() -> Pins:
    """The pins of this lake."""
    return Pins.of(lake_root())


def is_pinned(name: str) -> bool:
    """Whether a table is a version of another lake's table, which nothing here may change."""
    return name in pins().versions


def table_path(name: str) -> str:
    """Where a table lies: an absolute path or an object-store URL."""
    pinned = pins()
    return f"{pinned.lake if name in pinned.versions else lake_root()}/{name}"


def table_scan(name: str) -> str:
    """What SQL reads a table by: at its newest version, or the one that it is pinned to."""
    return path_scan(table_path(name), pins().versions.get(name))


def path_scan(path: str, version: int | None = None) -> str:
    """What SQL reads the Delta table at a path by: at a version, or at its newest."""
    at = "" if version is None else f", version => {version}"
    return f"delta_scan({sql_text(path)}{at})"


def open_table(name: str) -> DeltaTable | None:
    """The table at its newest version, or None where there is none yet.

    Raises:
        LakeError: the version that it is pinned to is not there any more.
    """
    version = pins().versions.get(name)
    if version is not None:
        return _PinnedTable(table_path(name), version)
    try:
        return DeltaTable(table_path(name))
    except TableNotFoundError:
        return None


class _PinnedTable(DeltaTable):
    """A table as it was at a version."""

    def __init__(self, path: str, version: int) -> None:
        try:
            super().__init__(path, version=version)
        except DeltaError as error:
            raise LakeError(
                f"Version {version} of {path} cannot be opened ({error}). It is pinned, and has "
                "been let go of."
            ) from error

    def history(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Commits up to the version, newest first.

        That of a table opened at a version is numbered wrongly by delta-rs 1.6: as if the newest
        commit were the version's.
        """
        commits = DeltaTable(self.table_uri).history()
        return [each for each in commits if each["version"] <= self.version()][:limit]

    def vacuum(self, *_: Any, **__: Any) -> list[str]:
        """Refuse: what a version does not need, others do."""
        raise LakeError(f"{self.table_uri} is pinned. Vacuum it in the lake that it is in.")


def load_delta_extension(connection: duckdb.DuckDBPyConnection) -> None:
    """Load DuckDB's Delta extension from its wheel, so that no network is needed."""
    import_extension("delta")
    connection.execute("load delta")


@cache
def _database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(config={"enable_external_file_cache": False})  # bounds its memory
    load_delta_extension(connection)
    return connection


def in_memory() -> duckdb.DuckDBPyConnection:
    """A connection to the database in memory that this process has, which reads Delta tables.

    There is one, because DuckDB checks the signature of the extension's 80 MB in each that loads
    it: a third of a second of a core. Whoever needs views makes temporary ones, which are the
    connection's own.
    """
    return _database().cursor()


def connect() -> duckdb.DuckDBPyConnection:
    """A connection with a view over every table of the lake, at its newest version."""
    connection = in_memory()
    for name in table_names():
        connection.execute(f'create temp view "{name}" as select * from {table_scan(name)}')
    return connection


def table_names() -> list[str]:
    """The names of the Delta tables in a lake, in order.

    DuckDB's file listing serves local paths and object stores alike.
    """
    logs = duckdb.sql(
        f"select distinct file from glob({sql_text(lake_root() + '/*/_delta_log/*.json')})"
    ).fetchall()
    own = {row[0].replace("\\", "/").split("/")[-3] for row in logs}
    return sorted(own | set(pins().versions))


def sql_text(value: str) -> str:
    """A text as an SQL literal."""
    return "'" + value.replace("'", "''") + "'"


def commit_metadata(name: str) -> dict[str, Any]:
    """What the newest commit that changed a table's rows recorded; empty where there is none.

    Commits that change no row (`NO_ROWS`) are passed over.
    """
    table = open_table(name)
    if table is None:
        return {}
    for commit in table.history(20):
        if not str(commit["operation"]).startswith(NO_ROWS):
            return commit
    return {}


def rows_version(name: str) -> int | None:
    """The newest version that changed a table's rows, None where there is no table."""
    version = commit_metadata(name).get("version")
    return None if version is None else int(version)


def inputs_state(inputs: str) -> str:
    """What a query over the lake depends on beside its SQL, as JSON: where the lake is, each Delta
    table's identity and newest version, and a hash of our code.

    Args:
        inputs: JSON object of names; null for a Delta table, for anything else its checksum.
    """
    state: dict[str, Any] = {"lake": lake_root(), "code": _code_sha256()}
    for name, checksum in json.loads(inputs).items():
        table = open_table(name) if checksum is None else None
        state[name] = [table.metadata().id, table.version()] if table else checksum
    return json.dumps(state, sort_keys=True)


@cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def rebuild_key(name: str) -> str | None:
    """The rebuild key of a table's newest version: empty where it has none, None without table."""
    if open_table(name) is None:
        return None
    return str(commit_metadata(name).get(REBUILD_KEY, ""))


def write(
    name: str,
    reader: pa.RecordBatchReader,
    options: WriteOptions,
    *,
    rebuild: bool = False,
    metadata: Mapping[str, str] | None = None,
    report: Callable[[str], None] = lambda message: None,
) -> int:
    """Write a stream of rows as the options say; rows that add nothing make no new version.

    Args:
        name: the table.
        reader: rows; read once, batch by batch.
        options: how they meet the table.
        rebuild: replace the table, schema included, whatever the strategy.
        metadata: what the commit records about itself.
        report: called now and then with a line on how far the write is.

    Returns:
        The rows read from the stream.

    Raises:
        LakeError: the columns differ from the table's and `on_schema_change` is `fail`, a value is
            missing in a column of `not_null`, no room is left, or the table is another lake's.
    """
    check_is_own(name)
    counted = _Counted(name, reader.cast(_in_utc(reader.schema)), options, report)
    try:
        return _write(name, counted, options, rebuild, dict(metadata or {}), report)
    except Exception as error:
        # An error of ours that went through a stream has become a text in one of the writer's.
        if counted.broken:
            raise counted.broken from None
        if os.strerror(errno.ENOSPC) in str(error):
            raise LakeError(
                f"No room is left at {table_path(name)}; table '{name}' stays as it was. Make "
                "room, or set TRAJLAKE_LAKE to a larger disk, and run it again."
            ) from error
        raise


def _write(
    name: str,
    counted: _Counted,
    options: WriteOptions,
    rebuild: bool,
    metadata: dict[str, str],
    report: Callable[[str], None],
) -> int:
    table = open_table(name)
    commit = CommitProperties(custom_metadata=metadata)
    if table is None or rebuild:
        if options.delete_when_null:
            counted.leave_out_nulls_of(options.delete_when_null)
        if table is None:
            _begin_at(name, counted.schema, options)
        # Batches that are commits of their own begin with an empty table.
        is_whole = options.commit == "table"
        write_deltalake(
            table_path(name),
            counted.stream() if is_whole else counted.schema.empty_table(),
            mode="overwrite",
            schema_mode="overwrite",
            partition_by=list(options.partition_by) or None,
            configuration=_properties(options),
            writer_properties=_WRITER,
            commit_properties=commit,
        )
        if is_whole:
            return counted.rows
        table = DeltaTable(table_path(name))
    _check_schema(name, table, counted.schema, options)
    if options.strategy == "overwrite":
        write_deltalake(
            table,
            counted.stream(),
            mode="overwrite",
            schema_mode="overwrite" if options.on_schema_change == "replace" else None,
            writer_properties=_WRITER,
            commit_properties=commit,
        )
        return counted.rows
    if options.strategy == "upsert":
        _upsert(name, counted, options, metadata)
        if not counted.rows:
            _add_columns(table, counted.schema, commit)
        return counted.rows
    for stream in counted.commits(options.commit):
        if options.strategy == "append":
            write_deltalake(
                table,
                stream,
                mode="append",
                schema_mode=_merged(options),
                writer_properties=_WRITER,
                commit_properties=commit,
            )
        else:
            _insert(table, stream, options, commit)
        table = DeltaTable(table_path(name))
    if not counted.rows:
        _add_columns(table, counted.schema, commit)
    if options.commit == "batch":
        _put_together(name, table, report)
    return counted.rows


def _properties(options: WriteOptions) -> dict[str, str | None]:
    return {**_TABLE_PROPERTIES, **options.table_properties}


def check_is_own(name: str) -> None:
    """Raise where a table is not this lake's to write.

    Raises:
        LakeError: it is pinned to a version of another lake's table.
    """
    if is_pinned(name):
        raise LakeError(
            f"Table '{name}' is version {pins().versions[name]} of {table_path(name)} here, which "
            "stays as it is. Write it in the lake that it is in."
        )


def _begin_at(name: str, schema: pa.Schema, options: WriteOptions) -> None:
    """Let the first rows of a table that replays a version come at that version: all before it
    are empty."""
    version = pins().replays.get(name, 0)
    if version == 0:
        return
    DeltaTable.create(
        table_path(name),
        Schema.from_arrow(schema),
        partition_by=list(options.partition_by) or None,
        configuration=_properties(options),
    )
    log = Path(table_path(name)) / "_delta_log"
    nothing = json.dumps({"commitInfo": {"timestamp": 0, "operation": "EMPTY"}}) + "\n"
    for number in range(1, version):
        (log / f"{number:020}.json").write_text(nothing, encoding="utf-8")


def _put_together(name: str, table: DeltaTable, report: Callable[[str], None]) -> None:
    """Make few files of many small ones, in one commit that changes no row."""
    sizes = pa.table(table.get_add_actions())["size_bytes"]
    small = pc.sum(pc.less(sizes, _SMALL_FILE_BYTES)).as_py() or 0
    if small >= _SMALL_FILES:
        try:
            table.optimize.compact(target_size=_LARGE_FILE_BYTES, writer_properties=_WRITER)
        except CommitFailedError:
            report(f"{name}: another build is putting its files together, they are left to it")


def _in_utc(schema: pa.Schema) -> pa.Schema:
    """The same columns with points in time labelled UTC, the one label that Delta has: DuckDB
    labels them with the machine's own zone."""
    for i, column in enumerate(schema):
        if pa.types.is_timestamp(column.type) and column.type.tz:
            schema = schema.set(i, column.with_type(pa.timestamp("us", "UTC")))
    return schema


def _merged(options: WriteOptions) -> Literal["merge"] | None:
    return "merge" if options.on_schema_change == "append_new_columns" else None


def _upsert(name: str, counted: _Counted, options: WriteOptions, metadata: dict[str, str]) -> None:
    """Replace rows whose key is known, then append those whose key is new.

    A Delta merge would do both in one commit, but holds what it joins in memory; an append that
    is under way while rows are replaced conflicts with that. So new rows wait in a temporary
    file, and the last commit is the one that says of what the table was made.
    """
    known = _KnownKeys(name, options.unique_key)
    replacing: list[pa.RecordBatch] = []
    new_rows = 0
    with tempfile.TemporaryFile() as file:
        lz4 = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(file, counted.schema, options=lz4) as waiting:
            for batch in counted.batches():
                is_known = known.mask(batch)
                replacing.append(batch.filter(is_known))
                rest = _without_nulls_of(
                    options.delete_when_null, batch.filter(pc.invert(is_known))
                )
                new_rows += rest.num_rows
                waiting.write_batch(rest)
        _replace(name, replacing, options, _unfinished(metadata) if new_rows else metadata)
        if new_rows:
            file.seek(0)
            write_deltalake(
                table_path(name),
                pa.ipc.open_stream(file),
                mode="append",
                schema_mode=_merged(options),
                writer_properties=_WRITER,
                commit_properties=CommitProperties(custom_metadata=metadata),
            )


def _replace(
    name: str,
    batches: list[pa.RecordBatch],
    options: WriteOptions,
    metadata: dict[str, str],
) -> None:
    """Replace the rows of known keys, each in the commit that brings its successor."""
    found = [batch for batch in batches if batch.num_rows]
    rows = sum(batch.num_rows for batch in found)
    for start in range(0, rows, _REPLACED_ROWS):
        some = pa.Table.from_batches(found).slice(start, _REPLACED_ROWS)
        is_last = start + _REPLACED_ROWS >= rows
        write_deltalake(
            table_path(name),
            _without_nulls_of(options.delete_when_null, some),
            mode="overwrite",
            predicate=_any_of(some.select(list(options.unique_key)).to_pylist()),
            schema_mode=_merged(options),
            writer_properties=_WRITER,
            commit_properties=CommitProperties(
                custom_metadata=metadata if is_last else _unfinished(metadata)
            ),
        )


def _unfinished(metadata: dict[str, str]) -> dict[str, str]:
    """What a commit records that is not a write's last: not of what the table was made."""
    return {key: text for key, text in metadata.items() if key not in (FINGERPRINT, INPUTS)}


def _any_of(keys: list[dict[str, Any]]) -> str:
    """The SQL condition that a row has one of the keys."""
    if len(keys[0]) == 1:
        (column,) = keys[0]
        return f'"{column}" in ({", ".join(_literal(key[column]) for key in keys)})'
    return " or ".join(
        "(" + " and ".join(f'"{column}" = {_literal(key[column])}' for column in key) + ")"
        for key in keys
    )


def _literal(value: Any) -> str:
    return sql_text(value) if isinstance(value, str) else str(value)


def _without_nulls_of(column: str | None, rows: Any) -> Any:
    """A batch or table without the rows that have a null there."""
    return rows if column is None else rows.filter(pc.is_valid(rows.column(column)))


class _KnownKeys:
    """Which keys a table may have: hashes, 8 bytes a row. A hash that two keys share costs a
    needless place in the rows that replace others, and changes nothing."""

    def __init__(self, name: str, columns: tuple[str, ...]) -> None:
        self._connection = in_memory()
        self._columns = list(columns)
        names = ", ".join(f'"{column}"' for column in columns)
        is_given = " and ".join(f'"{column}" is not null' for column in columns)
        # Null hashes are those of keys with a null, which is no known key.
        self._hash = f"select case when {is_given} then hash({names}) end as h from "
        table = f"delta_scan({sql_text(table_path(name))})"
        found = self._connection.sql(f"{self._hash}{table} where {is_given} order by h")
        self._hashes = found.fetchnumpy()["h"].astype(np.uint64)

    def mask(self, batch: pa.RecordBatch) -> pa.Array:
        """Whether the table may have each row's key: booleans, shape (rows,)."""
        keys = self._connection.from_arrow(pa.Table.from_batches([batch.select(self._columns)]))
        hashes = keys.query("keys", self._hash + "keys").to_arrow_table().column("h")
        values = hashes.fill_null(0).to_numpy()
        at = np.searchsorted(self._hashes, values)
        is_there = np.zeros(len(values), dtype=bool)
        inside = at < len(self._hashes)
        is_there[inside] = self._hashes[at[inside]] == values[inside]
        return pc.and_(pa.array(is_there), hashes.is_valid().combine_chunks())


def _add_columns(table: DeltaTable, given: pa.Schema, commit: CommitProperties) -> None:
    """Give a table its new columns where no row brings them."""
    there = {column.name for column in table.schema().fields}
    new = [column for column in Schema.from_arrow(given).fields if column.name not in there]
    if new:
        table.alter.add_columns(new, commit_properties=commit)


def _insert(
    table: DeltaTable,
    stream: pa.RecordBatchReader,
    options: WriteOptions,
    commit: CommitProperties,
) -> None:
    table.merge(
        stream,
        " and ".join(f'target."{key}" = source."{key}"' for key in options.unique_key),
        source_alias="source",
        target_alias="target",
        merge_schema=_merged(options) is not None,
        writer_properties=_WRITER,
        commit_properties=commit,
    ).when_not_matched_insert_all().execute()


def _check_schema(name: str, table: DeltaTable, given: pa.Schema, options: WriteOptions) -> None:
    """Raise where columns differ from the table's in a way that the options do not allow."""
    there = {f.name: f.type for f in table.schema().fields}
    new = {f.name: f.type for f in Schema.from_arrow(given).fields}
    if options.on_schema_change == "replace":
        return
    added = [c for c in new if c not in there]
    gone = [c for c in there if c not in new]
    changed = [c for c in new if c in there and new[c] != there[c]]
    if options.on_schema_change == "append_new_columns":
        added, gone = [], []
    if added or gone or changed:
        lists = (("new", added), ("missing", gone), ("of another type", changed))
        differences = "; ".join(f"{what}: {', '.join(cols)}" for what, cols in lists if cols)
        raise LakeError(
            f"Table '{name}' has other columns than its model now gives ({differences}). "
            f"Rebuild it with `dbt build --full-refresh --select {name}`, or state the change "
            "with on_schema_change='append_new_columns' (or 'replace' for an overwritten table)."
        )


class _Counted:
    """A reader that counts what passes, says so while it takes long, and lets no row pass that
    lacks a value it must have. `broken` is the error that ended it."""

    def __init__(
        self,
        name: str,
        reader: pa.RecordBatchReader,
        options: WriteOptions,
        report: Callable[[str], None],
    ) -> None:
        self.rows = 0
        self.broken: LakeError | None = None
        self.schema = reader.schema
        self._name = name
        self._reader = reader
        self._options = options
        self._report = report
        self._started = self._said = time.monotonic()

    def leave_out_nulls_of(self, column: str) -> None:
        """Pass over rows that have a null there."""
        self._reader = pa.RecordBatchReader.from_batches(
            self.schema, (_without_nulls_of(column, batch) for batch in self._reader)
        )

    def stream(self) -> pa.RecordBatchReader:
        """All rows as one stream; each batch is made ready while the one before is written."""
        return pa.RecordBatchReader.from_batches(self.schema, _ahead(self.batches()))

    def commits(self, commit: str) -> Iterator[pa.RecordBatchReader]:
        """The streams to commit one by one; none where there is not one row."""
        batches = (batch for batch in self.batches() if batch.num_rows)
        if commit == "batch":
            for batch in batches:
                yield pa.RecordBatchReader.from_batches(self.schema, [batch])
            return
        first = next(batches, None)
        if first is not None:

            def rest() -> Iterator[pa.RecordBatch]:
                yield first
                yield from batches

            yield pa.RecordBatchReader.from_batches(self.schema, _ahead(rest()))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """The rows as they come."""
        for batch in self._reader:
            self._check_values(batch)
            self.rows += batch.num_rows
            now = time.monotonic()
            if now - self._said > _PROGRESS_EVERY_S:
                self._said = now
                rate = self.rows / (now - self._started)
                self._report(f"{self._name}: {self.rows:,} rows, {rate:,.0f} rows/s")
            yield batch

    def _check_values(self, batch: pa.RecordBatch) -> None:
        wanted = self._options.not_null
        if not any(batch.column(column).null_count for column in wanted):
            return
        # A row that only deletes another has its key and nothing else.
        rows = _without_nulls_of(self._options.delete_when_null, batch)
        empty = [column for column in wanted if rows.column(column).null_count]
        if empty:
            bad = rows.filter(pc.is_null(rows.column(empty[0])))
            row = bad.select(list(wanted)).slice(0, 1).to_pylist()[0]
            known = {name: value for name, value in row.items() if isinstance(value, str)}
            self.broken = LakeError(
                f"Table '{self._name}' was given {bad.num_rows} row(s) without {empty[0]}, the "
                f"first: {shorten(json.dumps(known), 300)}. Mend the model, or take the "
                "constraint not_null from the YAML beside it."
            )
            raise self.broken


def _ahead(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same batches, each made by a thread of its own while the one before is in use.

    The Delta writer pulls from inside its own event loop, where nothing that opens a Delta table
    may run; a thread beside it may. And reading goes on while rows are compressed.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch
