"""What a parser returns: trajectories as plain tuples, and what parsers share.

The tuples mirror `udfs.schema` without what is derived from them (`step_id`,
`next_observation`, `content_sha256`, JSON texts); `udfs.formats.arrow` adds that. Tuples, since
thousands of them a second are transposed into Arrow columns.

A parser is a pure function of one decoded record. It returns the trajectories in it, or raises
`udfs.errors.RefusedRecord`. What it knows but has no column for goes to `other_information`;
what is needed to rebuild the source's exact shape goes there under `LAYOUT`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json

# The key in `other_information` under which a parser notes how the source was laid out.
LAYOUT = "_layout"


class ToolCall(NamedTuple):
    """One structured call, as the source gives it; `arguments` is JSON text where it is JSON."""

    call_id: str | None
    name: str | None
    arguments: str | None


class Observation(NamedTuple):
    """What came back after an output; `source` is environment, user or agent."""

    source: str
    name: str | None
    call_id: str | None
    content: str | None


class Step(NamedTuple):
    """One output of the model with what was newly put before it and what came back."""

    input: str | None
    thought: str | None
    output: str | None
    tool_calls: list[ToolCall]
    observations: list[Observation]
    is_trainable: bool = True


class Part(NamedTuple):
    """What a record that is only part of a trajectory says of its place in it.

    * `group_key` is the same in all records of the trajectory, within a source and format.
    * `position` orders them; None leaves it to the order of files and of records in them.
    * `size`, where the record says it: there should be the positions 0 to `size` - 1.
    * `input_is_state`: the step's input is what the environment showed, not what somebody asked;
      it is the observation of the step before, where that one is there.

    `udfs.formats.parts` puts them together.
    """

    group_key: str
    position: float | None = None
    size: int | None = None
    input_is_state: bool = False


class Trajectory(NamedTuple):
    """One run of an agent (¶25 of the specification), or part of one. `tools` is JSON text."""

    user_query: str | None
    system_prompt: str | None
    tools: str | None
    task_id: str | None
    model_name: str | None
    score: float | None
    steps: list[Step]
    other_information: dict[str, Any]
    part_of: Part | None = None

    @property
    def layout(self) -> dict[str, Any]:
        """How the source was laid out, beyond what the columns say."""
        layout: dict[str, Any] = self.other_information.get(LAYOUT, {})
        return layout

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Trajectory:
        """A row of `trajectories` or a parsed one (dictionaries and lists) as the parser had it."""
        part = row.get("part_of")
        return cls(
            steps=[
                Step(
                    tool_calls=[ToolCall(**call) for call in step["tool_calls"]],
                    observations=[Observation(**seen) for seen in step["observations"]],
                    **{name: step[name] for name in ("input", "thought", "output", "is_trainable")},
                )
                for step in row["steps"]
            ],
            other_information=json.loads(row["other_information"]),
            part_of=part and Part(**part),
            **{name: row[name] for name in _PLAIN_COLUMNS},
        )


_PLAIN_COLUMNS = ("user_query", "system_prompt", "tools", "task_id", "model_name", "score")


@dataclass(frozen=True)
class Options:
    """What a source's entry tells a parser.

    `thought_as_step`: whether a thought before an action is a step of its own; None leaves it to
    the dialect. Only `react_text` asks for it.
    `fields`: where the source keeps what, by JSON path; see `udfs.formats.fields`, which applies
    it to what any parser returns.
    `mapping`: how the format `mapped` reads a record; see `udfs.formats.mapped`.
    `answer`: what a model read in the record; see `udfs.formats.model_read`.
    """

    thought_as_step: bool | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    mapping: Mapping[str, Any] | None = None
    answer: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Format:
    """One raw format.

    * `matches(record)` is the confidence, 0 to 1, that a decoded record has the format, from the
      record alone. 1.0: marks that only this format has; 0.9: several marks agree; 0.75: the
      shape fits; 0: it does not fit. It is asked of every record, so it has to be quick.
    * `near(record)` says in what a record looks like the format and why it still is none; None
      where it does not look like it. Asked only of records that no format fits.
    * `parse(record, raw_key, options)` gives the record's trajectories; `raw_key` is the key
      under which it stood in a dictionary file.
    * `to_source(trajectory)` rebuilds the conversation in the source's own shape.
    * `keys`: keys without which a record has not the format, be they its own or those of the
      first object of a list in it. `matches` is asked only where all are there.
    * `refines` names formats whose shape this one has too, with more marks: where one of them
      matches as well, this one is taken.
    * `part_mark`: the format's records are parts of trajectories, and the JSON text of every one
      of them has this key; looked for before anything is decoded.
    """

    name: str
    version: str
    matches: Callable[[Any], float]
    near: Callable[[Any], str | None]
    parse: Callable[[Any, str | None, Options], list[Trajectory]]
    to_source: Callable[[Trajectory], Any]
    refines: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    part_mark: str | None = None


def assemble(
    record: Mapping[str, Any],
    raw_key: str | None,
    steps: list[Step],
    *,
    steps_field: str | None,
    layout: dict[str, Any],
    user_query: str | None,
    system_prompt: str | None = None,
) -> Trajectory:
    """A trajectory of the given steps and of what else stands in the record.

    A column takes the first of its fields whose value has the right type. Every field that no
    column took goes to `other_information` as it was.

    | column       | fields                                                                    |
    |--------------|---------------------------------------------------------------------------|
    | `user_query` | `question` (text), else the argument                                      |
    | `task_id`    | `task_id`, `instance_id`, `id`, `item_id` (text or integer), else its key  |
    | `model_name` | `model_name`, `model` (text)                                              |
    | `score`      | `reward`, else `resolved`: the environment's verdict; true is 1, false 0  |
    | `tools`      | `tools`, `functions` (a list, or a list as JSON text)                     |

    Args:
        record: the record, an object (an empty one where the record is a list).
        raw_key: its key in a dictionary file.
        steps: its steps.
        steps_field: the field they were made from.
        layout: how the source was laid out; it goes to the other information as it is.
        user_query: what the user asked, as the steps say it.
        system_prompt: as the steps' source says it.
    """
    rest = dict(record)
    if steps_field is not None:
        del rest[steps_field]
    taken = {}
    for column, convert, names in _COLUMN_FIELDS:
        for name in names:
            if name in rest and (value := convert(rest[name])) is not None:
                taken[column] = value
                del rest[name]
                break
    task_id = taken.get("task_id")
    if raw_key is not None and task_id is not None:
        layout["raw_key"] = raw_key
    if LAYOUT in rest:
        layout["field_of_this_name"] = rest[LAYOUT]
    if layout:
        rest[LAYOUT] = layout
    return Trajectory(
        user_query=taken.get("user_query", user_query),
        system_prompt=system_prompt,
        tools=taken.get("tools"),
        task_id=raw_key if task_id is None else task_id,
        model_name=taken.get("model_name"),
        score=taken.get("score"),
        steps=steps,
        other_information=rest,
    )


def as_text(value: Any) -> str | None:
    """A text; None where it is none."""
    return value if isinstance(value, str) else None


def as_identifier(value: Any) -> str | None:
    """A text, or an integer as text; None where it is neither."""
    return str(value) if type(value) is int else as_text(value)


def as_number(value: Any) -> float | None:
    """A finite number; true is 1, false 0; None where it is none."""
    if not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_tools(value: Any) -> str | None:
    """A list as JSON text; None where it is neither a list nor its text."""
    if isinstance(value, list):
        return to_json(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        return value if isinstance(_json_or_none(value), list) else None
    return None


_COLUMN_FIELDS: tuple[tuple[str, Callable[[Any], Any], tuple[str, ...]], ...] = (
    ("user_query", as_text, ("question",)),
    ("task_id", as_identifier, ("task_id", "instance_id", "id", "item_id")),
    ("model_name", as_text, ("model_name", "model")),
    ("score", as_number, ("reward", "resolved")),
    ("tools", as_tools, ("tools", "functions")),
)


def _json_or_none(text: str) -> Any:
    try:
        return from_json(text.encode())
    except RefusedRecord:
        return None


def content_sha256(trajectory: Trajectory) -> str:
    """The hash of what was said and done, in hexadecimal.

    SHA-256 over the UTF-8 of this compact JSON, where an absent text is the empty one and
    arguments that are JSON are written compactly with sorted keys:

        [system_prompt, [[input, output, [[name, arguments], …], [observation, …]], …]]

    Ids, names of models and sources, scores and masks do not enter it, so the same conversation
    has the same hash in whatever format and source it came.
    """
    steps = [
        [
            step.input or "",
            step.output or "",
            [[call.name or "", _canonical(call.arguments)] for call in step.tool_calls],
            [seen.content or "" for seen in step.observations],
        ]
        for step in trajectory.steps
    ]
    text = to_json([trajectory.system_prompt or "", steps])
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(arguments: str | None) -> str:
    if not arguments:
        return ""
    value = _json_or_none(arguments)
    return arguments if value is None else to_json(value, sort_keys=True)
