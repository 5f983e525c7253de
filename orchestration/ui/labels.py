"""Labels that a reader gives: where the rater's calibration reads them, `human_labels`.

A label belongs to a conversation, so all copies of a trajectory share it. Nothing is changed, only
added: the newest of a person counts. Two pages of one trajectory do not overwrite each other in
silence: a form says which label was the newest when it was made, and is refused, with what came
meanwhile, if that is another one by now.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from orchestration.ui.tables import Row, Tables, Unavailable
from udfs.errors import ConfigError
from udfs.labels import HIGHEST_HUMAN, HUMAN, Label, append

LONGEST_NOTE = 10_000
_LONGEST_NAME = 200

# One after the other, so that none comes between the look and the writing.
_LOCK = threading.Lock()


class Overtaken(Exception):
    """Somebody has labelled the conversation since the form was made."""


@dataclass(frozen=True)
class Given:
    """What a form says, as it was typed."""

    value: str
    note: str
    labelled_by: str
    newest: str  # the newest label when the form was made; empty where there was none


def history(tables: Tables, content: str) -> list[Row]:
    """All labels of people for a conversation, the newest first; none where there is no table yet.

    Raises:
        Unavailable: the table cannot be read.
    """
    with tables.reader() as reader:
        if "human_labels" not in reader.state.versions and not _is_broken(tables):
            return []
        return reader.rows(
            """
            select human_label_id, label, value, labelled_by, note, labelled_at
            from human_labels
            where content_sha256 = $content
            order by labelled_at desc, human_label_id
            """,
            {"content": content},
        )


def labelled_contents(tables: Tables) -> list[str]:
    """Conversations to which somebody has given a score that still stands."""
    with tables.reader() as reader:
        if "human_labels" not in reader.state.versions and not _is_broken(tables):
            return []
        rows = reader.rows(
            f"""
            with newest as (
                select content_sha256, labelled_by, arg_max({{'value': value}}, labelled_at) as said
                from human_labels
                where label = '{HUMAN}'
                group by content_sha256, labelled_by
            )
            select distinct content_sha256 from newest where said.value is not null
            """
        )
        return [row["content_sha256"] for row in rows]


def values_of(tables: Tables, contents: Iterable[str]) -> dict[str, str]:
    """Conversation → what people say of it, such as `first 4, second 3.5`."""
    with tables.reader() as reader:
        if "human_labels" not in reader.state.versions:
            return {}
        rows = reader.rows(
            f"""
            with newest as (
                select content_sha256, labelled_by, arg_max({{'value': value}}, labelled_at) as said
                from human_labels
                where label = '{HUMAN}' and content_sha256 in (select unnest($contents))
                group by content_sha256, labelled_by
            )
            select content_sha256, labelled_by, said.value as value
            from newest
            where said.value is not null
            order by labelled_by
            """,
            {"contents": list(contents)},
        )
    found: dict[str, str] = {}
    for row in rows:
        said = f"{row['labelled_by']} {row['value']:g}"
        before = found.get(row["content_sha256"])
        found[row["content_sha256"]] = f"{before}, {said}" if before else said
    return found


def give(tables: Tables, content: str, trajectory_id: str, given: Given) -> None:
    """Store a label.

    Raises:
        ConfigError: what is given is no label.
        Overtaken: another label came after the form was made.
        LakeError: it cannot be stored.
        Unavailable: the labels that are there cannot be read.
    """
    label = _checked(content, trajectory_id, given)
    with _LOCK:
        newest = history(tables, content)
        if (newest[0]["human_label_id"] if newest else "") != given.newest:
            raise Overtaken
        append([label])


def _checked(content: str, trajectory_id: str, given: Given) -> Label:
    value: float | None = None
    if given.value:
        try:
            value = float(given.value)
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= HIGHEST_HUMAN:
            raise ConfigError(
                f"The score is '{given.value[:40]}'. Give a number from 0 to {HIGHEST_HUMAN:g}, "
                "such as 3.5, or leave it empty to take an earlier one back."
            )
    if not given.labelled_by or len(given.labelled_by) > _LONGEST_NAME:
        raise ConfigError(f"Say who labels: a name of at most {_LONGEST_NAME} characters.")
    if len(given.note) > LONGEST_NOTE:
        raise ConfigError(
            f"The note has {len(given.note):,} characters. {LONGEST_NOTE:,} are as many as it may."
        )
    return Label(
        content_sha256=content,
        value=value,
        labelled_by=given.labelled_by,
        note=given.note or None,
        trajectory_id=trajectory_id,
    )


def _is_broken(tables: Tables) -> bool:
    """Whether the table is there, and cannot be read."""
    problem = tables.now().problems.get("human_labels", "")
    return bool(problem) and "cannot be read" in problem


__all__ = ["Given", "Overtaken", "Unavailable", "give", "history", "labelled_contents", "values_of"]
