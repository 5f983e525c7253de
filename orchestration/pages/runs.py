"""A trajectory as a page shows it: step by step, who says what, what is masked and why."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.pages.texts import Text, shown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Limits:
    """How much of a run is shown.

    Args:
        first_steps, last_steps: of a longer run, so many of its beginning and its end.
        characters: of a longer text, so many of its beginning and its end.
        calls: calls, and observations, of a step at most.
    """

    first_steps: int
    last_steps: int
    characters: int
    calls: int


# What a page with many runs has room for.
SHORT = Limits(first_steps=6, last_steps=2, characters=1_500, calls=8)

# Roles of which a step may have many parts, and what these are called.
_COUNTED = {"call": "calls", "observation": "observations"}


@dataclass(frozen=True)
class Part:
    """A part of a step: who says it (`role` is a class of the style sheet), and what."""

    role: str
    label: Text
    text: Text
    whole: str | None = None  # where all of the text is, if it is cut here


@dataclass(frozen=True)
class Step:
    """A step of a run: whether it is learned from, and what was said in it.

    `state` is a class of the style sheet: `trained`, `masked`, or `open` where nothing masks the
    step of a run that is dropped. `notes` are what else is known of the step: a judge's score, or
    that it is the first in which two runs differ. `anchor` is the name it can be jumped to by.
    """

    step_id: int
    state: str
    state_text: str
    flags: tuple[Text, ...]
    parts: tuple[Part, ...]
    notes: tuple[Text, ...] = ()
    anchor: str | None = None


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


def told(row: Row, flags: Row | None, limits: Limits = SHORT) -> Example:
    """A trajectory of the lake as it is shown.

    Args:
        row: the trajectory with its verdict.
        flags: its row of `trajectory_flags`; None where the lake has none.
        limits: how much of it is shown.
    """
    steps = row["steps"] or []
    is_long = len(steps) > limits.first_steps + limits.last_steps
    first, last = (
        (steps[: limits.first_steps], steps[-limits.last_steps :]) if is_long else (steps, [])
    )
    flags_of = flags_by_step(flags)

    def each(step: Row) -> Step:
        return told_step(step, row, flags, flags_of.get(step["step_id"], ()), limits)

    return Example(
        trajectory_id=row["trajectory_id"],
        source=shown(row["source"]),
        is_kept=row["is_kept"],
        reason=row["reason"],
        facts=tuple(_facts(row)),
        system_prompt=(
            shown(row["system_prompt"], limits.characters) if row["system_prompt"] else None
        ),
        first_steps=tuple(map(each, first)),
        steps_left_out=len(steps) - len(first) - len(last),
        last_steps=tuple(map(each, last)),
    )


def flags_by_step(flags: Row | None) -> dict[int, tuple[Text, ...]]:
    """Step → what rules found in it; `flags` is a row of `trajectory_flags`, None without one."""
    found: dict[int, tuple[Text, ...]] = {}
    for flag in (flags or {}).get("flags") or ():
        line = flag["flag"] + (f": {flag['detail']}" if flag["detail"] else "")
        found[flag["step_id"]] = (*found.get(flag["step_id"], ()), shown(line, 160))
    return found


def told_step(
    step: Row,
    row: Row,
    flags: Row | None,
    flags_of_step: Sequence[Text] = (),
    limits: Limits = SHORT,
    *,
    notes: Sequence[Text] = (),
    anchor: str | None = None,
    whole: Callable[[int, int], str] | None = None,
) -> Step:
    """A step as it is shown.

    Args:
        step: one of the trajectory's `steps`.
        row: the trajectory's verdict: `trained_steps` and `reason`.
        flags: the trajectory's row of `trajectory_flags`; None where the lake has none.
        flags_of_step: what was found in this step.
        limits: how much of it is shown.
        notes, anchor: as in `Step`.
        whole: step and number of a part (from 0, in `said_in`) → where all of its text is.
    """
    said = said_in(step)
    of_role: dict[str, int] = {}
    parts: list[Part] = []
    for number, (role, label, text) in enumerate(said):
        of_role[role] = of_role.get(role, 0) + 1
        if role in _COUNTED and of_role[role] > limits.calls:
            continue
        is_cut = len(text) > limits.characters
        link = whole(step["step_id"], number) if whole and is_cut else None
        parts.append(Part(role, shown(label, 80), shown(text, limits.characters), link))
        if of_role[role] == limits.calls and role in _COUNTED:
            left_out = sum(each == role for each, _, _ in said) - limits.calls
            if left_out > 0:
                more = f"{left_out} more {_COUNTED[role]} left out"
                name = "Tool call" if role == "call" else "Observation"
                parts.append(Part(role, shown(name), shown(more)))
    state, state_text = _state(step, row, flags)
    return Step(
        step_id=step["step_id"],
        state=state,
        state_text=state_text,
        flags=tuple(flags_of_step),
        parts=tuple(parts),
        notes=tuple(notes),
        anchor=anchor,
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
    if row["reason"] is None:
        return "open", "not masked; no verdict is known"
    if row["trained_steps"] is None:
        return "open", "not masked, but the run is dropped"
    if row["reason"] == "salvaged":
        return "masked", "masked: after the first error"
    return "masked", "masked by the recipe"


def said_in(step: Row) -> list[tuple[str, str, str]]:
    """All that is said in a step, in order: role, label and text of each part."""
    found: list[tuple[str, str, str]] = []
    if step["input"]:
        found.append(("input", "Input", step["input"]))
    thought, output = step["thought"] or "", step["output"] or ""
    # The output has the thought in it, word for word, where the model wrote it there.
    before, inside, after = output.partition(thought) if thought else ("", "", output)
    if inside:
        found.append(("thought", "Thought", before + thought))
        output = after.strip("\n")
    elif thought:
        found.append(("thought", "Thought", thought))
    if output.strip():
        found.append(("action", "Action", output))
    for call in step["tool_calls"] or ():
        text = f"{call['name'] or '(no name)'}({call['arguments'] or ''})"
        found.append(("call", "Tool call", text))
    for each in step["observations"] or ():
        by = each["source"] or "environment"
        label = f"Observation ({by}{', ' + each['name'] if each['name'] else ''})"
        found.append(("observation", label, each["content"] or ""))
    return found
