"""Which files are new, and their records as Arrow batches of `raw_records`.

A file is known by its content. One whose name, size and time of change are those of an earlier
build is not opened; otherwise its hash decides. Of a file that has changed, only the records
are landed that its earlier versions did not hold: a record is the same when its bytes are, and
the n-th copy of the same bytes in one file is known when n copies are.

What a file has wrong with it is a row as well, with `landing_error` set, so that it ends in
quarantine like every other record that is refused.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from udfs import lake
from udfs.errors import ConfigError
from udfs.landing.files import RawFile, list_files, read_frames
from udfs.landing.framing import Frame
from udfs.sources import SourceSettings

RAW_RECORDS = pa.schema(
    [
        ("raw_record_id", pa.string()),
        ("source", pa.string()),
        ("raw_file", pa.string()),
        ("raw_key", pa.string()),
        ("raw_sha256", pa.string()),
        ("file_sha256", pa.string()),
        ("raw", pa.binary()),
        ("landing_error", pa.string()),
        ("landing_detail", pa.string()),
        ("raw_position", pa.int64()),
        ("raw_offset", pa.int64()),
        ("raw_bytes", pa.int64()),
        ("file_bytes", pa.int64()),
        ("file_modified_at", pa.timestamp("us", "UTC")),
        ("landed_at", pa.timestamp("us", "UTC")),
    ]
)

# A batch is handed on when it holds this much.
_BATCH_BYTES = 16 << 20
_BATCH_ROWS = 16_384

# Arrow's 32-bit offsets end at 2 GiB; no trajectory comes near.
_LARGEST_RECORD = 1 << 30


def land(folder: Path, declared: Mapping[str, SourceSettings]) -> pa.RecordBatchReader:
    """The rows that `raw_records` does not have yet, as a stream.

    Args:
        folder: the raw folder.
        declared: what is declared about sources, by name.

    Raises:
        ConfigError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(
            f"The raw folder {folder} does not exist. Create it and put one folder a source "
            "into it, or point TRAJLAKE_RAW at the folder that holds your logs."
        )
    return pa.RecordBatchReader.from_batches(RAW_RECORDS, _batches(folder, declared))


def _batches(folder: Path, declared: Mapping[str, SourceSettings]) -> Iterator[pa.RecordBatch]:
    ledger = _Ledger.from_lake()
    landed_at = datetime.now(UTC)
    rows = _Rows()
    for file in list_files(folder):
        for row in _rows_of(file, ledger, declared.get(file.source, SourceSettings())):
            rows.add(row | {"landed_at": landed_at})
            if rows.is_full:
                yield rows.flush()
    yield rows.flush()


def _rows_of(file: RawFile, ledger: _Ledger, settings: SourceSettings) -> Iterator[dict[str, Any]]:
    """What a file adds to `raw_records`; nothing where this content was landed before."""
    if ledger.is_unchanged(file):
        return
    try:
        file_sha256 = file.sha256()
    except OSError as error:
        yield _row(file, None, _note("unreadable_file", f"{error.strerror}; check its rights"))
        return
    if (file.source, file.name, file_sha256) in ledger.contents:
        return
    twin = ledger.first_names.get((file.source, file_sha256))
    ledger.add(file, file_sha256)
    if file.size == 0:
        yield _row(file, file_sha256, _note("empty_file", "the file holds no byte"))
    elif not file.is_supported:
        yield _row(
            file,
            file_sha256,
            _note(
                "unsupported_file",
                f"'{file.path.name}' ends in none of .json .jsonl .ndjson .traj .parquet (.gz "
                ".zst)",
            ),
        )
    elif twin:
        yield _row(
            file, file_sha256, _note("duplicate_file", f"byte for byte the same as '{twin}'")
        )
    else:
        known = ledger.records_of(file)
        found = False
        for frame in read_frames(file, settings.container):
            row = _row(file, file_sha256, frame)
            if known[row["raw_sha256"]] and frame.raw:
                known[row["raw_sha256"]] -= 1
                continue
            found = True
            yield row
        if not found:
            why = (
                "the file has changed and holds no record that an earlier version did not"
                if ledger.had(file)
                else "the file holds white space or an empty container only"
            )
            yield _row(file, file_sha256, _note("no_new_records", why))


def _note(problem: str, detail: str) -> Frame:
    """What is to be said of a file as a whole."""
    return Frame(b"", None, None, None, problem, detail)


def _row(file: RawFile, file_sha256: str | None, frame: Frame) -> dict[str, Any]:
    raw, problem, detail = frame.raw, frame.problem, frame.detail
    raw_sha256 = hashlib.sha256(raw).hexdigest()
    identity = (file.source, file.name, file_sha256, frame.position, frame.offset, raw_sha256)
    if len(raw) > _LARGEST_RECORD:
        raw, problem = b"", "record_too_large"
        detail = f"{len(frame.raw):,} bytes; at most {_LARGEST_RECORD:,} fit a row"
    return {
        "raw_record_id": hashlib.sha256(repr(identity).encode()).hexdigest(),
        "source": file.source,
        "raw_file": file.name,
        "raw_key": frame.key,
        "raw_sha256": raw_sha256,
        "file_sha256": file_sha256,
        "raw": raw,
        "landing_error": problem,
        "landing_detail": detail,
        "raw_position": frame.position,
        "raw_offset": frame.offset,
        "raw_bytes": len(frame.raw),
        "file_bytes": file.size,
        "file_modified_at": file.modified_us,
    }


@dataclass
class _Ledger:
    """What earlier builds landed, and what this one has so far."""

    stats: set[tuple[str, int, int]] = field(default_factory=set)
    contents: set[tuple[str, str, str]] = field(default_factory=set)
    first_names: dict[tuple[str, str], str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    @classmethod
    def from_lake(cls) -> _Ledger:
        ledger = cls()
        if lake.open_table("raw_records") is None:
            return ledger
        with lake.in_memory() as connection:
            rows = connection.execute(
                f"""
                select distinct
                    source, raw_file, file_sha256, file_bytes, epoch_us(file_modified_at)
                from {lake.table_scan("raw_records")}
                order by 5, raw_file
                """
            )
            while row := rows.fetchone():
                source, name, sha256, size, modified_us = row
                ledger.stats.add((name, size, modified_us))
                ledger.names.add(name)
                if sha256:
                    ledger.contents.add((source, name, sha256))
                    ledger.first_names.setdefault((source, sha256), name)
        return ledger

    def is_unchanged(self, file: RawFile) -> bool:
        return (file.name, file.size, file.modified_us) in self.stats

    def had(self, file: RawFile) -> bool:
        return file.name in self.names

    def add(self, file: RawFile, sha256: str) -> None:
        self.contents.add((file.source, file.name, sha256))
        self.first_names.setdefault((file.source, sha256), file.name)

    def records_of(self, file: RawFile) -> Counter[str]:
        """How many copies of which record earlier versions of this file held."""
        if not self.had(file):
            return Counter()
        with lake.in_memory() as connection:
            return Counter(
                dict(
                    connection.execute(
                        f"""
                        select raw_sha256, count(*)
                        from {lake.table_scan("raw_records")}
                        where raw_file = ? and raw_bytes > 0
                        group by raw_sha256
                        """,
                        [file.name],
                    ).fetchall()
                )
            )


class _Rows:
    """Rows on their way into a batch."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    @property
    def is_full(self) -> bool:
        return self._bytes >= _BATCH_BYTES or len(self._rows) >= _BATCH_ROWS

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        self._bytes += len(row["raw"])

    def flush(self) -> pa.RecordBatch:
        batch = pa.RecordBatch.from_pylist(self._rows, RAW_RECORDS)
        self._rows, self._bytes = [], 0
        return batch
