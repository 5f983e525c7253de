"""A lake that begins with versions of another lake's tables: read there, never written there."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable

from udfs import lake
from udfs.errors import ConfigError, LakeError
from udfs.lake import INPUTS, Pins, WriteOptions
from udfs.pinning import pin_tables, pins_of

Write = Callable[..., None]


@pytest.fixture
def write(workplace: Path) -> Write:
    """Writes one more version of a table: a row with a number."""

    def write_version(name: str, number: int, made_from: dict[str, Any] | None = None) -> None:
        rows = pa.table({"a": [number]}).to_reader()
        recorded = {INPUTS: json.dumps(made_from)} if made_from else {}
        lake.write(name, rows, WriteOptions(), metadata=recorded)

    return write_version


@pytest.fixture
def past(workplace: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lake with five versions of `t`; the settings then point at an empty one."""
    for number in range(5):
        write("t", number)
    monkeypatch.setenv("TRAJLAKE_LAKE", str(workplace / "replay"))
    return workplace / "lake"


def content(name: str) -> list[int]:
    with lake.connect() as connection:
        return [row[0] for row in connection.sql(f"select a from {name}").fetchall()]


def test_a_pinned_table_is_what_it_was(past: Path) -> None:
    pin_tables('{"t": 2}', str(past))
    assert lake.table_names() == ["t"]
    assert content("t") == [2]
    table = lake.open_table("t")
    assert table is not None and table.version() == 2
    assert [commit["version"] for commit in table.history()] == [2, 1, 0]
    assert lake.rows_version("t") == 2


def test_a_pinned_table_cannot_be_changed_from_here(past: Path, write: Write) -> None:
    pin_tables('{"t": 2}', str(past))
    with pytest.raises(LakeError, match=r"version 2 of .*Write it in the lake that it is in"):
        write("t", 7)
    with pytest.raises(LakeError, match="is pinned"):
        lake.open_table("t").vacuum()  # type: ignore[union-attr]
    assert DeltaTable(str(past / "t")).version() == 4


def test_a_table_that_replays_a_version_begins_with_its_number(past: Path, write: Write) -> None:
    Pins(str(past), {}, {"t": 3, "u": 0}).write(past.parent / "replay")
    for name in ("t", "u"):
        write(name, 9)
    assert content("t") == content("u") == [9]
    versions = [lake.rows_version(name) for name in ("t", "u")]
    assert versions == [3, 0]
    write("t", 10)
    assert lake.rows_version("t") == 4


def test_a_lake_that_holds_tables_does_not_become_another_one(past: Path, write: Write) -> None:
    write("own", 1)
    with pytest.raises(LakeError, match="holds a lake already"):
        pin_tables('{"t": 2}', str(past))


def test_pins_stay_as_they_are(past: Path) -> None:
    pin_tables('{"t": 2}', str(past))
    pin_tables('{"t": 2}', str(past))
    with pytest.raises(LakeError, match="holds a lake already"):
        pin_tables('{"t": 3}', str(past))
    assert content("t") == [2]


@pytest.mark.parametrize(
    ("versions", "own", "message"),
    [
        ('{"t": 2}', None, "pinned_lake is not"),
        ('{"t": "x"}', "lake", "Give a mapping of tables to versions"),
        ('{"t": 9}', "lake", "Version 9 of .* cannot be read: the newest version is 4"),
        ('{"u": 0}', "lake", "Version 0 of .*/u cannot be read"),
        ('"no/manifest.json"', "lake", "cannot be read as an export's manifest"),
        ('{"t": 2}', "replay", "needs a lake of its own"),
    ],
)
def test_vars_that_cannot_be_used_say_so(
    past: Path, versions: str, own: str | None, message: str
) -> None:
    with pytest.raises((ConfigError, LakeError), match=message):
        pin_tables(versions, None if own is None else str(past.parent / own))
    assert not (past.parent / "replay").exists()


def test_vacuumed_versions_are_named(past: Path) -> None:
    DeltaTable(str(past / "t")).vacuum(
        retention_hours=0, dry_run=False, enforce_retention_duration=False
    )
    with pytest.raises(LakeError, match=r"Version 2 of .* 1 of its files are gone, such as"):
        pin_tables('{"t": 2}', str(past))


def test_rows_whose_files_were_put_together_are_read_from_where_they_are_now(past: Path) -> None:
    path = str(past / "t")
    from deltalake import write_deltalake

    write_deltalake(path, pa.table({"a": [5]}), mode="append")
    DeltaTable(path).optimize.compact()
    DeltaTable(path).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    pin_tables('{"t": 5}', str(past))
    assert sorted(content("t")) == [4, 5]
    assert lake.rows_version("t") == 5


def test_what_is_made_from_curation_is_built_again_and_the_rest_pinned(
    past: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(past))
    write("curated_trajectories", 1, {"t": 4, "a_view": "md5"})
    write("samples", 1, {"curated_trajectories": 0, "t": 4})
    write("plan", 1, {"samples": 0})
    tables = {"t": 4, "curated_trajectories": 0, "samples": 0, "plan": 0}
    pins = pins_of(tables, str(past))
    assert pins.versions == {"t": 4}
    assert pins.replays == {"curated_trajectories": 0, "samples": 0, "plan": 0}


def test_old_versions_outlive_deltas_thirty_days(workplace: Path, write: Write) -> None:
    """A checkpoint every 100 commits would let go of older ones before it."""
    log = workplace / "lake" / "t" / "_delta_log"
    long_ago = time.time() - 60 * 24 * 3600
    for number in range(205):
        write("t", number)
        if number in (95, 150):
            for file in log.iterdir():
                os.utime(file, (long_ago, long_ago))
    table = DeltaTable(str(log.parent), version=3)
    assert table.to_pyarrow_table()["a"].to_pylist() == [3]


def test_what_only_says_something_of_a_table_is_no_version_of_its_rows(
    workplace: Path, write: Write
) -> None:
    write("t", 1)
    lake.open_table("t").alter.set_table_properties(  # type: ignore[union-attr]
        {"delta.enableExpiredLogCleanup": "false"}
    )
    assert lake.rows_version("t") == 0
