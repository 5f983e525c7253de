"""Which trajectories are shown in full, and how: kept beside dropped, step by step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from orchestration.report.texts import Text, shown

PAIRS = 10

# Of a longer run, its first and last steps; of a longer text, its beginning and end.
_FIRST_STEPS = 6
_LAST_STEPS = 2
_MOST_CHARACTERS = 1_500
_MOST_CALLS = 8

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of a step: who says it (`role` is a class of the style sheet), and what."""

    role: str
    label: Text
    text: Text


@dataclass(frozen=True)
class Step:
    """A step of a run: whether it is learned from, and what was said in it.

    `state` is a class of the style sheet: `trained`, `masked`, or `open` where nothing masks the
    step of a run that is dropped.
    """

    step_id: int
    state: str
    state_text: str
    flags: tuple[Text, ...]
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Example:
    """A trajectory as it is shown."""

    trajectory_id: str
    source: Text
    is_kept: bool
    reason: str
    facts: tuple[tuple[str, Text], ...]
    system_prompt: Text | None
    first_steps: tuple[Step, ...]
    steps_left_out: int
    last_steps: tuple[Step, ...]


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


def told(row: Row, flags: Row | None) -> Example:
    """A trajectory of the lake as it is shown.

    Args:
        row: the trajectory with its verdict.
        flags: its row of `trajectory_flags`; None where the lake has none.
    """
    steps = row["steps"] or []
    flags_of: dict[int, list[Text]] = {}
    for flag in (flags or {}).get("flags") or ():
        line = flag["flag"] + (f": {flag['detail']}" if flag["detail"] else "")
        flags_of.setdefault(flag["step_id"], []).append(shown(line, 160))
    is_long = len(steps) > _FIRST_STEPS + _LAST_STEPS
    first, last = (steps[:_FIRST_STEPS], steps[-_LAST_STEPS:]) if is_long else (steps, [])
    return Example(
        trajectory_id=row["trajectory_id"],
        source=shown(row["source"]),
        is_kept=row["is_kept"],
        reason=row["reason"],
        facts=tuple(_facts(row)),
        system_prompt=(
            shown(row["system_prompt"], _MOST_CHARACTERS) if row["system_prompt"] else None
        ),
        first_steps=tuple(_step(step, row, flags, flags_of) for step in first),
        steps_left_out=len(steps) - len(first) - len(last),
        last_steps=tuple(_step(step, row, flags, flags_of) for step in last),
    )


def _facts(row: Row) -> Iterable[tuple[str, Text]]:
    if row["reason_detail"]:
        yield "detail", shown(row["reason_detail"], 300)
    for name, value in (
        ("rater_score", row["rater_score"]),
        ("environment's score", row["score"]),
        ("environment", row["environment"]),
        ("model", row["model_name"]),
        ("licence", row["license"]),
    ):
        if value is not None:
            yield name, shown(f"{value:g}" if isinstance(value, float) else str(value), 100)
    yield "raw record", shown(f"{row['raw_file']}, position {row['raw_position']}", 200)


def _step(step: Row, row: Row, flags: Row | None, flags_of: Mapping[int, Sequence[Text]]) -> Step:
    step_id = step["step_id"]
    state, state_text = _state(step, row, flags)
    return Step(
        step_id=step_id,
        state=state,
        state_text=state_text,
        flags=tuple(flags_of.get(step_id, ())),
        parts=tuple(_parts(step)),
    )


def _state(step: Row, row: Row, flags: Row | None) -> tuple[str, str]:
    """Whether a step carries loss, or could if its run were kept; and that in words."""
    step_id = step["step_id"]
    if row["trained_steps"] is not None and step_id in row["trained_steps"]:
        return "trained", "trained on"
    if not step["is_trainable"]:
        return "masked", "masked by its source"
    if flags is None:
        return "masked", "not known: no flags in this lake"
    if step_id not in (flags["unmasked_steps"] or ()):
        return "masked", "no loss: the agent says nothing"
    if step_id not in (flags["trainable_steps"] or ()):
        return "masked", "masked by a rule"
    if row["trained_steps"] is None:
        return "open", "not masked, but the run is dropped"
    if row["reason"] == "salvaged":
        return "masked", "masked: after the first error"
    return "masked", "masked by the recipe"


def _parts(step: Row) -> Iterable[Part]:
    if step["input"]:
        yield _part("input", "Input", step["input"])
    thought, output = step["thought"] or "", step["output"] or ""
    # The output has the thought in it, word for word, where the model wrote it there.
    before, found, after = output.partition(thought) if thought else ("", "", output)
    if found:
        yield _part("thought", "Thought", before + thought)
        output = after.strip("\n")
    elif thought:
        yield _part("thought", "Thought", thought)
    if output.strip():
        yield _part("action", "Action", output)
    calls = step["tool_calls"] or ()
    for call in calls[:_MOST_CALLS]:
        text = f"{call['name'] or '(no name)'}({call['arguments'] or ''})"
        yield _part("call", "Tool call", text)
    if len(calls) > _MOST_CALLS:
        yield _part("call", "Tool call", f"{len(calls) - _MOST_CALLS} more calls left out")
    seen = step["observations"] or ()
    for each in seen[:_MOST_CALLS]:
        by = each["source"] or "environment"
        label = f"Observation ({by}{', ' + each['name'] if each['name'] else ''})"
        yield _part("observation", label, each["content"] or "")
    if len(seen) > _MOST_CALLS:
        more = f"{len(seen) - _MOST_CALLS} more observations left out"
        yield _part("observation", "Observation", more)


def _part(role: str, label: str, text: str) -> Part:
    return Part(role, shown(label, 80), shown(text, _MOST_CHARACTERS))
