"""What the lake holds, source by source: the table that `make build` ends with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from textwrap import shorten
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from orchestration.printing import AsJson, print_json, table, text
from udfs.errors import LakeError
from udfs.settings import database_file, exports_folder, lake_root, raw_folder
from udfs.views import open_lake

_COUNTS = ("raw_records", "trajectories", "quarantined", "rated", "kept")


def summary_command(
    recipe: Annotated[
        str, typer.Argument(help="The recipe whose verdicts are counted.")
    ] = "default",
    as_json: AsJson = False,
) -> None:
    """Say per source how many records became trajectories, were rated, kept and exported."""
    with open_lake() as connection:
        try:
            rows = connection.execute(
                f"select source, {', '.join(_COUNTS)} from funnel where recipe = ? order by source",
                [recipe],
            ).fetchall()
            reasons = connection.execute(
                """
                select source, reason, count(*), any_value(detail order by raw_file, raw_position)
                from quarantine
                group by source, reason
                order by source, reason
                """
            ).fetchall()
        except (duckdb.CatalogException, duckdb.IOException) as error:
            raise LakeError(
                f"The lake at {lake_root()} has not been built to its end yet. Run `make build`, "
                "or `dbt build` in an active environment."
            ) from error
    exported = _exported(recipe)
    complete = [(*row, exported.get(row[0], 0)) for row in rows]
    if as_json:
        names = ("source", *_COUNTS, "exported_rows")
        of_reason = ("source", "reason", "records", "example")
        print_json(
            {
                "recipe": recipe,
                "sources": [dict(zip(names, row, strict=True)) for row in complete],
                "quarantine": [dict(zip(of_reason, row, strict=True)) for row in reasons],
            }
        )
        return
    console = Console()
    console.print(_funnel(complete))
    if not rows:
        hint = f"Nothing has landed. Put files into a folder below {raw_folder()}: `dbt build`."
        console.print(text(hint), soft_wrap=True)
    if reasons:
        console.print(_reasons(reasons))
    _print_next(console, recipe)


def _exported(recipe: str) -> Mapping[str, int]:
    """Source → exported rows over all splits; empty where there is no export."""
    manifest = exports_folder() / recipe / "manifest.json"
    if not manifest.exists():
        return {}
    counts: Mapping[str, Mapping[str, Any]] = json.loads(manifest.read_text("utf-8"))["counts"]
    rows: dict[str, int] = {}
    for split in counts.values():
        for source, count in split["sources"].items():
            rows[source] = rows.get(source, 0) + count["positions"]
    return rows


def _funnel(rows: list[tuple[Any, ...]]) -> Table:
    counts = table("From raw records to training rows")
    counts.add_column("source", no_wrap=True)
    for name in (*_COUNTS, "exported_rows"):
        counts.add_column(name.replace("_", "\n"), justify="right")
    for row in rows:
        counts.add_row(text(row[0]), *(f"{count:,}" for count in row[1:]))
    counts.add_section()
    totals = [sum(row[i] for row in rows) for i in range(1, len(_COUNTS) + 2)]
    counts.add_row("all", *(f"{total:,}" for total in totals), style="bold")
    return counts


def _reasons(reasons: list[tuple[Any, ...]]) -> Table:
    refused = table("In quarantine")
    refused.add_column("source", no_wrap=True)
    refused.add_column("reason", no_wrap=True)
    refused.add_column("records", justify="right")
    refused.add_column("for example")
    for source, reason, count, detail in reasons:
        # Details quote raw records.
        example = text(shorten(detail, 90, placeholder=" …"))
        refused.add_row(text(source), text(reason), f"{count:,}", example)
    return refused


def _print_next(console: Console, recipe: str) -> None:
    export = exports_folder() / recipe
    places = {
        "ask in SQL": 'trajlake sql "select * from quarantine"',
        "its views": database_file(),
        "the lake": lake_root(),
    }
    if export.exists():
        places["the export"] = export
        places["train on it"] = "accelerate launch -m train.sft --config train/configs/tiny.yaml"
    console.print("\n[bold]Where to look next[/]")
    for name, place in places.items():
        console.print(text(f"  {name:<14}{place}"), soft_wrap=True)
