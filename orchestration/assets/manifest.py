"""dbt's manifest as Dagster needs it: there, up to date, and with a model for every test."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

# Everything that dbt parses.
_PARSED = ("models", "dbt_project")


def is_stale(manifest: Path, project: Path) -> bool:
    """Whether the manifest is missing, or older than a file that it was made from."""
    if not manifest.is_file():
        return True
    made = manifest.stat().st_mtime_ns
    files = [project / "dbt_project.yml", project / "profiles.yml"]
    for folder in _PARSED:
        # A folder's own time changes when a file in it goes.
        files += [project / folder, *(project / folder).rglob("*")]
    return any(file.stat().st_mtime_ns > made for file in files if "__pycache__" not in file.parts)


def with_checked_models(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest, with a model named for each data test that reads several.

    Dagster shows a test as a check of one asset. For a test in a file of its own that is the model
    it reads which comes last in the flow: all others it reads are above it, and are there by then.
    Where several come last, it is the first by name. A model that the test names itself
    (`meta: {dagster: {ref: {name: …}}}`) stays.
    """
    changed = copy.deepcopy(dict(manifest))
    for node in changed["nodes"].values():
        if node["resource_type"] != "test" or node.get("attached_node"):
            continue
        reads = sorted(set(node["depends_on"]["nodes"]))
        meta = node["config"].setdefault("meta", {})
        if len(reads) < 2 or "dagster" in meta:
            continue
        last = [
            each
            for each in reads
            if not any(each in _above(other, changed) for other in reads if other != each)
        ]
        meta["dagster"] = {"ref": {"name": changed["nodes"][last[0]]["name"]}}
    return changed


def _above(node: str, manifest: Mapping[str, Any]) -> set[str]:
    """All that a node is made from."""
    found: set[str] = set()
    waiting = [node]
    while waiting:
        for parent in manifest["parent_map"].get(waiting.pop(), ()):
            if parent not in found:
                found.add(parent)
                waiting.append(parent)
    return found


def read_from_files(manifest: Mapping[str, Any], found: Iterable[str]) -> dict[str, list[str]]:
    """The model that reads a folder → the sources below it: declared ones, and those `found`
    below the raw folder."""
    declared: dict[str, set[str]] = {"raw": set(found), "benchmarks": set()}
    for source in manifest["sources"].values():
        declared.setdefault(source["source_name"], set()).add(source["name"])
    return {
        "raw_records": sorted(declared["raw"]),
        "benchmark_items": sorted(declared["benchmarks"]),
    }
