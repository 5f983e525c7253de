"""dbt's manifest as the assets need it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from orchestration.assets.manifest import is_stale, read_from_files, with_checked_models


def project(folder: Path) -> Path:
    for name in (
        "models/core/a.sql",
        "dbt_project/macros/m.sql",
        "dbt_project.yml",
        "profiles.yml",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def age(path: Path, seconds: float) -> None:
    before = path.stat().st_mtime - seconds
    os.utime(path, (before, before))


def test_a_manifest_is_stale_where_something_it_is_made_from_is_newer(tmp_path: Path) -> None:
    root = project(tmp_path)
    made = root / "target" / "manifest.json"
    assert is_stale(made, root)
    made.parent.mkdir()
    made.touch()
    for path in (root, *root.rglob("*")):
        if path != made:
            age(path, 60)
    assert not is_stale(made, root)

    (root / "models" / "core" / "b.sql").touch()

    assert is_stale(made, root)


def test_a_model_that_went_makes_a_manifest_stale(tmp_path: Path) -> None:
    root = project(tmp_path)
    made = root / "manifest.json"
    made.touch()
    for path in root.rglob("*"):
        if path != made:
            age(path, 60)

    (root / "models" / "core" / "a.sql").unlink()

    assert is_stale(made, root)


def manifest(*reads: str, meta: dict[str, Any] | None = None) -> dict[str, Any]:
    """a → b → c and d, and a test that reads some of them."""
    nodes: dict[str, Any] = {
        f"model.p.{name}": {"resource_type": "model", "name": name} for name in "abcd"
    }
    nodes["test.p.t"] = {
        "resource_type": "test",
        "name": "t",
        "config": {"meta": meta or {}},
        "depends_on": {"nodes": [f"model.p.{name}" for name in reads]},
    }
    parents = {"b": "a", "c": "b", "d": "b"}
    return {
        "nodes": nodes,
        "parent_map": {f"model.p.{k}": [f"model.p.{v}"] for k, v in parents.items()},
        "sources": {
            "source.p.raw.x": {"source_name": "raw", "name": "x"},
            "source.p.benchmarks.q": {"source_name": "benchmarks", "name": "q"},
        },
    }


def checked(found: dict[str, Any]) -> Any:
    return with_checked_models(found)["nodes"]["test.p.t"]["config"]["meta"].get("dagster")


def test_a_test_of_several_models_is_a_check_of_the_last() -> None:
    assert checked(manifest("a", "c", "b")) == {"ref": {"name": "c"}}
    assert checked(manifest("b", "a")) == {"ref": {"name": "b"}}
    assert checked(manifest("d", "c", "a")) == {"ref": {"name": "c"}}  # two come last


def test_what_a_test_says_itself_stays() -> None:
    own = {"dagster": {"ref": {"name": "a"}}}

    assert checked(manifest("a", "c", meta=own)) == own["dagster"]
    assert checked(manifest("c")) is None  # Dagster finds it by itself


def test_the_manifest_that_was_given_is_left_as_it_is() -> None:
    given = manifest("a", "b")
    with_checked_models(given)

    assert given == manifest("a", "b")


def test_sources_are_those_declared_and_those_found() -> None:
    assert read_from_files(manifest(), ["y"]) == {
        "raw_records": ["x", "y"],
        "benchmark_items": ["q"],
    }
