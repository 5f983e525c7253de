"""What an export is made from: a recipe, versions of tables, and this code.

Only the newest plan (or the newest pairs) is chosen. Each table's commit says which versions it was
made from, so the versions of all other tables follow from that one's, whatever a build does
meanwhile.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import duckdb

from orchestration.export.layouts import Layout
from orchestration.export.source import Source
from udfs.errors import ExportError
from udfs.lake import INPUTS, load_delta_extension, open_table, path_scan, rows_version, table_path

# Tables whose later versions have all that earlier ones had. One that adds nothing makes no new
# version, so what goes back to it may name an earlier version for good.
_GROWING = frozenset({"raw_records", "trajectories", "conversations"})

# What DuckDB may hold of the rows it sorts; the rest is on disk.
_MEMORY_LIMIT = "2GB"


def code_version() -> str:
    """The project's version; in a git checkout with `+g<commit>`, followed by `.d<hash>` where
    tracked files differ from that commit."""
    root = Path(__file__).parents[2]
    project: str = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return project

    def git(*arguments: str) -> bytes | None:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    if commit is None:  # not one commit yet
        return project
    difference = git("diff", "--binary", "HEAD")
    changed = f".d{sha256(difference).hexdigest()[:8]}" if difference else ""
    return f"{project}+g{commit.decode().strip()}{changed}"


def table_versions(source: Source) -> dict[str, int]:
    """The newest version of what rows are made from, and the versions of all that it goes back to.

    A table that only grows may have been read at different versions; then the latest counts.
    Quarantine is not among them: nothing of it comes into an export. A table that is read
    but that the chosen one does not go back to is read at its newest version.

    Raises:
        ExportError: there is no such table, or it was made from two versions of one that is read.
    """
    root = source.root
    table = open_table(root)
    if table is None:
        raise ExportError(
            f"There is no {source.what} at {table_path(root)}. Run `dbt build`, or set "
            "TRAJLAKE_LAKE to the lake that has one."
        )
    found: dict[str, int] = {}
    pending = [(root, table.version())]
    for name, at in pending:
        is_read = name in source.reads and name not in _GROWING
        if is_read and found.get(name, at) != at:
            raise ExportError(
                f"The {source.what} was made from versions {found[name]} and {at} of {name} at "
                "once: the last build left something out. Run `dbt build`, then export again."
            )
        if found.get(name, -1) < at:
            found[name] = at
            pending += _inputs(name, at)
    for name in source.reads:
        if name not in found:
            newest = rows_version(name)
            if newest is None:
                raise ExportError(
                    f"There is no table at {table_path(name)}, which the {source.what} needs. Run "
                    "`dbt build`, then export again."
                )
            found[name] = newest
    return dict(sorted(found.items()))


def _inputs(name: str, at: int) -> list[tuple[str, int]]:
    """The tables, with versions, that a version of a table was made from, as its commit says."""
    table = open_table(name)
    for commit in table.history() if table else ():  # newest first
        if commit["version"] <= at and INPUTS in commit:
            inputs = json.loads(commit[INPUTS])
            # Seeds and views stand there too, with a checksum.
            return [(each, v) for each, v in inputs.items() if isinstance(v, int)]
    return []


def connect(source: Source, versions: Mapping[str, int]) -> duckdb.DuckDBPyConnection:
    """A DuckDB with views over the tables that an export reads, at their versions.

    Raises:
        ExportError: a version is not there any more.
    """
    connection = duckdb.connect(config={"memory_limit": _MEMORY_LIMIT})
    load_delta_extension(connection)
    for name in source.reads:
        path = table_path(name)
        try:
            connection.execute(
                f"create view {name} as select * from {path_scan(path, versions[name])}"
            )
        except duckdb.Error as error:
            raise ExportError(
                f"The {source.what} was made from version {versions[name]} of {path}, which "
                f"cannot be read ({str(error).splitlines()[0]}). Run `dbt build`, then export "
                "again."
            ) from error
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str, recipe: str) -> list[dict[str, Any]]:
    """The rows of a query over a recipe."""
    rows: list[dict[str, Any]] = (
        connection.execute(sql, {"recipe": recipe}).to_arrow_table().to_pylist()
    )
    return rows


def origin(
    connection: duckdb.DuckDBPyConnection,
    recipe: str,
    layout: Layout,
    versions: Mapping[str, int],
) -> dict[str, Any]:
    """The part of the manifest that says what an export is made from.

    Raises:
        ExportError: there is no such recipe in the lake.
    """
    settings = _settings(connection, recipe)
    writer = "pyarrow" if layout.extension == "parquet" else "orjson"
    return {
        "recipe": recipe,
        "layout": layout.name,
        "recipe_sha256": sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "settings": settings,
        "tables": dict(versions),
        "code_version": code_version(),
        "written_by": f"{writer} {version(writer)}",
    }


def _settings(connection: duckdb.DuckDBPyConnection, recipe: str) -> dict[str, Any]:
    """The recipe as it was: its settings, its sources' and its quotas.

    Raises:
        ExportError: there is no such recipe in the lake.
    """
    rows = query(
        connection,
        """
        select distinct * exclude (recipe, source, is_excluded)
        from recipe_settings
        where recipe = $recipe
        order by matched_by
        """,
        recipe,
    )
    if not rows:
        known = [
            name
            for (name,) in connection.sql(
                "select distinct recipe from recipe_settings order by recipe"
            ).fetchall()
        ]
        if not known:
            raise ExportError(
                "The lake holds no record yet, so there is nothing to export. Put files below "
                "the raw folder and run `dbt build`."
            )
        raise ExportError(
            f"There is no recipe '{recipe}' in the lake; there are: {', '.join(known)}. Add it to "
            "dbt_project/seeds/recipes.csv and run `dbt build`."
        )
    of_source = ("weight", "max_repeats", "is_general")
    settings = {
        key: value for key, value in rows[0].items() if key not in (*of_source, "matched_by")
    }
    settings["sources"] = {
        row["matched_by"]: {key: row[key] for key in of_source}
        for row in rows
        if row["matched_by"] is not None
    }
    settings["excluded_sources"] = [
        row["source"]
        for row in query(
            connection,
            "select source from recipe_settings where recipe = $recipe and is_excluded order by 1",
            recipe,
        )
    ]
    settings["quotas"] = query(
        connection,
        """
        select dimension, value, max_trajectories
        from quota_settings
        where recipe = $recipe
        order by dimension, value
        """,
        recipe,
    )
    return settings
