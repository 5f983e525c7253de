"""The dataset card of an export; `datasets.load_dataset` goes by its front matter."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestration.export.layouts import Layout

_CARD = """\
---
pretty_name: {title}
license:
{licenses_yaml}
task_categories:
- text-generation
tags:
- agent
- tool-use
{features_yaml}configs:
- config_name: default
  data_files:
{data_files_yaml}
---
# {title}

Trajectories of LLM agents, curated by Trajlake. {order}

```python
from datasets import load_dataset

rows = load_dataset("path/to/this/folder", split="train", streaming=True)
```

A row is {what}; the layout is `{layout}`, for {reader}.

| {columns_name} | what it is |
|---|---|
{columns}

What is not learned from: {masks}

{changes}Of all rated trajectories, those are here that pass the filter `{filter}`{redacted}.

{counts}

| licence | trajectories |
|---|---|
{licenses}

`manifest.json` says from which versions of which tables this was made, by which recipe, and gives
a checksum for each file.
"""

_ORDERS = {
    "position": "Rows are in the order of training: epoch after\nepoch, the sources in proportion "
    "all along. Read them as they come, without shuffling, once.",
    "trajectory": "Each is here once, in the\norder in which the recipe's training plan first "
    "comes to it.",
    "pair": "Pairs of runs at the\nsame task, in an order that says nothing.",
}


def card(manifest: Mapping[str, Any], layout: Layout) -> str:
    """The card of an export in a layout."""
    counts = manifest["counts"]
    licenses = manifest["licenses"]
    title = manifest["recipe"] + ("" if layout.name == "sft" else f".{layout.name}")
    extension = layout.extension
    return _CARD.format(
        title=title,
        layout=layout.name,
        reader=layout.reader,
        what=layout.what,
        order=_ORDERS[layout.made_from],
        filter=manifest["settings"]["filter"],
        redacted=(
            "; placeholders such as `[EMAIL]` stand in the place of personal data and secrets"
            if manifest["settings"]["redacts_personal_data"]
            else ""
        ),
        masks=_masks(manifest["masks"]),
        changes=_changes(manifest["adapted"]),
        licenses_yaml="\n".join(f"- {json.dumps(name.lower())}" for name in licenses),
        features_yaml=_features(layout),
        data_files_yaml="\n".join(
            f"  - split: {split}\n    path: data/{split}-*.{extension}" for split in counts
        ),
        columns_name="column" if extension == "parquet" else "field",
        columns=_table(
            (", ".join(f"`{each}`" for each in name.split(", ")), what)
            for name, what in layout.described.items()
        ),
        counts=_counts(counts),
        licenses=_table((name, f"{count:,}") for name, count in licenses.items()),
    )


def _masks(masks: Mapping[str, Any]) -> str:
    count, lost = masks["masked_outputs"], masks["learned_all_the_same"]
    text = f"{masks['carried_by']}. {count:,} outputs here are masked"
    if lost:
        return f"{text}; the trainer does not read that, and learns from them all the same."
    return f"{text}."


def _changes(adapted: Mapping[str, Mapping[str, Any]]) -> str:
    if not adapted:
        return ""
    lines = "\n".join(f"- {change['count']:,} {change['what']}" for change in adapted.values())
    return f"So that the conversations fit the layout, there are:\n\n{lines}\n\n"


def _features(layout: Layout) -> str:
    """The types of the fields, which a reader of JSON lines else guesses from the first ones."""
    if not layout.features:
        return ""
    # JSON is YAML.
    return f"dataset_info:\n  features: {json.dumps(list(layout.features))}\n"


def _counts(counts: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of what there is, by split and source."""
    names = list(next(iter(next(iter(counts.values()))["sources"].values())))
    header = ["split", "source", *names]
    return "\n".join(
        (
            f"| {' | '.join(header)} |",
            "|---" * len(header) + "|",
            _table(
                (split, source, *(f"{count[name]:,}" for name in names))
                for split, of_split in counts.items()
                for source, count in of_split["sources"].items()
            ),
        )
    )


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Lines of a Markdown table."""
    cells = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
