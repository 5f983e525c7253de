"""Which trajectories are shown in full: kept ones beside dropped ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

PAIRS = 10

Row = Mapping[str, Any]


def choose(candidates: Sequence[Row]) -> list[tuple[str | None, str | None]]:
    """Pairs of a kept and a dropped trajectory, by id; a side is None where there are no more.

    Dropped ones are taken from the reasons in turn, of a reason from the source that was taken
    least. Beside each stands the one that it is a copy of, else a run at the same task, else one
    of its source if that was not shown yet, else one of the source that was shown least. The order
    of the candidates decides what is left, so the same candidates give the same pairs.
    """
    by_reason: dict[str, list[Row]] = {}
    kept: list[Row] = []
    for row in candidates:
        if row["is_kept"]:
            kept.append(row)
        else:
            by_reason.setdefault(row["reason"], []).append(row)
    dropped = _in_turn(by_reason)
    pairs: list[tuple[str | None, str | None]] = []
    shown_sources: Counter[str] = Counter()
    beside: list[Row | None] = []
    for row in dropped:
        partner = _partner_at_hand(row, kept)
        if partner is not None:
            kept.remove(partner)
            shown_sources[partner["source"]] += 1
        beside.append(partner)
    beside += [None] * (PAIRS - len(dropped))
    for partner, other in zip_longest(beside, dropped):
        if partner is None and kept:
            wanted = other["source"] if other else None
            partner = min(
                kept,
                key=lambda row: (
                    shown_sources[row["source"]],
                    row["source"] != wanted,
                    row["reason"] != "salvaged",
                ),
            )
            kept.remove(partner)
            shown_sources[partner["source"]] += 1
        if partner or other:
            pairs.append(
                (
                    partner["trajectory_id"] if partner else None,
                    other["trajectory_id"] if other else None,
                )
            )
    return pairs


def _in_turn(by_reason: Mapping[str, list[Row]]) -> list[Row]:
    """At most ten, one of each reason after the other, of a reason the least shown source."""
    waiting = {reason: list(rows) for reason, rows in sorted(by_reason.items())}
    sources: Counter[str] = Counter()
    found: list[Row] = []
    while any(waiting.values()):
        for rows in waiting.values():
            if rows and len(found) < PAIRS:
                row = min(rows, key=lambda each: sources[each["source"]])
                rows.remove(row)
                sources[row["source"]] += 1
                found.append(row)
        if len(found) == PAIRS:
            break
    return found


def _partner_at_hand(dropped: Row, kept: Iterable[Row]) -> Row | None:
    """The kept one that a dropped one is a copy of, or one that is a run at the same task."""
    same_task = None
    for row in kept:
        if row["trajectory_id"] == dropped["reason_detail"]:
            return row
        if same_task is None and row["task_key"] == dropped["task_key"]:
            same_task = row
    return same_task
