"""Where things are: the settings that come from the environment.

| variable              | default           | what it is                                           |
|-----------------------|-------------------|------------------------------------------------------|
| `TRAJLAKE_RAW`        | `raw/`            | raw files, one folder below it a source              |
| `TRAJLAKE_BENCHMARKS` | `benchmarks/`     | benchmarks, one folder or file below it each         |
| `TRAJLAKE_LAKE`       | `lake/`           | Delta tables, each at `<lake>/<table>`               |
| `TRAJLAKE_EXPORTS`    | `exports/`        | exports, each at `<exports>/<recipe>[.<layout>]`     |
| `TRAJLAKE_PREPARED`   | `prepared/`       | exports as tokens, each at `<recipe>-<key>` below it |
| `TRAJLAKE_DB`         | `trajlake.duckdb` | DuckDB file with views only; may be deleted any time |
| `TRAJLAKE_WORKERS`    | cores, at most 8  | processes that parse, or tokenise; 1: only the main  |

Paths are relative to the current folder, which is the project's root for every command, or any
other where `TRAJLAKE_LAKE` says where the lake is.
"""

from __future__ import annotations

import os
from pathlib import Path

from udfs.errors import ConfigError

# Each takes some 100 MB, and one writer has to keep up with them.
_MOST_WORKERS = 8


def check_folder() -> None:
    """Refuse a folder in which no lake would be looked for.

    Raises:
        ConfigError: the current folder is not the project's root, and no lake is named.
    """
    if not (Path.cwd() / "dbt_project.yml").exists() and not os.environ.get("TRAJLAKE_LAKE"):
        raise ConfigError(
            f"{Path.cwd()} is not Trajlake's folder. Run `cd {Path(__file__).parents[1]}` first, "
            "or set TRAJLAKE_LAKE to a lake."
        )


def raw_folder() -> Path:
    """The folder of raw files (absolute)."""
    return Path(os.environ.get("TRAJLAKE_RAW") or "raw").resolve()


def benchmarks_folder() -> tuple[Path, bool]:
    """The folder of benchmarks (absolute), and whether somebody has named it."""
    given = os.environ.get("TRAJLAKE_BENCHMARKS")
    return Path(given or "benchmarks").resolve(), bool(given)


def lake_root() -> str:
    """The lake: an absolute local path, or an object-store URL as it was given."""
    root = os.environ.get("TRAJLAKE_LAKE") or "lake"
    return root.rstrip("/") if "://" in root else str(Path(root).resolve())


def exports_folder() -> Path:
    """The folder of exports (absolute)."""
    return Path(os.environ.get("TRAJLAKE_EXPORTS") or "exports").resolve()


def prepared_folder() -> Path:
    """The folder of prepared rows (absolute)."""
    return Path(os.environ.get("TRAJLAKE_PREPARED") or "prepared").resolve()


def database_file() -> Path:
    """The DuckDB file that holds the views (absolute)."""
    return Path(os.environ.get("TRAJLAKE_DB") or "trajlake.duckdb").resolve()


def worker_count() -> int:
    """How many processes parse, or tokenise.

    Raises:
        ConfigError: what is set is no number from 1.
    """
    text = os.environ.get("TRAJLAKE_WORKERS") or str(min(os.cpu_count() or 1, _MOST_WORKERS))
    if not (text.isdecimal() and int(text)):
        raise ConfigError(f"TRAJLAKE_WORKERS is '{text}'. Set a number from 1, or unset it.")
    return int(text)
