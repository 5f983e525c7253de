"""Pinning: a lake that begins with versions of another lake's tables.

`dbt build` with the var `pinned_versions` (and `pinned_lake`, where these versions are) runs no
model whose table is pinned, Python models included. It makes their views over the versions, and
builds all other models into its own lake, which has to be empty. What is pinned stays so for this
lake (`udfs.lake.Pins`), so that whatever else reads it, such as an export, reads the same.

`pinned_versions` is a mapping (table → version), or the path of an export's manifest. Then all
tables that the manifest names are pinned, except `curated_trajectories`, `preference_pairs` and
those that are made from them: these are to be built again, and begin with the version numbers that
the manifest names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from udfs.errors import ConfigError, LakeError
from udfs.lake import INPUTS, NO_ROWS, Pins
from udfs.settings import lake_root

# Where recipes come in: these tables, and what is made from them, are what a recipe makes of the
# rest.
CURATED = "curated_trajectories"
_BY_RECIPE = frozenset({CURATED, "preference_pairs"})


def pin_tables(given: str | None, lake: str | None) -> str:
    """Pin this lake's tables as the vars say; the `delta` materialization calls it.

    Args:
        given: the var `pinned_versions` as JSON.
        lake: the var `pinned_lake`: a folder, or an object-store URL.

    Returns:
        The lake that the versions are in.

    Raises:
        ConfigError: the vars cannot be used.
        LakeError: a version is not there any more, or this lake is not empty.
    """
    versions = json.loads(given or "null")
    if not lake:
        raise ConfigError(
            "pinned_versions is set and pinned_lake is not. Set it to the lake that has these "
            "versions, and TRAJLAKE_LAKE to an empty folder for what is built from them."
        )
    root = lake.rstrip("/") if "://" in lake else str(Path(lake).resolve())
    own = lake_root()
    if root == own or "://" in own:
        raise ConfigError(
            f"pinned_lake is {root}, and TRAJLAKE_LAKE is {own}. What is built from pinned "
            "versions needs a lake of its own: set TRAJLAKE_LAKE to an empty folder."
        )
    if isinstance(versions, str):
        pins = pins_of(read_manifest(Path(versions))["tables"], root)
    elif isinstance(versions, dict) and all(type(v) is int for v in versions.values()):
        pins = Pins(root, {name: _readable(root, name, v) for name, v in versions.items()})
    else:
        raise ConfigError(
            f"pinned_versions is {versions!r}. Give a mapping of tables to versions, such as "
            "{trajectories: 3}, or the path of an export's manifest.json."
        )
    pins.write(Path(own))
    return root


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an export, by its own path or by the export's folder.

    Raises:
        ConfigError: there is none.
    """
    file = path / "manifest.json" if path.is_dir() else path
    try:
        manifest = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read as an export's manifest: {error}") from error
    if not isinstance(manifest, dict) or not {"recipe", "tables"} <= manifest.keys():
        raise ConfigError(f"{file} is no manifest of an export: it names no recipe or no tables.")
    return manifest


def pins_of(tables: Mapping[str, int], lake: str) -> Pins:
    """What to pin for building the recipes of a manifest again.

    Args:
        tables: the manifest's tables with their versions.
        lake: the lake that has these versions.

    Raises:
        LakeError: a version is not there any more.
    """
    rebuilt = set(_BY_RECIPE & tables.keys())
    inputs = {name: inputs_at(f"{lake}/{name}", version) for name, version in tables.items()}
    while more := {n for n, made_of in inputs.items() if n not in rebuilt and made_of & rebuilt}:
        rebuilt |= more
    return Pins(
        lake,
        {n: _readable(lake, n, v) for n, v in tables.items() if n not in rebuilt},
        {n: v for n, v in tables.items() if n in rebuilt},
    )


def inputs_at(path: str, version: int) -> frozenset[str]:
    """The names of the tables that a version of a table was made from, as its commit says."""
    return frozenset(n for n, v in recorded_at(path, version, INPUTS).items() if _is_version(v))


def recorded_at(path: str, version: int, key: str) -> dict[str, Any]:
    """A JSON object that the last commit of a table up to a version records; empty without one.

    Raises:
        LakeError: there is no such table.
    """
    try:
        commits = DeltaTable(path).history()  # newest first
    except DeltaError as error:
        raise LakeError(f"The table {path} cannot be opened: {error}") from error
    for commit in commits:
        if commit["version"] <= version and key in commit:
            found: dict[str, Any] = json.loads(commit[key])
            return found
    return {}


def _is_version(value: object) -> bool:
    """Whether an input is a table's version, not a view's or seed's checksum."""
    return isinstance(value, int)


def _readable(lake: str, name: str, version: int) -> int:
    """The version itself, or one behind it that has the same rows in files that are still there.

    Raises:
        LakeError: there is none.
    """
    path = f"{lake}/{name}"
    gone = "its entry in the table's log is gone"
    try:
        newest = DeltaTable(path).version()
        for at in range(version, newest + 1):
            table = DeltaTable(path, version=at)
            if at > version and not _has_the_same_rows(path, at):
                break
            missing = _missing_files(table)
            if not missing:
                return at
            gone = f"{len(missing)} of its files are gone, such as {missing[0]}"
        if version > newest:
            gone = f"the newest version is {newest}"
    except DeltaError as error:
        gone = str(error)
    raise LakeError(
        f"Version {version} of {path} cannot be read: {gone}. What was vacuumed or deleted cannot "
        "be built from again; versions that exports go back to have to be kept."
    )


def _has_the_same_rows(path: str, version: int) -> bool:
    for commit in DeltaTable(path).history():
        if commit["version"] == version:
            return str(commit["operation"]).startswith(NO_ROWS)
    return False


def _missing_files(table: DeltaTable) -> list[str]:
    """Files of a version that are not there; of an object store nobody is asked."""
    return [uri for uri in table.file_uris() if "://" not in uri and not Path(uri).exists()]
