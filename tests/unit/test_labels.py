"""Labels that people give reach the lake, each once, and nothing is written over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import write_deltalake

from udfs import labels, lake
from udfs.errors import LakeError
from udfs.labels import Label

SHA256 = "ab" * 32


@pytest.fixture(autouse=True)
def _lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))


def stored() -> list[dict[str, object]]:
    table = lake.open_table(labels.TABLE)
    assert table is not None
    rows: list[dict[str, object]] = pa.table(table.to_pyarrow_table()).to_pylist()
    return rows


def test_labels_are_appended_all_or_none() -> None:
    labels.append([Label(SHA256, 4.5, "ada", note="one detour"), Label(SHA256, 2, "grace")])
    labels.append([Label(SHA256, None, "ada")])
    labels.append([])
    found = {(r["labelled_by"], r["value"]): r for r in stored()}
    assert found.keys() == {("ada", 4.5), ("grace", 2.0), ("ada", None)}
    assert found["ada", 4.5]["note"] == "one detour"
    assert len({row["human_label_id"] for row in stored()}) == 3
    table = lake.open_table(labels.TABLE)
    assert table is not None and table.version() == 2  # made, and two commits


def test_writers_at_the_same_time_lose_nothing() -> None:
    with ThreadPoolExecutor(8) as threads:
        done = threads.map(
            lambda n: labels.append([Label(SHA256, n % 6, f"person {n}")]), range(24)
        )
        list(done)
    assert {row["labelled_by"] for row in stored()} == {f"person {n}" for n in range(24)}


@pytest.mark.parametrize(
    "given",
    [
        {"content_sha256": "t1"},
        {"value": 5.5},
        {"value": float("nan")},
        {"labelled_by": " "},
        {"label": ""},
    ],
)
def test_what_no_reader_could_use_is_refused(given: dict[str, object]) -> None:
    values: dict[str, object] = {"content_sha256": SHA256, "value": 4.0, "labelled_by": "ada"}
    with pytest.raises(LakeError):
        Label(**(values | given))  # type: ignore[arg-type]


def test_another_table_of_the_name_is_left_alone() -> None:
    write_deltalake(lake.table_path(labels.TABLE), pa.table({"a": [1]}))
    with pytest.raises(LakeError, match="other columns"):
        labels.append([Label(SHA256, 4.0, "ada")])
    assert stored() == [{"a": 1}]
