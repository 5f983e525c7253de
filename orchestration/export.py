"""Exports: a recipe's training plan written out as files that anything can train from.

    trajlake export default

    exports/
    ├── default -> .versions/default/3f9a1c02b7d4e581
    └── .versions/default/
        ├── 3f9a1c02b7d4e581/
        │   ├── data/train-00000-of-00002.parquet    rows in plan order
        │   ├── data/eval-00000-of-00001.parquet
        │   ├── manifest.json                        what it was made from, and what it holds
        │   └── README.md                            dataset card, which `datasets` goes by
        └── 81d0c2a94be7f613/                        the export before it

An export is written beside the current one and takes its place in one step, when it is complete.
It does not say when or where it was made: the same inputs give the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console

from orchestration.printing import AsJson, print_json
from udfs.errors import ExportError
from udfs.lake import INPUTS, load_delta_extension, open_table, sql_text, table_path
from udfs.settings import exports_folder

# The tables that an export reads.
_PLAN = "training_plan"
_READ = (
    _PLAN,
    "sft_samples",
    "conversations",
    "recipe_settings",
    "quota_settings",
    "curated_trajectories",
)

_COLUMNS = (
    "position",
    "epoch",
    "trajectory_id",
    "source",
    "messages",
    "tools",
    "loss_flags",
    "weight",
)

# A row group is what a reader holds at a time, a shard what it takes at a time. Both are cut by
# the size of their text, so that rows of any length stay within memory.
_ROW_GROUP_CHARACTERS = 16 * 2**20
_SHARD_CHARACTERS = 16 * _ROW_GROUP_CHARACTERS

# What a row takes beside its text.
_ROW_OVERHEAD = 256

# What DuckDB may hold of the rows it sorts; the rest is on disk.
_MEMORY_LIMIT = "2GB"

# DuckDB's own vector size.
_BATCH_ROWS = 2_048

_CARD = """\
---
pretty_name: {recipe}
license:
{licenses_yaml}
task_categories:
- text-generation
tags:
- agent
- tool-use
configs:
- config_name: default
  data_files:
{data_files_yaml}
---
# {recipe}

Trajectories of LLM agents, curated by Trajlake. Rows are in the order of training: epoch after
epoch, the sources in proportion all along. Read them as they come, without shuffling.

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train", streaming=True)
```

| column | what it is |
|---|---|
| `position` | place in the order of training, from 0, over all epochs |
| `epoch` | from 1 |
| `trajectory_id` | the trajectory; it comes again where the plan repeats it |
| `source` | where the trajectory came from |
| `messages` | the conversation in OpenAI's chat shape; arguments of calls are JSON text |
| `tools` | JSON array of the functions that the agent had; null where unknown |
| `loss_flags` | one per message: true where it is learned from |
| `weight` | factor of the sample's loss |

Of all rated trajectories, those are here that pass the filter `{filter}`.

| split | source | positions | trajectories |
|---|---|---|---|
{counts}

| licence | trajectories |
|---|---|
{licenses}

`manifest.json` says from which versions of which tables this was made, by which recipe, and gives
a checksum for each file.
"""


@dataclass(frozen=True)
class Export:
    """An export: its folder, its manifest, and whether this call wrote it."""

    folder: Path
    manifest: Mapping[str, Any]
    is_new: bool


def export(recipe: str) -> Export:
    """Write a recipe's training plan, joined with its samples, to `exports/<recipe>`.

    What is read is the newest plan, and every other table at the version that this plan was made
    from, whatever a build does meanwhile. Where `exports/<recipe>` was made from the same
    already, nothing is written.

    Raises:
        ExportError: there is no such recipe, or it has nothing to train on; the lake's tables do
            not fit together; another export of the recipe is running; something else lies at
            `exports/<recipe>`.
    """
    link = exports_folder() / recipe
    versions = _versions()
    with _connect(versions) as connection:
        origin = _origin(connection, recipe, versions)
        with _alone(recipe) as home:
            if link.exists() and not link.is_symlink():
                raise ExportError(
                    f"{link} is no export: `trajlake export` makes a symbolic link there. Move "
                    "it away, or set TRAJLAKE_EXPORTS to another folder."
                )
            current = _read_manifest(link)
            if current is not None and origin.items() <= current.items():
                return Export(link, current, is_new=False)
            partial = home / "partial"
            shutil.rmtree(partial, ignore_errors=True)  # of an export that was cut off
            (partial / "data").mkdir(parents=True)
            manifest = origin | _write_shards(connection, recipe, partial)
            content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
            _write_text(partial / "manifest.json", content)
            _write_text(partial / "README.md", _card(manifest))
            _publish(partial, home / sha256(content.encode()).hexdigest()[:16], link)
            return Export(link, manifest, is_new=True)


def export_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of dbt_project/seeds/recipes.csv.")] = (
        "default"
    ),
    as_json: AsJson = False,
) -> None:
    """Write a recipe's training data to exports/<recipe>, in the order of training."""
    written = export(recipe)
    if as_json:
        print_json(
            {"folder": str(written.folder), "is_new": written.is_new, "manifest": written.manifest}
        )
        return
    shards = written.manifest["shards"]
    counts = ", ".join(
        f"{count['positions']:,} {split} positions of {count['trajectories']:,} trajectories"
        for split, count in written.manifest["counts"].items()
    )
    size = sum(shard["bytes"] for shard in shards) / 1e6
    Console(highlight=False, soft_wrap=True).print(
        f"{written.folder} {'written' if written.is_new else 'is up to date'}: {counts}; "
        f"{len(shards)} files, {size:,.1f} MB"
    )


def code_version() -> str:
    """The project's version; in a git checkout with `+g<commit>`, followed by `.d<hash>` where
    tracked files differ from that commit."""
    root = Path(__file__).parents[1]
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


def _versions() -> dict[str, int]:
    """The newest plan's version, and the versions of all tables that it goes back to.

    Each table's commit says which versions it was made from, so this holds while a build is
    changing them. A table that only grows may have been read twice, at different versions; then
    the later one counts. Quarantine is not among them: nothing of it comes into an export.

    Raises:
        ExportError: there is no plan, or plan and samples were made from different verdicts.
    """
    plan = open_table(_PLAN)
    if plan is None:
        raise ExportError(
            f"There is no training plan at {table_path(_PLAN)}. Run `dbt build`, or set "
            "TRAJLAKE_LAKE to the lake that has one."
        )
    found: dict[str, int] = {}
    pending = [(_PLAN, plan.version())]
    for name, at in pending:
        if name in _READ and found.get(name, at) != at:
            raise ExportError(
                f"The training plan was made from versions {found[name]} and {at} of {name} at "
                "once: the last build left something out. Run `dbt build`, then export again."
            )
        if found.get(name, -1) < at:
            found[name] = at
            pending += _inputs(name, at)
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


def _connect(versions: Mapping[str, int]) -> duckdb.DuckDBPyConnection:
    """A DuckDB with views over the tables that an export reads, at their versions.

    Raises:
        ExportError: a version is not there any more.
    """
    connection = duckdb.connect(config={"memory_limit": _MEMORY_LIMIT})
    load_delta_extension(connection)
    for name in _READ:
        path = table_path(name)
        try:
            connection.execute(
                f"create view {name} as select * from "
                f"delta_scan({sql_text(path)}, version => {versions[name]})"
            )
        except duckdb.Error as error:
            raise ExportError(
                f"The training plan was made from version {versions[name]} of {path}, which "
                f"cannot be read ({str(error).splitlines()[0]}). Run `dbt build`, then export "
                "again."
            ) from error
    return connection


def _query(connection: duckdb.DuckDBPyConnection, sql: str, recipe: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (
        connection.execute(sql, {"recipe": recipe}).to_arrow_table().to_pylist()
    )
    return rows


def _origin(
    connection: duckdb.DuckDBPyConnection, recipe: str, versions: Mapping[str, int]
) -> dict[str, Any]:
    """The part of the manifest that says what an export is made from.

    Raises:
        ExportError: there is no such recipe in the lake.
    """
    rows = _query(
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
        for row in _query(
            connection,
            "select source from recipe_settings where recipe = $recipe and is_excluded order by 1",
            recipe,
        )
    ]
    settings["quotas"] = _query(
        connection,
        """
        select dimension, value, max_trajectories
        from quota_settings
        where recipe = $recipe
        order by dimension, value
        """,
        recipe,
    )
    return {
        "recipe": recipe,
        "recipe_sha256": sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest(),
        "settings": settings,
        "tables": dict(versions),
        "code_version": code_version(),
        "written_by": f"pyarrow {version('pyarrow')}",
    }


def _write_shards(
    connection: duckdb.DuckDBPyConnection, recipe: str, folder: Path
) -> dict[str, Any]:
    """Write the rows to `folder/data`, and give the part of the manifest that says what they are.

    Raises:
        ExportError: there is nothing to train on, or the plan names what is no sample.
    """
    counts = _counts(connection, recipe)
    spill = folder / "spill"
    reader = _planned_rows(connection, recipe, spill)
    schema = pa.schema([reader.schema.field(name) for name in _COLUMNS])
    plan = sha256()
    shards: list[dict[str, Any]] = []
    for (split, _), groups in groupby(_row_groups(reader), key=lambda group: group[0]):
        shard = {"path": folder / "data" / f"{len(shards)}.parquet", "split": split, "rows": 0}
        with pq.ParquetWriter(shard["path"], schema, compression="zstd") as writer:
            for _, rows in groups:
                writer.write_table(rows, row_group_size=rows.num_rows)
                shard["rows"] += rows.num_rows
                for trajectory_id in rows["trajectory_id"].to_pylist():
                    plan.update(f"{split} {trajectory_id}\n".encode())
        shards.append(shard)
    shutil.rmtree(spill, ignore_errors=True)
    for split, count in counts.items():
        of_split = [shard for shard in shards if shard["split"] == split]
        written = sum(shard["rows"] for shard in of_split)
        if written != count["positions"]:
            raise ExportError(
                f"Recipe '{recipe}': the plan has {count['positions']} {split} positions, and "
                f"sft_samples has rows for {written}. Run `dbt build --full-refresh --select "
                "sft_samples+`, then export again."
            )
        for number, shard in enumerate(of_split):
            name = f"data/{split}-{number:05d}-of-{len(of_split):05d}.parquet"
            path = shard["path"].rename(folder / name)
            _sync(path)
            with path.open("rb") as file:
                checksum = file_digest(file, "sha256").hexdigest()
            shard |= {"path": name, "bytes": path.stat().st_size, "sha256": checksum}
    return {
        "plan_sha256": plan.hexdigest(),
        "counts": counts,
        "licenses": _licenses(connection, recipe),
        "shards": shards,
    }


def _planned_rows(
    connection: duckdb.DuckDBPyConnection, recipe: str, spill: Path
) -> pa.RecordBatchReader:
    """The rows of an export in their order, and where it is cut: `split`, `shard`, `row_group`.

    Where to cut is found over ids and sizes alone. Then there is one sort of the whole rows,
    which DuckDB does on disk, below `spill`; reading the samples anew for every shard would cost
    as many passes over them as there are shards.
    """
    connection.execute(f"set temp_directory = {sql_text(str(spill))}")
    connection.execute(
        f"""
        create temp table cuts as
        with measured as (
            select
                split, position, epoch, trajectory_id,
                4 * estimated_tokens + {_ROW_OVERHEAD} as characters,
            from training_plan
            inner join sft_samples using (recipe, split, trajectory_id)
            where recipe = $recipe
        )
        select
            *,
            cast(sum(characters) over (partition by split order by position) as bigint)
            - characters as characters_before,
        from measured
        """,
        {"recipe": recipe},
    )
    return connection.execute(
        f"""
        select
            split,
            characters_before // {_SHARD_CHARACTERS} as shard,
            characters_before // {_ROW_GROUP_CHARACTERS} as row_group,
            {", ".join(_COLUMNS)},
        from cuts
        inner join sft_samples using (trajectory_id, split)
        inner join conversations using (trajectory_id)
        where recipe = $recipe
        order by split desc, position
        """,
        {"recipe": recipe},
    ).to_arrow_reader(_BATCH_ROWS)


def _row_groups(reader: pa.RecordBatchReader) -> Iterator[tuple[tuple[str, int], pa.Table]]:
    """The rows of each row group, with the split and the number of the shard they belong to.

    Each is one chunk, so that the bytes written do not depend on how the rows came in batches.
    """

    def runs() -> Iterator[tuple[tuple[str, int, int], pa.RecordBatch]]:
        for batch in reader:
            cuts = [batch[name].to_pylist() for name in ("split", "shard", "row_group")]
            start = 0
            for cut, run in groupby(zip(*cuts, strict=True)):
                length = sum(1 for _ in run)
                yield cut, batch.slice(start, length).select(_COLUMNS)
                start += length

    for (split, shard, _), parts in groupby(runs(), key=lambda run: run[0]):
        yield (split, shard), pa.Table.from_batches([rows for _, rows in parts]).combine_chunks()


def _counts(connection: duckdb.DuckDBPyConnection, recipe: str) -> dict[str, Any]:
    """Per split of the plan: epochs, positions and trajectories, and these two per source.

    Raises:
        ExportError: there is nothing to train on.
    """
    rows = _query(
        connection,
        """
        select
            split, source,
            max(epoch) as epochs,
            count(*) as positions,
            count(distinct trajectory_id) as trajectories,
        from training_plan
        where recipe = $recipe
        group by split, source
        order by split desc, source
        """,
        recipe,
    )
    counts = {}
    for split, group in groupby(rows, key=lambda row: row["split"]):
        of_split = list(group)
        counts[split] = {
            "epochs": max(row["epochs"] for row in of_split),
            "positions": sum(row["positions"] for row in of_split),
            "trajectories": sum(row["trajectories"] for row in of_split),
            "sources": {
                row["source"]: {key: row[key] for key in ("positions", "trajectories")}
                for row in of_split
            },
        }
    if "train" not in counts:
        verdicts = _query(
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
            f"{reasons or 'none'}. Change its filter or its sources in dbt_project/seeds, or add "
            "raw records; then run `dbt build`."
        )
    return counts


def _licenses(connection: duckdb.DuckDBPyConnection, recipe: str) -> dict[str, int]:
    """The plan's trajectories by licence; `unknown` where none is declared."""
    rows = _query(
        connection,
        """
        select coalesce(license, 'unknown') as license, count(*) as trajectories
        from sft_samples
        where
            recipe = $recipe
            and trajectory_id in (
                select trajectory_id from training_plan where recipe = $recipe
            )
        group by all
        order by license
        """,
        recipe,
    )
    return {row["license"]: row["trajectories"] for row in rows}


def _card(manifest: Mapping[str, Any]) -> str:
    """The dataset card; `datasets.load_dataset` goes by its front matter."""
    counts = manifest["counts"]
    licenses = manifest["licenses"]
    return _CARD.format(
        recipe=manifest["recipe"],
        filter=manifest["settings"]["filter"],
        licenses_yaml="\n".join(f"- {json.dumps(name.lower())}" for name in licenses),
        data_files_yaml="\n".join(
            f"  - split: {split}\n    path: data/{split}-*.parquet" for split in counts
        ),
        counts=_table(
            (split, source, f"{count['positions']:,}", f"{count['trajectories']:,}")
            for split, of_split in counts.items()
            for source, count in of_split["sources"].items()
        ),
        licenses=_table((name, f"{count:,}") for name, count in licenses.items()),
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


@contextmanager
def _alone(recipe: str) -> Iterator[Path]:
    """The folder of a recipe's versions, for one export at a time; a killed one lets go of it."""
    home = exports_folder() / ".versions" / recipe
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ExportError(
                f"Another export of recipe '{recipe}' is running. Wait until it has ended."
            ) from None
        yield home


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """An export's manifest; None where there is no export or a file of it is gone or cut off."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
        sizes = [(folder / shard["path"]).stat().st_size for shard in manifest["shards"]]
    except FileNotFoundError:
        return None
    return manifest if sizes == [shard["bytes"] for shard in manifest["shards"]] else None


def _publish(partial: Path, target: Path, link: Path) -> None:
    """Let `link` point to a finished folder, in one step; keep that and the one before it."""
    before = link.resolve() if link.is_symlink() else None
    _sync(partial / "data")
    _sync(partial)
    shutil.rmtree(target, ignore_errors=True)  # the same export, from an earlier time
    partial.rename(target)
    _sync(target.parent)
    new_link = target.parent / "link"
    new_link.unlink(missing_ok=True)
    new_link.symlink_to(target.relative_to(link.parent))
    new_link.replace(link)
    _sync(link.parent)
    for folder in target.parent.iterdir():
        if folder.is_dir() and folder not in (target, before):
            shutil.rmtree(folder)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have a file or folder on disk before what comes next relies on it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
