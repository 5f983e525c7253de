"""`trajlake export`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

from orchestration.export.layouts import LAYOUTS
from orchestration.export.writing import export
from orchestration.printing import AsJson, print_json

_LAYOUTS = "\n\n".join(
    f"{layout.name}: {layout.what} (for {layout.reader})" for layout in LAYOUTS.values()
)


def export_command(
    recipe: Annotated[str, typer.Argument(help="A recipe of dbt_project/seeds/recipes.csv.")] = (
        "default"
    ),
    layout: Annotated[str, typer.Option(help=f"What the rows are.\n\n{_LAYOUTS}")] = "sft",
    learn_masked: Annotated[
        bool,
        typer.Option(
            "--learn-masked",
            help="Write a layout whose trainer reads no masks, though there are masked outputs.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a recipe's training data to exports/<recipe>, in the order of training.

    Layouts other than sft go to exports/<recipe>.<layout>; docs/exports.md has what is in them.
    """
    written = export(recipe, layout, learn_masked=learn_masked)
    manifest = written.manifest
    if as_json:
        print_json({"folder": str(written.folder), "is_new": written.is_new, "manifest": manifest})
        return
    shards = manifest["shards"]
    counts = ", ".join(_count(split, of_split) for split, of_split in manifest["counts"].items())
    size = sum(shard["bytes"] for shard in shards) / 1e6
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print(
        f"{written.folder} {'written' if written.is_new else 'is up to date'}: {counts}; "
        f"{len(shards)} files, {size:,.1f} MB"
    )
    if lost := manifest["masks"]["learned_all_the_same"]:
        console.print(f"{lost:,} outputs that the recipe masks will be learned from.")


def _count(split: str, count: dict[str, int]) -> str:
    if "positions" in count:
        return f"{count['positions']:,} {split} positions of {count['trajectories']:,} trajectories"
    unit = "pairs" if "pairs" in count else "trajectories"
    return f"{count[unit]:,} {split} {unit}"
