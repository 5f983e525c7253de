"""Labels that people give: the append-only table `human_labels`, and the one way into it.

A label is a value on a scale (`label_kinds` has them; `human` is 0 to 5, as a rating), by
somebody, with a note. Nothing is ever changed: a later label by the same person takes the place
of an earlier one in the model `labels`, and one without a value takes it back.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import pyarrow as pa
from deltalake import DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError

from udfs import lake
from udfs.errors import LakeError

TABLE = "human_labels"

HUMAN = "human"
HIGHEST_HUMAN = 5.0

SCHEMA = pa.schema(
    [
        ("human_label_id", pa.string()),
        ("content_sha256", pa.string()),
        ("trajectory_id", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("labelled_by", pa.string()),
        ("note", pa.string()),
        ("labelled_at", pa.timestamp("us", tz="UTC")),
    ]
)

# How often an append is repeated that others' commits got in the way of.
_RETRIES = 5

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Label:
    """What somebody says of a conversation.

    Args:
        content_sha256: the conversation, as in `trajectories`.
        value: on the label's scale; None for "cannot be said", which takes an earlier value back.
        labelled_by: who says so.
        label: what is judged; `human` is the overall judgement, 0 to 5.
        note: why, in a few words.
        trajectory_id: the trajectory that was looked at, where it matters.

    Raises:
        LakeError: a value that no reader could use.
    """

    content_sha256: str
    value: float | None
    labelled_by: str
    label: str = HUMAN
    note: str | None = None
    trajectory_id: str | None = None

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.content_sha256):
            raise LakeError(
                f"A label's content_sha256 is {self.content_sha256!r}. Give the 64 hexadecimal "
                "digits that `trajectories` has for the conversation."
            )
        for name in ("labelled_by", "label"):
            if not getattr(self, name).strip():
                raise LakeError(f"A label for {self.content_sha256} has no {name}. Give one.")
        if self.value is not None and not math.isfinite(self.value):
            raise LakeError(
                f"A label for {self.content_sha256} has the value {self.value}. Give a number, or "
                "none where it cannot be said."
            )
        is_outside = self.value is not None and not 0.0 <= self.value <= HIGHEST_HUMAN
        if self.label == HUMAN and is_outside:
            raise LakeError(
                f"The label `human` for {self.content_sha256} is {self.value:g}. Give a value "
                f"from 0 to {HIGHEST_HUMAN:g}."
            )


def append(labels: Sequence[Label]) -> None:
    """Store labels, all or none of them, in one Delta commit.

    Safe beside other writers and beside a build: Delta puts commits that only add in a row. The
    next `dbt build` takes them into `labels`.

    Raises:
        LakeError: the table in the lake has other columns.
    """
    if not labels:
        return
    labelled_at = datetime.now(UTC)
    rows = [asdict(label) | {"labelled_at": labelled_at} for label in labels]
    for place, row in enumerate(rows):
        key = "\n".join(map(str, [place, *row.values()]))
        row["human_label_id"] = hashlib.sha256(key.encode()).hexdigest()
    given = pa.Table.from_pylist(rows, schema=SCHEMA)
    for is_last in (*[False] * _RETRIES, True):
        try:
            write_deltalake(_table(), given, mode="append")
            return
        except CommitFailedError:
            # Two first writers have made the table at the same time; nothing was written.
            if is_last:
                raise


def _table() -> DeltaTable:
    """The table, made where it is missing."""
    lake.check_is_own(TABLE)
    table = lake.open_table(TABLE)
    if table is None:
        path, schema = lake.table_path(TABLE), Schema.from_arrow(SCHEMA)
        table = DeltaTable.create(path, schema, mode="ignore")
    if [field.name for field in table.schema().fields] != SCHEMA.names:
        raise LakeError(
            f"The table {lake.table_path(TABLE)} has other columns than labels have. Move it away; "
            "labels are never written over what is there."
        )
    return table
