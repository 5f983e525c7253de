"""What is declared about sources: the entries of `models/bronze/sources.yml`.

A source is a folder below the raw folder and needs no entry; an entry says what the files
cannot say themselves. The file is an ordinary dbt source file, so that every entry is a node
with documentation and lineage; what Trajlake reads stands under `config: meta:`.

| key               | what it says                                                             |
|-------------------|--------------------------------------------------------------------------|
| `format`          | the format of its records; detected record by record where it is missing |
| `container`       | how a JSON file holds records: `lines`, `array`, `dictionary`, `record`  |
| `thought_as_step` | true: a thought before an action is a step of its own                    |
| `mapping`         | how records of a format of its own are read; see `udfs.formats.mapped`   |
| `fields`          | JSON paths to what has other names there; see `udfs.formats.fields`      |
| `environment`     | the environment that the agent acted in                                  |
| `task_type`       | the kind of task                                                         |
| `model_name`      | the model that acted, where the records do not say it                    |
| `license`         | SPDX identifier, or the publisher's own words                            |
| `is_synthetic`    | true where a model wrote the trajectories' tasks or observations         |
| `generator`       | what generated them, if they are synthetic                               |
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from udfs.errors import ConfigError
from udfs.formats import FORMATS
from udfs.formats.fields import check_fields
from udfs.formats.mapped import FORMAT as MAPPED
from udfs.formats.mapped import check_mapping
from udfs.formats.model_read import FORMAT as MODEL_READ

SOURCES_FILE = Path(__file__).parent.parent / "models" / "bronze" / "sources.yml"

CONTAINERS = ("lines", "array", "dictionary", "record")


@dataclass(frozen=True)
class SourceSettings:
    """The declared facts of one source; the keys of the table above."""

    format: str | None = None
    container: str | None = None
    thought_as_step: bool | None = None
    mapping: Mapping[str, Any] | None = None
    fields: Mapping[str, str] | None = None
    environment: str | None = None
    task_type: str | None = None
    model_name: str | None = None
    license: str | None = None
    is_synthetic: bool | None = None
    generator: str | None = None

    @property
    def parser_options(self) -> str | None:
        """What a parser is told, as JSON; None where there is nothing to tell."""
        options = {
            "thought_as_step": self.thought_as_step,
            "fields": self.fields,
            "mapping": self.mapping,
        }
        given = {name: value for name, value in options.items() if value is not None}
        return json.dumps(given) if given else None


# How a record is parsed, by `parser_settings(source, reading)`.
PARSER_SETTINGS = pa.struct([("format", pa.string()), ("parser_options", pa.string())])

# What SQL gets of a source, by `source_settings(source)`.
SETTINGS = pa.struct(
    [
        ("environment", pa.string()),
        ("task_type", pa.string()),
        ("model_name", pa.string()),
        ("license", pa.string()),
        ("is_synthetic", pa.bool_()),
        ("generator", pa.string()),
    ]
)


@cache
def declared_sources(path: Path = SOURCES_FILE) -> dict[str, SourceSettings]:
    """Source name → what the file declares of it.

    Raises:
        ConfigError: a key or value that means nothing here; names the file, the source, the key
            and what exists.
    """
    document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    return {
        table["name"]: _settings(path, table["name"], (table.get("config") or {}).get("meta") or {})
        for group in document.get("sources") or []
        for table in group.get("tables") or []
    }


def _settings(path: Path, source: str, meta: dict[str, Any]) -> SourceSettings:
    where = f"{path.parent.name}/{path.name}: source '{source}'"
    known = get_type_hints(SourceSettings)
    for key, value in meta.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'. Keys: {', '.join(known)}.")
        if key == "fields":
            check_fields(value, where)
            continue
        if key == "mapping":
            check_mapping(value, f"{where}: mapping")
            continue
        kind = bool if "bool" in str(known[key]) else str
        if not isinstance(value, kind):
            raise ConfigError(f"{where}: '{key}' is {value!r} and has to be a {kind.__name__}.")
    allowed = {"format": tuple(f.name for f in FORMATS), "container": CONTAINERS}
    for key, values in allowed.items():
        if key in meta and meta[key] not in values:
            raise ConfigError(
                f"{where}: {key} '{meta[key]}' does not exist. Choose from: {', '.join(values)}."
            )
    if "mapping" in meta and "format" in meta:
        raise ConfigError(
            f"{where}: both 'format' and 'mapping'. A mapping says how records are read that have "
            "none of the formats; remove one of them."
        )
    return SourceSettings(**meta)


def source_settings(source: pa.Array) -> pa.Array:
    """The settings of each named source, as structs of type `SETTINGS`; null fields where
    nothing is declared.

    Args:
        source: strings, shape (n,).
    """
    encoded = source.dictionary_encode()
    declared = declared_sources()
    found = [declared.get(name, SourceSettings()) for name in encoded.dictionary.to_pylist()]
    settings = pa.StructArray.from_arrays(
        [pa.array([getattr(each, f.name) for each in found], f.type) for f in SETTINGS],
        fields=list(SETTINGS),
    )
    return settings.take(encoded.indices)


def parser_settings(source: pa.Array, reading: pa.Array) -> pa.Array:
    """How a record is parsed, as structs of type `PARSER_SETTINGS`: what is declared for its
    source, and what was learnt of the record.

    Args:
        source: strings, shape (n,).
        reading: strings, shape (n,): JSON object with `mapping` or `answer`, as the model
            `learned_records` gives it; null for nearly all records.
    """
    encoded = source.dictionary_encode()
    declared = declared_sources()
    found = [declared.get(name, SourceSettings()) for name in encoded.dictionary.to_pylist()]
    formats = [MAPPED.name if each.mapping else each.format for each in found]
    columns = [
        pa.array(values, pa.string()).take(encoded.indices)
        for values in (formats, [each.parser_options for each in found])
    ]
    if reading.null_count < len(reading):
        is_learnt = reading.is_valid()
        told = [json.loads(each) for each in reading.drop_null().to_pylist()]
        given = [json.loads(each or "{}") for each in columns[1].filter(is_learnt).to_pylist()]
        learnt = (
            [(MAPPED if "mapping" in each else MODEL_READ).name for each in told],
            [json.dumps(options | each) for options, each in zip(given, told, strict=True)],
        )
        columns = [
            pc.replace_with_mask(column, is_learnt, pa.array(values, pa.string()))
            for column, values in zip(columns, learnt, strict=True)
        ]
    return pa.StructArray.from_arrays(columns, fields=list(PARSER_SETTINGS))


def source_versions() -> str:
    """A short text that changes whenever a declared setting does."""
    values = {
        name: [getattr(settings, field.name) for field in fields(settings)]
        for name, settings in sorted(declared_sources().items())
    }
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]
