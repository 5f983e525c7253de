"""The journal of answers: where it lies, and what it does when writing fails."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from udfs import lake
from udfs.errors import EndpointError
from udfs.llm.journal import Journal, journal_path

SCHEMA = pa.schema(
    [("id", pa.string()), ("said", pa.string()), ("at", pa.timestamp("us", tz="UTC"))]
)
WRITE = lake.WriteOptions(strategy="append", commit="batch")


@pytest.fixture(autouse=True)
def empty_lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("TRAJLAKE_DB", str(tmp_path / "trajlake.duckdb"))


def answers() -> Journal:
    return Journal("answers", SCHEMA, "id")


def row(number: int, said: str = "") -> dict[str, Any]:
    return {"id": str(number), "said": said, "at": datetime(2026, 1, 1, tzinfo=UTC)}


def ids(journal: Journal) -> list[str]:
    return [found["id"] for found in journal.rows()]


def test_it_lies_in_a_local_lake_and_beside_the_database_of_a_remote_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert journal_path("answers") == tmp_path / "lake" / "_journal" / "answers.jsonl"

    monkeypatch.setenv("TRAJLAKE_LAKE", "s3://bucket/one")
    one = journal_path("answers")
    monkeypatch.setenv("TRAJLAKE_LAKE", "s3://bucket/two")
    assert one.parents[1] == tmp_path
    assert one != journal_path("answers")


def test_rows_come_back_as_they_were_written() -> None:
    with answers() as journal:
        journal.append(row(1, "two\nlines"))
        journal.append(row(2))
    with answers() as journal:
        assert list(journal.rows()) == [row(1, "two\nlines"), row(2)]


def test_a_table_gets_what_it_lacks_and_the_journal_is_empty_then() -> None:
    with answers() as journal:
        for number in (1, 2, 2):
            journal.append(row(number))
    lake.write("answers", pa.Table.from_pylist([row(1)], SCHEMA).to_reader(), WRITE)
    again = answers()

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        assert recovered["id"].to_pylist() == ["2"]
        again.append(row(3))
        yield pa.RecordBatch.from_pylist([row(3)], SCHEMA)

    lake.write("answers", again.stream(make), WRITE)

    with lake.connect() as connection:
        assert connection.sql("select id from answers order by id").fetchall() == [
            ("1",),
            ("2",),
            ("3",),
        ]
    assert journal_path("answers").read_bytes() == b""


def test_a_full_disk_stops_the_run_and_spoils_no_line() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with answers() as journal:
        journal.append(row(1))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
        try:
            with pytest.raises(EndpointError, match="cannot be written"):
                journal.append(row(2, "x" * 1_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        journal.append(row(3))
        assert ids(journal) == ["1", "3"]


def test_a_line_by_somebody_else_is_named() -> None:
    journal_path("answers").parent.mkdir(parents=True)
    journal_path("answers").write_text("hello\n")
    with answers() as journal, pytest.raises(EndpointError, match=r"line 1: not a row of answers"):
        ids(journal)
