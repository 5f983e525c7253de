"""What there is of each source: `trajlake sources`, and closer: `trajlake sources NAME`.

Beside what is in the lake stands what is not yet: folders and files below `TRAJLAKE_RAW` that no
build has landed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from difflib import get_close_matches
from textwrap import shorten
from typing import Annotated, Any

import duckdb
import orjson
import typer
from rich.console import Console
from rich.table import Table

from orchestration.printing import AsJson, note, print_json, size_text, table, text
from orchestration.record_fields import described_layout
from udfs.errors import ConfigError, LakeError
from udfs.landing.files import RawFile, list_files
from udfs.settings import raw_folder
from udfs.sources import SourceSettings, declared_sources
from udfs.views import open_lake

# Records whose fields are looked at.
_SAMPLED_RECORDS = 200

# What a terminal is shown of long lists; JSON has them whole.
_SHOWN_FILES = 20
_SHOWN_FIELDS = 60

_FILES = """
    select
        source,
        raw_file as name,
        count(*) as records,
        cast(sum(raw_bytes) as bigint) as bytes,
        list(distinct file_bytes) as sizes,
        max(landed_at) as landed_at,
    from raw_records
    group by source, raw_file
    order by source, name
"""
_FORMATS = """
    select
        source,
        format,
        count(*) as trajectories,
        avg(format_confidence) as confidence,
        min(format_confidence) as lowest_confidence,
    from trajectories
    group by source, format
    order by source, trajectories desc, format
"""
# Columns of `trajectories` whose values are listed → what a list of them is called.
_LISTED = {
    "environment": "environments",
    "task_type": "task_types",
    "model_name": "model_names",
    "license": "licenses",
    "generator": "generators",
}
_VALUES = ", ".join(
    f"list(distinct {column} order by {column}) filter ({column} is not null) as {name}"
    for column, name in _LISTED.items()
)
_FACTS = f"""
    select source, count(*) as trajectories, {_VALUES}, bool_or(is_synthetic) as is_synthetic,
    from trajectories
    group by source
"""
_REFUSED = """
    select
        source,
        reason,
        count(*) as records,
        arg_min(raw_file, (raw_file, raw_position)) as first_file,
        arg_min(raw_position, (raw_file, raw_position)) as first_position,
        arg_min(detail, (raw_file, raw_position)) as first_detail,
    from quarantine
    group by source, reason
    order by source, records desc, reason
"""
_SAMPLE = """
    select raw
    from raw_records
    where source = $source and landing_error is null
    limit $records
"""

# What a declaration says of the reading of records.
_READING = ("format", "container", "thought_as_step", "fields", "mapping")


def sources_command(
    name: Annotated[
        str | None, typer.Argument(help="One source, to be looked at more closely.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say what there is of each source, in the lake and below the raw folder."""
    found, closer = _look(name)
    if as_json:
        print_json(list(found.values()) if name is None else found[name] | closer)
        return
    console = Console()
    if name is None:
        console.print(_amounts(found.values()))
        console.print(_facts(found.values()))
    else:
        _print_one(console, found[name] | closer)


def _look(name: str | None) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """All sources by name, and what there is more to say of the one that was asked about."""
    files = list_files(raw_folder()) if raw_folder().is_dir() else []
    try:
        connection = open_lake()
    except LakeError:
        if not files:
            raise
        note("note: the lake has not been built yet; `dbt build` lands these files.")
        connection = duckdb.connect()
    with connection:
        found = _sources(connection, files)
        if name is None:
            return found, {}
        if name not in found:
            alike = get_close_matches(name, found, n=1)
            hint = f"Did you mean '{alike[0]}'?" if alike else f"There are {', '.join(found)}."
            raise ConfigError(
                f"There is no source '{name}', neither in the lake nor below {raw_folder()}. {hint}"
            )
        return found, _closer(connection, name)


def _rows(
    connection: duckdb.DuckDBPyConnection, sql: str, **parameters: Any
) -> Iterator[dict[str, Any]]:
    """The rows of a query; none where its table has not been built yet."""
    try:
        result = connection.execute(sql, parameters)
    except duckdb.CatalogException:
        return
    names = [column[0] for column in result.description]
    for row in result.fetchall():
        yield dict(zip(names, row, strict=True))


def _sources(
    connection: duckdb.DuckDBPyConnection, files: Iterable[RawFile]
) -> dict[str, dict[str, Any]]:
    """Every source in the lake or below the raw folder, by name."""
    landed = list(_rows(connection, _FILES))
    present = list(files)
    declared = declared_sources()
    found = {
        name: _source(name, declared.get(name))
        for name in sorted({row["source"] for row in landed} | {file.source for file in present})
    }
    sizes = {row["name"]: row["sizes"] for row in landed}
    for row in landed:
        source = found[row["source"]]
        source["files"] += 1
        source["records"] += row["records"]
        source["bytes"] += row["bytes"]
        source["landed_at"] = max(source["landed_at"] or row["landed_at"], row["landed_at"])
    for file in present:
        if file.size not in sizes.get(file.name, ()):
            found[file.source]["files_not_landed"] += 1
            found[file.source]["bytes_not_landed"] += file.size
    for row in _rows(connection, _FORMATS):
        found[row.pop("source")]["formats"].append(row)
    for row in _rows(connection, _FACTS):
        source = found[row.pop("source")]
        # A declaration that no build has read yet is not in the tables.
        source |= {key: value for key, value in row.items() if value not in (None, [])}
    for row in _rows(connection, _REFUSED):
        source = found[row["source"]]
        source["quarantined"] += row["records"]
        source["main_reason"] = source["main_reason"] or row["reason"]
    return found


def _source(name: str, settings: SourceSettings | None) -> dict[str, Any]:
    """A source of which only the declaration is known."""
    declared = settings or SourceSettings()
    values = {name: getattr(declared, column) for column, name in _LISTED.items()}
    return {
        "source": name,
        "is_declared": settings is not None,
        "files": 0,
        "records": 0,
        "bytes": 0,
        "landed_at": None,
        "files_not_landed": 0,
        "bytes_not_landed": 0,
        "formats": [],
        "trajectories": 0,
        "quarantined": 0,
        "main_reason": None,
        **{name: [value] if value else [] for name, value in values.items()},
        "is_synthetic": declared.is_synthetic,
    }


def _closer(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, Any]:
    """What there is to say of one source alone."""
    settings = declared_sources().get(name)
    records = []
    for row in _rows(connection, _SAMPLE, source=name, records=_SAMPLED_RECORDS):
        try:
            records.append(orjson.loads(row["raw"]))
        except orjson.JSONDecodeError:
            continue  # it is in quarantine, which says so
    return {
        "declared": {k: v for k, v in asdict(settings).items() if v is not None}
        if settings
        else None,
        "landed_files": [
            {key: row[key] for key in ("name", "records", "bytes", "landed_at")}
            for row in _rows(connection, _FILES)
            if row["source"] == name
        ],
        "quarantine": [row for row in _rows(connection, _REFUSED) if row.pop("source") == name],
        "sampled_records": len(records),
        "fields": [asdict(field) for field in described_layout(records)],
    }


def _amounts(found: Iterable[Mapping[str, Any]]) -> Table:
    shown = table("In the lake")
    shown.add_column("source", no_wrap=True)
    for column in ("files", "records", "size", "traj."):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("formats, how sure", overflow="fold")
    shown.add_column("quarantined", overflow="fold")
    for each in found:
        shown.add_row(
            text(each["source"]),
            f"{each['files']:,}",
            f"{each['records']:,}",
            size_text(each["bytes"]),
            f"{each['trajectories']:,}",
            text("\n".join(f"{f['format']} {f['confidence']:.2f}" for f in each["formats"])),
            text(_refused(each)),
        )
    return shown


def _refused(each: Mapping[str, Any]) -> str:
    """What became of the rest, in a word or two."""
    lines = []
    if each["quarantined"]:
        lines.append(f"{each['quarantined']:,} {each['main_reason']}")
    if each["files_not_landed"]:
        size = size_text(each["bytes_not_landed"])
        lines.append(f"not landed: {each['files_not_landed']:,} files, {size}")
    return "\n".join(lines)


def _facts(found: Iterable[Mapping[str, Any]]) -> Table:
    shown = table("What is said of them")
    shown.add_column("source", no_wrap=True)
    for column in ("environment", "task type", "licence", "models", "synthetic", "declared"):
        shown.add_column(column, overflow="fold")
    for each in found:
        shown.add_row(
            text(each["source"]),
            *(
                text(", ".join(each[key]))
                for key in ("environments", "task_types", "licenses", "model_names")
            ),
            {True: "yes", False: "no", None: ""}[each["is_synthetic"]],
            "yes" if each["is_declared"] else "no",
        )
    return shown


def _print_one(console: Console, source: Mapping[str, Any]) -> None:
    """One source, from its files to its fields."""
    console.print(_amounts([source]))
    console.print(_facts([source]))
    reading = {
        key: source["declared"][key] for key in _READING if key in (source["declared"] or {})
    }
    if reading:
        console.print(text(f"Read as sources.yml says: {json.dumps(reading)}\n"), soft_wrap=True)
    if source["landed_files"]:
        console.print(_table_of(source["landed_files"], "Files", _SHOWN_FILES))
    if source["quarantine"]:
        refused = table("In quarantine")
        for column in ("reason", "records", "the first of them"):
            refused.add_column(column, overflow="fold")
        for row in source["quarantine"]:
            place = f"{row['first_file']}, record {row['first_position']}"
            detail = shorten(row["first_detail"] or "", 200, placeholder=" …")
            refused.add_row(text(row["reason"]), f"{row['records']:,}", text(f"{place}: {detail}"))
        console.print(refused)
    if source["fields"]:
        title = f"Fields of {source['sampled_records']:,} records"
        console.print(_table_of(source["fields"], title, _SHOWN_FIELDS))


def _table_of(rows: list[dict[str, Any]], title: str, most: int) -> Table:
    """Rows as they are, the first of them where there are many."""
    shown = table(title)
    for column in rows[0]:
        shown.add_column(column.replace("_", " "), overflow="fold")
    for row in rows[:most]:
        values = (", ".join(v) if isinstance(v, tuple | list) else v for v in row.values())
        shown.add_row(*map(text, values))
    if len(rows) > most:
        shown.caption = f"and {len(rows) - most:,} more; --json has all"
        shown.caption_justify = "left"
    return shown
