"""What is declared about benchmarks: the entries of `models/bronze/benchmarks.yml`.

A benchmark needs no entry where its items keep their text under a usual name. The file is an
ordinary dbt source file, as `sources.yml` is; what Trajlake reads stands under `config: meta:`.

| key         | what it says                                                                    |
|-------------|---------------------------------------------------------------------------------|
| `text`      | JSON path, or a list of them: where an item's question or task is               |
| `id`        | JSON path to what names an item                                                 |
| `answer`    | JSON path to its answer                                                         |
| `items`     | JSON path to the list of items, where a file is one JSON document around it     |
| `container` | how a JSON file holds its items: `lines`, `array`, `dictionary`, `record`       |

A path is one of `udfs.formats.fields`; a column of a CSV or Parquet file is a path as well. Each
text is searched for by itself: a path that leads to a conversation gives the user's turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from udfs.errors import ConfigError
from udfs.formats.fields import path_steps
from udfs.sources import CONTAINERS

BENCHMARKS_FILE = Path(__file__).parents[2] / "models" / "bronze" / "benchmarks.yml"

_PATHS = ("text", "id", "answer", "items")
_KEYS = (*_PATHS, "container")


@dataclass(frozen=True)
class BenchmarkSettings:
    """The declared facts of one benchmark; the keys of the table above."""

    text: tuple[str, ...] = ()
    id: str | None = None
    answer: str | None = None
    items: str | None = None
    container: str | None = None

    @property
    def digest(self) -> str:
        """A short text that changes whenever a setting does."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]


@cache
def declared_benchmarks(path: Path = BENCHMARKS_FILE) -> dict[str, BenchmarkSettings]:
    """Benchmark → what the file declares of it; nothing where there is no such file.

    Raises:
        ConfigError: a key or value that means nothing here; names the file, the benchmark, the
            key and what exists.
    """
    if not path.is_file():
        return {}
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {
        table["name"]: _settings(path, table["name"], (table.get("config") or {}).get("meta") or {})
        for group in document.get("sources") or []
        for table in group.get("tables") or []
    }


def _settings(path: Path, benchmark: str, meta: Mapping[str, Any]) -> BenchmarkSettings:
    where = f"{path.parent.name}/{path.name}: benchmark '{benchmark}'"
    for key in meta:
        if key not in _KEYS:
            raise ConfigError(f"{where}: unknown key '{key}'. Keys: {', '.join(_KEYS)}.")
    container = meta.get("container")
    if container is not None and container not in CONTAINERS:
        raise ConfigError(
            f"{where}: container '{container}' does not exist. Choose from: "
            f"{', '.join(CONTAINERS)}."
        )
    text = meta.get("text", [])
    texts = text if isinstance(text, list) else [text]
    for key, value in [("text", each) for each in texts] + [(k, meta.get(k)) for k in _PATHS[1:]]:
        if value is None and key != "text":
            continue
        try:
            path_steps(value)
        except ValueError as error:
            raise ConfigError(
                f"{where}: the path of '{key}' is {value!r}: {error}. A path looks like "
                "`question`, `$.task.goal` or `turns[0]`."
            ) from None
    return BenchmarkSettings(
        text=tuple(texts),
        id=meta.get("id"),
        answer=meta.get("answer"),
        items=meta.get("items"),
        container=container,
    )
