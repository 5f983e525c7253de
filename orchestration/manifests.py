"""Exports by name: what a command calls an export, and the manifest that is meant.

| what is given               | which export                                            |
|-----------------------------|---------------------------------------------------------|
| `default`                   | the recipe's export, at `exports/default`               |
| `default@previous`          | the one before it, which `trajlake export` keeps        |
| a folder                    | the one that lies there                                 |
| a file                      | the one whose manifest it is; nothing else is needed    |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udfs.errors import ConfigError
from udfs.pinning import read_manifest
from udfs.settings import exports_folder

_PREVIOUS = "@previous"


@dataclass(frozen=True)
class Exported:
    """An export as its manifest says it is; `file` is the manifest."""

    name: str
    file: Path
    manifest: Mapping[str, Any]

    @property
    def recipe(self) -> str:
        """The recipe that it was made by."""
        return str(self.manifest["recipe"])

    @property
    def tables(self) -> Mapping[str, int]:
        """Table → version: all that it goes back to."""
        tables: Mapping[str, int] = self.manifest["tables"]
        return tables


def find_export(name: str) -> Exported:
    """The export that is called so.

    Raises:
        ConfigError: there is none.
    """
    path = Path(name)
    if name.endswith(_PREVIOUS):
        file = _previous(name.removesuffix(_PREVIOUS)) / "manifest.json"
    elif (exports_folder() / name / "manifest.json").is_file():
        file = exports_folder() / name / "manifest.json"
    elif path.is_dir():
        file = path / "manifest.json"
    else:
        file = path
    if not file.is_file():
        known = ", ".join(each for each, _ in manifest_files()) or "none"
        raise ConfigError(
            f"'{name}' is no export: there is no manifest at {file}. Give a recipe with an export "
            f"in {exports_folder()} (there are: {known}), a folder, or a manifest.json."
        )
    return Exported(name, file, read_manifest(file))


def manifest_files() -> list[tuple[str, Path]]:
    """Every export in the exports folder by its name, the previous ones included."""
    found = []
    for file in sorted(exports_folder().glob("*/manifest.json")):
        name = file.parent.name
        found.append((name, file))
        found += [(f"{name}{_PREVIOUS}", before) for before in _others(name)]
    return found


def _previous(name: str) -> Path:
    others = _others(name)
    if not others:
        raise ConfigError(
            f"There is no export of '{name}' before the current one. One is kept when "
            "`trajlake export` writes another; before that, only `dbt build` and the lake know."
        )
    return others[0].parent


def _others(name: str) -> list[Path]:
    """The manifests of an export's kept versions that are not the current one."""
    current = (exports_folder() / name).resolve()
    files = (exports_folder() / ".versions" / name).glob("*/manifest.json")
    return sorted(file for file in files if file.parent.resolve() != current)
