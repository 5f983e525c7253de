"""Runs that are told as what was seen and what was done, one after the other.

Browsers, shops, households, repositories: a record lists pages and clicks, or commands and what
they printed. A format reads its list as `Seen` and `Done`; here those become steps.

* Each `Done` is a step. What is seen after it, up to the next, are its observations.
* What is seen before the first `Done` is the first input, after the query if there is one. Later
  inputs are what a user says between (`Seen` with `is_asked`).
* The source's list is kept in the layout (`source`), where each longer text that a column holds
  is replaced by `{"_ref": [column, step, …]}` (steps from 0). So the way back is exact, and no
  long text is stored twice; images are there by reference only (`udfs.formats.images`). A source
  that has such an object itself is kept as it is (`plain_source`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from udfs.formats.parts import JOINT
from udfs.formats.trajectory import Observation, Step, ToolCall, Trajectory, assemble

_REF = "_ref"
# Texts from so many characters on are told by reference.
SHORTEST = 24


class Seen(NamedTuple):
    """Something that was put before the agent. `is_asked`: by a user, who wants something."""

    text: str
    name: str | None = None
    call_id: str | None = None
    is_asked: bool = False


class Done(NamedTuple):
    """Something that the agent put out."""

    output: str | None
    thought: str | None = None
    calls: Sequence[ToolCall] = ()
    is_trainable: bool = True


def trajectory_of_events(
    record: Mapping[str, Any],
    raw_key: str | None,
    events: Sequence[Seen | Done],
    *,
    field: str | None,
    source: Any,
    query: str | None = None,
    system_prompt: str | None = None,
) -> Trajectory:
    """The trajectory of a record that tells a run; at least one event is a `Done`.

    Args:
        record: its fields; those that the format took for the query and the like are left out.
        raw_key: its key in a dictionary file.
        events: what was seen and done, in order.
        field: the field that told it; None where the record is the list.
        source: what that field held.
        query: what the user wanted, where that stands apart from the list.
        system_prompt: likewise.
    """
    steps, texts = steps_of(query, events)
    layout: dict[str, Any] = {"is_list": True} if field is None else {"field": field}
    layout |= source_layout(source, texts)
    first_asked = next((e.text for e in events if isinstance(e, Seen) and e.is_asked), None)
    return assemble(
        record,
        raw_key,
        steps,
        steps_field=None if field not in record else field,
        layout=layout,
        user_query=first_asked if query is None else query,
        system_prompt=system_prompt,
    )


def to_source(trajectory: Trajectory) -> Any:
    """What the field that told the run held."""
    layout = trajectory.layout
    if "plain_source" in layout:
        return layout["plain_source"]
    return _filled(layout["source"], trajectory)


def source_layout(source: Any, texts: Mapping[str, list[Any]]) -> dict[str, Any]:
    """What `to_source` needs to give `source` again, with references for texts in columns."""
    if _holds_ref(source):
        return {"plain_source": source}
    return {"source": _with_refs(source, texts)}


def steps_of(
    query: str | None, events: Sequence[Seen | Done]
) -> tuple[list[Step], dict[str, list[Any]]]:
    """The steps of a run, and where in them its longer texts are: text → reference."""
    steps: list[Step] = []
    texts: dict[str, list[Any]] = {}
    asked: list[str] = [] if query is None else [query]

    def note(text: str | None, *ref: Any) -> None:
        if text is not None and len(text) >= SHORTEST:
            texts.setdefault(text, list(ref))

    for event in events:
        if isinstance(event, Done):
            number, start = len(steps), 0
            for text in asked:
                note(text, "input", number, start, start + len(text))
                start += len(text) + len(JOINT)
            note(event.output, "output", number)
            note(event.thought, "thought", number)
            steps.append(
                Step(
                    JOINT.join(asked) if asked else None,
                    event.thought,
                    event.output,
                    list(event.calls),
                    [],
                    event.is_trainable,
                )
            )
            asked = []
        elif event.is_asked or not steps:
            asked.append(event.text)
        else:
            _observe(asked, steps)
            asked = []
            note(event.text, "observation", len(steps) - 1, len(steps[-1].observations))
            steps[-1].observations.append(
                Observation("environment", event.name, event.call_id, event.text)
            )
    _observe(asked, steps)
    return steps, texts


def _observe(asked: list[str], steps: list[Step]) -> None:
    """What a user said before more was seen, or after the last step, answers that step."""
    steps[-1].observations.extend(Observation("user", None, None, text) for text in asked)


def _with_refs(value: Any, texts: Mapping[str, list[Any]]) -> Any:
    match value:
        case str():
            ref = texts.get(value)
            return value if ref is None else {_REF: ref}
        case list():
            return [_with_refs(item, texts) for item in value]
        case dict():
            return {key: _with_refs(item, texts) for key, item in value.items()}
        case _:
            return value


def _holds_ref(value: Any) -> bool:
    match value:
        case list():
            return any(_holds_ref(item) for item in value)
        case dict():
            return _REF in value or any(_holds_ref(item) for item in value.values())
        case _:
            return False


def _filled(value: Any, trajectory: Trajectory) -> Any:
    match value:
        case list():
            return [_filled(item, trajectory) for item in value]
        case {"_ref": ["system_prompt"]} if len(value) == 1:
            return trajectory.system_prompt
        case {"_ref": [str(column), int(number), *place]} if len(value) == 1:
            step = trajectory.steps[number]
            if column == "observation":
                return step.observations[place[0]].content
            text = getattr(step, column)
            return text[place[0] : place[1]] if place else text
        case dict():
            return {key: _filled(item, trajectory) for key, item in value.items()}
        case _:
            return value
