"""Where a source keeps what, by JSON path: the `fields` of its entry.

| field         | what is there                                                             |
|---------------|---------------------------------------------------------------------------|
| `user_query`  | text                                                                      |
| `score`       | a number, a number as text, or true (1) and false (0)                     |
| `model_name`  | text                                                                      |
| `task_id`     | text or an integer                                                        |
| `tools`       | a list, or a list as JSON text                                            |
| `group_key`   | text or an integer: what the records of one trajectory have in common     |
| `group_order` | a number, or a number as text: the place among them                       |

A path is the part of RFC 9535 that names one value: `$` (may be left out), `.name` or `['name']`
for a field, `[0]` or `[-1]` for an item of a list; text that is JSON is looked into. Every
record has to have it, unless a `?` stands at its end. A null is as good as nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats.jsontext import from_json
from udfs.formats.parts import COLUMNS
from udfs.formats.trajectory import (
    Part,
    Trajectory,
    as_identifier,
    as_number,
    as_text,
    as_tools,
)

# What `inside` gives where there is nothing.
ABSENT = object()
_PART = re.compile(r"""\.?([^.\[\]'"?]+)|\[(-?\d+)\]|\['([^']*)'\]|\["([^"]*)"\]""")


def _as_any_number(value: Any) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return as_number(value)


_CONVERT: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "user_query": (as_text, "text"),
    "score": (_as_any_number, "a number, or true or false"),
    "model_name": (as_text, "text"),
    "task_id": (as_identifier, "text or an integer"),
    "tools": (as_tools, "a list, or a list as JSON text"),
    "group_key": (as_identifier, "text or an integer"),
    "group_order": (_as_any_number, "a number"),
}
FIELDS = tuple(_CONVERT)


def check_fields(fields: Any, where: str) -> None:
    """Check what a source declares as its `fields`.

    Raises:
        ConfigError: a field that does not exist, or a path that is none; begins with `where`.
    """
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: 'fields' is {fields!r} and has to be a mapping to JSON paths.")
    for name, path in fields.items():
        if name not in _CONVERT:
            raise ConfigError(f"{where}: unknown field '{name}'. Fields: {', '.join(FIELDS)}.")
        try:
            path_steps(path)
        except ValueError as error:
            raise ConfigError(
                f"{where}: the path of '{name}' is {path!r}: {error}. A path looks like "
                "`$.meta.reward`, `runs[0].score` or `$['results/action']`, with a `?` at its end "
                "where some records have no such field."
            ) from None
    if "group_order" in fields and "group_key" not in fields:
        raise ConfigError(f"{where}: 'group_order' orders what 'group_key' groups; give both.")


def apply_fields(
    record: Any, trajectories: list[Trajectory], fields: Mapping[str, str]
) -> list[Trajectory]:
    """The trajectories of a record with the columns that its source maps.

    A value that a parser put into such a column goes to the other information, under `_columns`.

    Raises:
        RefusedRecord: `missing_field`, where a path leads nowhere; `unexpected_value`, where what
            is there has the wrong type; `several_trajectories`, where a record that is to be
            grouped holds more than one.
    """
    if not fields:
        return trajectories
    values = {name: _value(record, name, path) for name, path in fields.items()}
    key, order = values.pop("group_key", None), values.pop("group_order", None)
    if key is not None and len(trajectories) != 1:
        raise RefusedRecord(
            "several_trajectories",
            f"The record holds {len(trajectories)} trajectories, and its source declares "
            "`group_key`, by which records of one step are put together. Remove it.",
        )
    columns = {name: value for name, value in values.items() if value is not None}
    return [_with(each, columns, key, order) for each in trajectories]


def _with(
    trajectory: Trajectory, columns: dict[str, Any], key: str | None, order: float | None
) -> Trajectory:
    replaced = {
        name: old
        for name, value in columns.items()
        if (old := getattr(trajectory, name)) is not None and old != value
    }
    information = trajectory.other_information | ({COLUMNS: replaced} if replaced else {})
    part = trajectory.part_of
    if key is not None:
        part = (
            Part(key, order)
            if part is None
            else part._replace(group_key=key, position=part.position if order is None else order)
        )
    return trajectory._replace(**columns, other_information=information, part_of=part)


def _value(record: Any, name: str, path: str) -> Any:
    value = record
    for step in path_steps(path):
        value = inside(value, step)
    if value is ABSENT:
        if path.endswith("?"):
            return None
        has = (
            f"the record has {', '.join(list(record)[:20])}"
            if isinstance(record, dict)
            else ("the record is no object")
        )
        raise RefusedRecord(
            "missing_field",
            f"`{name}` is declared to be at {path}, which this record does not have; {has:.400}. "
            "Correct the path in the source's entry, or put a `?` at its end.",
        )
    if value is None:
        return None
    convert, expected = _CONVERT[name]
    converted = convert(value)
    if converted is None:
        raise RefusedRecord(
            "unexpected_value",
            f"`{name}` is declared to be at {path}; there is {value!r:.80} and it has to be "
            f"{expected}.",
        )
    return converted


def inside(value: Any, step: str | int) -> Any:
    """What a value has at a name or number, `ABSENT` where it has nothing; JSON text is read."""
    if isinstance(value, str):
        try:
            value = from_json(value.encode())
        except RefusedRecord:
            return ABSENT
    if isinstance(step, str):
        return value.get(step, ABSENT) if isinstance(value, dict) else ABSENT
    is_there = isinstance(value, list) and -len(value) <= step < len(value)
    return value[step] if is_there else ABSENT


@cache
def path_steps(path: Any) -> tuple[str | int, ...]:
    """A path as names and numbers.

    Raises:
        ValueError: it is no path.
    """
    if not isinstance(path, str):
        raise ValueError("it is no text")
    rest = path.removesuffix("?").removeprefix("$")
    steps: list[str | int] = []
    at = 0
    while at < len(rest):
        found = _PART.match(rest, at)
        if found is None or (at == 0 and rest.startswith(".") and path.startswith(".")):
            raise ValueError(f"character {at + 1} of '{rest}' begins neither a name nor [0]")
        name, number, *quoted = found.groups()
        if number is not None:
            steps.append(int(number))
        else:
            steps.append(name if name is not None else next(q for q in quoted if q is not None))
        at = found.end()
    if not steps:
        raise ValueError("it names nothing")
    return tuple(steps)
