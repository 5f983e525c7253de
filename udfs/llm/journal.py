"""The journal: rows that were paid for and are not in the lake yet.

A batch of rows reaches its Delta table in one commit, seconds or minutes after its first reply
came. What dies with the process in between would have to be paid for again. So every row is one
JSON line in a local file before anything else happens to it: handed to the operating system at
once, which a killed process does not undo, and forced to the disk once a second, which bounds
what a power cut costs.

The file lies below the lake (`<lake>/_journal/<table>.jsonl`), or beside the DuckDB file where the
lake is an object store, which cannot be appended to. One build at a time holds it; another waits.
That, and that only what the table lacks is handed on, makes every row of the table unique: it
can be appended to without a look at what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from udfs import lake
from udfs.errors import EndpointError
from udfs.settings import database_file, lake_root

_SYNC_EVERY_S = 1.0
_LOOK_EVERY_S = 0.2

# Rows found in the journal are handed on in batches of this many.
_RECOVERED_ROWS = 1_000

# What DuckDB may hold of one line: the longest, and as much as it holds of any file.
_FRAME = 16 * 1024 * 1024

_logger = logging.getLogger("trajlake.llm")


def journal_path(table: str) -> Path:
    """Where the journal of one of the current lake's tables lies."""
    root = lake_root()
    if "://" not in root:
        return Path(root) / "_journal" / f"{table}.jsonl"
    # Several lakes may share a folder: the name tells them apart.
    name = hashlib.sha256(root.encode()).hexdigest()[:12]
    return database_file().parent / f"trajlake-journal-{name}" / f"{table}.jsonl"


class Journal:
    """An append-only file of a table's rows, one JSON object a line, held by one process at a time.

    Use it as a context manager: `with Journal("ratings", SCHEMA, "rating_id") as journal`.

    Args:
        table: the Delta table that its rows are for.
        schema: the table's columns.
        key: the column that tells rows apart.
    """

    def __init__(self, table: str, schema: pa.Schema, key: str) -> None:
        self.path = journal_path(table)
        self.schema = schema
        self.table = table
        self._key = key
        self._times = [f.name for f in schema if pa.types.is_timestamp(f.type)]
        self._fd = -1
        self._end = 0
        self._synced_at = 0.0

    def __enter__(self) -> Journal:
        """Open and lock the file, and cut off a last line that a crash left torn.

        Waits, and says so, while another process holds it.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            self._lock()
            self._mend()
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)
        self._fd = -1

    def stream(self, make: Callable[[pa.Table], Iterator[pa.RecordBatch]]) -> pa.RecordBatchReader:
        """What the table lacks: rows that an interrupted build left here, then those now made.

        The journal is held from the first batch that is read to the end of the stream; it is
        empty then, if all was written to the table.

        Args:
            make: is called with the recovered rows, which the table may not have yet, and makes
                new ones; it writes each down with `append` before it hands it on.
        """

        def batches() -> Iterator[pa.RecordBatch]:
            with self:
                recovered = []
                for batch in self._uncommitted():
                    recovered.append(batch)
                    yield batch
                if not recovered:
                    self._clear()
                yield from make(pa.Table.from_batches(recovered, self.schema))
                # Whether the last batches are committed by now is the writer's business. What is
                # not in the table stays here for the next build.
                if self._end and next(self._uncommitted(), None) is None:
                    self._clear()

        return pa.RecordBatchReader.from_batches(self.schema, batches())

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row down.

        Raises:
            EndpointError: the file cannot be written (a full disk).
        """
        line = orjson.dumps(row) + b"\n"
        try:
            left = line
            while left:
                left = left[os.write(self._fd, left) :]
            if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
                os.fsync(self._fd)
                self._synced_at = time.monotonic()
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            raise EndpointError(
                f"The journal {self.path} cannot be written ({error.strerror}). Nothing more is "
                "asked, because replies could be lost. Make room, then run `dbt build` again: what "
                "was answered is kept."
            ) from error
        self._end += len(line)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row in the file, in the order of writing; a last line that has no end yet is none.

        Raises:
            EndpointError: a line is no such row.
        """
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):  # it is being written
                    return
                try:
                    row = orjson.loads(line)
                    row[self._key]
                    for name in self._times:
                        if row[name] is not None:
                            row[name] = datetime.fromisoformat(row[name])
                except (ValueError, TypeError, KeyError) as error:
                    raise EndpointError(
                        f"{self.path}, line {number}: not a row of {self.table} ({error}). "
                        "Something else wrote into the journal. Move that line elsewhere and run "
                        "`dbt build` again; what it was about is then asked again."
                    ) from error
                yield row

    def glance(self, columns: Sequence[str]) -> pa.Table:
        """What is in the file, from outside: nothing is locked, waited for or mended.

        Args:
            columns: those that are wanted; the others can be large.

        Raises:
            EndpointError: a line is no such row.
        """
        schema = pa.schema([self.schema.field(name) for name in columns])
        rows = self.rows() if self.path.exists() else ()
        return pa.Table.from_pylist(
            [{name: row.get(name) for name in columns} for row in rows], schema=schema
        )

    def _uncommitted(self) -> Iterator[pa.RecordBatch]:
        """The rows that the table does not have, each once."""
        missing = self._missing()
        rows: list[dict[str, Any]] = []
        for row in self.rows() if missing else ():
            if row[self._key] in missing:
                missing.remove(row[self._key])
                rows.append(row)
            if len(rows) == _RECOVERED_ROWS:
                yield pa.RecordBatch.from_pylist(rows, schema=self.schema)
                rows = []
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=self.schema)

    def _missing(self) -> set[str]:
        """The keys of the file's rows that the table does not have.

        DuckDB reads the file, so that what a long run leaves need not fit into memory.
        """
        if not self._end:
            return set()
        with open(self.path, "rb") as file:
            longest = max(map(len, file))
        written = (
            f"read_json({lake.sql_text(str(self.path))}, format = 'newline_delimited', "
            f"columns = {{'{self._key}': 'varchar'}}, maximum_object_size = {longest + _FRAME})"
        )
        with lake.in_memory() as connection:
            sql = f"select distinct {self._key} from {written}"
            if lake.open_table(self.table) is not None:
                table = lake.table_scan(self.table)
                sql += f" anti join {table} using ({self._key})"
            try:
                return {key for (key,) in connection.execute(sql).fetchall()}
            except duckdb.Error:
                deque(self.rows(), maxlen=0)  # names the line that is no row
                raise

    def _clear(self) -> None:
        """Empty the file. Only for when every row in it is in the table."""
        os.ftruncate(self._fd, 0)
        os.fsync(self._fd)
        self._end = 0

    def _lock(self) -> None:
        has_said = False
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if not has_said:
                    _logger.warning(
                        "Another build is writing %s into this lake (it holds %s). This one waits "
                        "for it to end, so that nothing is paid for twice.",
                        self.table,
                        self.path,
                    )
                    has_said = True
                time.sleep(_LOOK_EVERY_S)

    def _mend(self) -> None:
        self._end = os.lseek(self._fd, 0, os.SEEK_END)
        if self._end == 0:
            return
        with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as content:
            whole = content.rfind(b"\n") + 1
        if whole < self._end:
            _logger.warning(
                "%s: the last %d bytes are a reply that a crash cut off. They are dropped, and "
                "what it was about is asked again.",
                self.path,
                self._end - whole,
            )
            os.ftruncate(self._fd, whole)
            self._end = whole
