"""The one way from the lake's tables to an export's files, whatever the layout.

DuckDB joins and sorts what rows are made from, on disk; it comes as a stream of Arrow batches that
know where to cut. A row group at a time goes through redaction, if the recipe asks for it, and the
layout's function, and into a file. So memory is bounded by a row group and DuckDB's limit.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from orchestration.export.card import card
from orchestration.export.folder import (
    alone,
    check_link,
    new_partial,
    publish,
    read_manifest,
    sync,
    write_text,
)
from orchestration.export.layouts import LAYOUTS, Layout
from orchestration.export.origin import connect, origin, query, table_versions
from orchestration.export.redaction import redacted
from orchestration.export.source import SOURCES, Source
from udfs.errors import ExportError
from udfs.formats.jsontext import to_json
from udfs.lake import sql_text
from udfs.settings import exports_folder

# A row group is what a reader holds at a time, a shard what it takes at a time. Both are cut by
# the size of their text, so that rows of any length stay within memory.
_ROW_GROUP_CHARACTERS = 16 * 2**20
_SHARD_CHARACTERS = 16 * _ROW_GROUP_CHARACTERS

# DuckDB's own vector size.
_BATCH_ROWS = 2_048


@dataclass(frozen=True)
class Export:
    """An export: its folder, its manifest, and whether this call wrote it."""

    folder: Path
    manifest: Mapping[str, Any]
    is_new: bool


def export(recipe: str, layout: str = "sft", *, learn_masked: bool = False) -> Export:
    """Write a recipe's training data to `exports/<recipe>`, or `exports/<recipe>.<layout>`.

    What is read is the newest plan (for pairs, the newest pairs), and every other table at the
    version that this was made from, whatever a build does meanwhile. Where the export was made
    from the same already, nothing is written.

    Args:
        recipe: its name.
        layout: one of `LAYOUTS`.
        learn_masked: write a layout whose trainer would learn from masked outputs, masked ones
            among them. The manifest says how many.

    Raises:
        ExportError: there is no such recipe or layout, or the recipe has nothing to write; the
            lake's tables do not fit together; masks would be lost; another export of the same is
            running; something else lies where the export goes.
    """
    if layout not in LAYOUTS:
        raise ExportError(f"There is no layout '{layout}'. Choose from: {', '.join(LAYOUTS)}.")
    chosen = LAYOUTS[layout]
    name = recipe if layout == "sft" else f"{recipe}.{layout}"
    link = exports_folder() / name
    source = SOURCES[chosen.made_from]
    versions = table_versions(source)
    with connect(source, versions) as connection:
        start = origin(connection, recipe, chosen, versions)
        if not chosen.is_mask_read:
            start["learn_masked"] = learn_masked
        with alone(name) as home:
            check_link(link)
            current = read_manifest(link)
            if current is not None and start.items() <= current.items():
                return Export(link, current, is_new=False)
            counts = _counts(connection, recipe, source)
            if not (chosen.is_mask_read or learn_masked):
                _refuse_lost_masks(connection, recipe, chosen)
            partial = new_partial(home)
            written = _write_shards(connection, start, chosen, counts, partial)
            licenses = _licenses(connection, recipe, source)
            manifest = start | {"counts": counts, "licenses": licenses} | written
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            write_text(partial / "manifest.json", content)
            write_text(partial / "README.md", card(manifest, chosen))
            for file, value in chosen.files(recipe, _paths(manifest)).items():
                write_text(partial / file, json.dumps(value, indent=2) + "\n")
            publish(partial, home / sha256(content.encode()).hexdigest()[:16], link)
            return Export(link, manifest, is_new=True)


def _paths(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """The files of each split."""
    return {
        split: [shard["path"] for shard in manifest["shards"] if shard["split"] == split]
        for split in manifest["counts"]
    }


def _counts(
    connection: duckdb.DuckDBPyConnection, recipe: str, source: Source
) -> dict[str, dict[str, Any]]:
    """Per split, what there is to write, and the same by source.

    Raises:
        ExportError: there is nothing to train on.
    """
    rows = query(connection, source.counted, recipe)
    counts: dict[str, dict[str, Any]] = {}
    for split, group in groupby(rows, key=lambda row: row["split"]):
        of_split = list(group)
        names = [name for name in of_split[0] if name not in ("split", "source")]
        counts[split] = {
            name: (max if name == "epochs" else sum)(row[name] for row in of_split)
            for name in names
        } | {
            "sources": {
                row["source"]: {name: row[name] for name in names if name != "epochs"}
                for row in of_split
            }
        }
    if "train" in counts:
        return counts
    if source.root == "preference_pairs":
        raise ExportError(
            f"Recipe '{recipe}' has no preference pairs to train on: no task of it has two runs "
            "that differ enough. Add runs of the same tasks, or ratings of them, and run "
            "`dbt build`."
        )
    verdicts = query(
        connection,
        """
        select reason, count(*) as trajectories
        from curated_trajectories
        where recipe = $recipe
        group by reason
        order by reason
        """,
        recipe,
    )
    reasons = ", ".join(f"{each['reason']} {each['trajectories']}" for each in verdicts)
    raise ExportError(
        f"Recipe '{recipe}' has nothing to train on. Its verdicts on the lake's trajectories: "
        f"{reasons or 'none'}. Change its filter or its sources in dbt_project/seeds, or add raw "
        "records; then run `dbt build`."
    )


def _licenses(connection: duckdb.DuckDBPyConnection, recipe: str, source: Source) -> dict[str, int]:
    """The export's trajectories by licence; `unknown` where none is declared."""
    return {
        row["license"]: row["trajectories"] for row in query(connection, source.licensed, recipe)
    }


def _refuse_lost_masks(connection: duckdb.DuckDBPyConnection, recipe: str, layout: Layout) -> None:
    """Check that a layout whose trainer reads no masks has none to lose.

    Raises:
        ExportError: it has.
    """
    source = SOURCES[layout.made_from]
    (found,) = query(
        connection,
        f"""
        with cuts as ({source.measured.format(size="1")}),
        joined as (select {_columns(source, ("masked",))} from cuts {source.joined})
        select
            coalesce(sum(masked), 0) as outputs,
            count(*) filter (where masked > 0) as units,
        from joined
        """,
        recipe,
    )
    if found["outputs"]:
        carriers = [
            each.name
            for each in LAYOUTS.values()
            if each.is_mask_read and each.made_from == "position"
        ]
        raise ExportError(
            f"Layout '{layout.name}' would lose masks: {found['outputs']:,} outputs in "
            f"{found['units']:,} rows of recipe '{recipe}' are not to be learned from, and "
            f"{layout.reader} learns from every output. Choose a layout that carries masks "
            f"({', '.join(carriers)}), turn `masks_bad_steps` off in dbt_project/seeds/recipes.csv "
            "where that is what masks them, or pass --learn-masked to have them learned all the "
            "same."
        )


def _columns(source: Source, names: tuple[str, ...]) -> str:
    """Columns of a source, by name, for a select."""
    return ", ".join(
        f"{source.columns[name]} as {name}" if name in source.columns else name for name in names
    )


def _write_shards(
    connection: duckdb.DuckDBPyConnection,
    start: Mapping[str, Any],
    layout: Layout,
    counts: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> dict[str, Any]:
    """Write the rows to `folder/data`, and give the part of the manifest that says what they are.

    Raises:
        ExportError: a table names what another has not.
    """
    recipe, source = start["recipe"], SOURCES[layout.made_from]
    spill = folder / "spill"
    reader = _ordered_units(connection, recipe, layout, spill)
    order = sha256()
    units: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    masked = 0
    shards: list[dict[str, Any]] = []
    for (split, _), groups in groupby(_row_groups(reader), key=lambda group: group[0]):
        path = folder / "data" / f"{len(shards)}.{layout.extension}"
        shard = {"path": path, "split": split, "rows": 0}
        with _WRITERS[layout.extension](path) as write:
            for _, group in groups:
                units[split] += group.num_rows
                for identity in group[source.identity].to_pylist():
                    order.update(f"{split} {identity}\n".encode())
                masked += sum(group["masked"].to_pylist())
                group = group.select(list(layout.columns))
                if start["settings"]["redacts_personal_data"]:
                    group = redacted(group)
                made, changed = layout.make(group)
                noted.update(changed)
                write(made)
                shard["rows"] += len(made)
        shards.append(shard)
    shutil.rmtree(spill, ignore_errors=True)
    for split, count in counts.items():
        of_split = [shard for shard in shards if shard["split"] == split]
        unit = next(name for name in ("positions", "trajectories", "pairs") if name in count)
        if units[split] != count[unit]:
            raise ExportError(
                f"Recipe '{recipe}': the {source.what} has {count[unit]} {split} {unit}, and the "
                f"other tables have rows for {units[split]}. Run `dbt build --full-refresh "
                "--select sft_samples+`, then export again."
            )
        for number, shard in enumerate(of_split):
            name = f"data/{split}-{number:05d}-of-{len(of_split):05d}.{layout.extension}"
            path = shard["path"].rename(folder / name)
            sync(path)
            with path.open("rb") as file:
                checksum = file_digest(file, "sha256").hexdigest()
            shard |= {"path": name, "bytes": path.stat().st_size, "sha256": checksum}
    return {
        "plan_sha256": order.hexdigest(),
        "masks": {
            "carried_by": layout.masks,
            "masked_outputs": masked,
            "learned_all_the_same": 0 if layout.is_mask_read else masked,
        },
        "adapted": {
            name: {"count": noted[name], "what": layout.notes[name]} for name in sorted(noted)
        },
        "shards": shards,
    }


def _ordered_units(
    connection: duckdb.DuckDBPyConnection, recipe: str, layout: Layout, spill: Path
) -> pa.RecordBatchReader:
    """What rows are made from, in order, and where it is cut: `split`, `shard`, `row_group`.

    Where to cut is found over ids and sizes alone. Then there is one sort of the whole rows,
    which DuckDB does on disk, below `spill`; reading the samples anew for every shard would cost
    as many passes over them as there are shards.
    """
    source = SOURCES[layout.made_from]
    connection.execute(f"set temp_directory = {sql_text(str(spill))}")
    connection.execute(
        f"""
        create temp table cuts as
        with measured as ({source.measured.format(size=layout.size)})
        select
            *,
            cast(sum(characters) over (partition by split order by position) as bigint)
            - characters as characters_before,
        from measured
        """,
        {"recipe": recipe},
    )
    shard = f"characters_before // {_SHARD_CHARACTERS}" if layout.is_sharded else "0"
    names = dict.fromkeys((*layout.columns, source.identity, "masked"))
    return connection.execute(
        f"""
        select
            split,
            {shard} as shard,
            characters_before // {_ROW_GROUP_CHARACTERS} as row_group,
            {_columns(source, tuple(names))},
        from cuts
        {source.joined}
        order by split desc, position
        """,
        {"recipe": recipe},
    ).to_arrow_reader(_BATCH_ROWS)


def _row_groups(reader: pa.RecordBatchReader) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """The rows of each row group, with the split and the number of the shard they belong to.

    Each is one chunk, so that the bytes written do not depend on how the rows came in batches.
    """
    cuts = ("split", "shard", "row_group")

    def runs() -> Iterator[tuple[tuple[str, int, int], pa.RecordBatch]]:
        for batch in reader:
            start = 0
            for cut, run in groupby(zip(*(batch[name].to_pylist() for name in cuts), strict=True)):
                length = sum(1 for _ in run)
                yield cut, batch.slice(start, length)
                start += length

    for (split, shard, _), parts in groupby(runs(), key=lambda run: run[0]):
        table = pa.Table.from_batches([rows for _, rows in parts])
        yield (split, shard), table.drop_columns(list(cuts)).combine_chunks()


@contextmanager
def _parquet(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """A Parquet file, to which each table is a row group."""
    writer: pq.ParquetWriter | None = None
    try:

        def write(rows: pa.Table) -> None:
            nonlocal writer
            if writer is None:
                writer = pq.ParquetWriter(path, rows.schema, compression="zstd")
            writer.write_table(rows, row_group_size=max(rows.num_rows, 1))

        yield write
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _json_lines(path: Path) -> Iterator[Callable[[list[Any]], None]]:
    """A file of JSON lines. It is not compressed: LLaMA-Factory and OpenAI read no other."""
    with path.open("wb") as file:

        def write(records: list[Any]) -> None:
            file.writelines(to_json(record).encode() + b"\n" for record in records)

        yield write


_WRITERS = {"parquet": _parquet, "jsonl": _json_lines}
