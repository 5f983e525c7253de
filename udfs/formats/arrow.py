"""Raw records to trajectories, a batch at a time: the functions that SQL calls.

Formats work on one decoded record; here records are decoded, formats found, what can be derived
is added (step numbers, joined observations, content hashes), and everything is laid out in flat
Arrow columns with offsets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import FORMATS, TOLD_FORMATS, detect, format_named
from udfs.formats.fields import apply_fields
from udfs.formats.jsontext import LONG_INTEGER, from_json, to_json, too_deep
from udfs.formats.parts import merge
from udfs.formats.trajectory import Format, Observation, Options, Trajectory, content_sha256
from udfs.schema import (
    OBSERVATION,
    PARSED_RECORD,
    PART,
    PART_GROUP,
    REFUSAL,
    STEP,
    TOOL_CALL,
    TRAJECTORY,
)

# Raised whenever what is derived here, or by `turns`, changes for unchanged parsers.
_VERSION = "2"
_ALL = (*FORMATS, *TOLD_FORMATS)


def parser_versions() -> str:
    """A short text that changes whenever a parser or what is derived from it does."""
    return ",".join([f"arrow={_VERSION}", *(f"{each.name}={each.version}" for each in _ALL)])


def parse_records(
    raw: pa.Array, raw_key: pa.Array, declared_format: pa.Array, options: pa.Array
) -> pa.StructArray:
    """Parse raw records; a bad one gives a refusal and has no effect on its neighbours.

    Args:
        raw: binary, shape (n,): the bytes of one JSON value each; null is an empty record.
        raw_key: strings, shape (n,): the key where a record stood in a dictionary file, or null.
        declared_format: strings, shape (n,): the name of a format; null to detect it.
        options: strings, shape (n,): JSON object with the fields of
            `udfs.formats.trajectory.Options`, or null.

    Returns:
        Structs of type `udfs.schema.PARSED_RECORD`, shape (n,). Either `trajectories` or
        `refusal` is null. Reasons of refusals: those of `udfs.formats.jsontext` and of the
        formats, and `parser_error` where a parser met a shape it does not foresee. Confidence is
        1 for a declared format.

    Raises:
        ConfigError: a declared format or an option that does not exist; no record causes it.
    """
    long_integers = pc.match_substring_regex(raw, LONG_INTEGER).to_pylist()
    records = [
        _parse(*arguments)
        for arguments in zip(
            raw.to_pylist(),
            long_integers,
            raw_key.to_pylist(),
            declared_format.to_pylist(),
            options.to_pylist(),
            strict=True,
        )
    ]
    formats, confidences, versions, trajectories, refusals = _columns(records, 5)
    return _structs(
        PARSED_RECORD,
        [
            formats,
            confidences,
            versions,
            _lists(TRAJECTORY, trajectories, _trajectories),
            _optional_structs(REFUSAL, refusals),
        ],
    )


def part_groups(
    raw: pa.Array, raw_key: pa.Array, declared_format: pa.Array, options: pa.Array
) -> pa.StructArray:
    """Which raw records are parts of a trajectory, and of which.

    Arguments are those of `parse_records`. A record is decoded only if it can be a part: its
    format or its source's grouping is declared so, or its bytes hold the mark of such a format.

    Returns:
        Structs of type `udfs.schema.PART_GROUP`, shape (n,); null where a record is a whole
        trajectory, several, or refused.
    """
    arguments = zip(
        pc.match_substring_regex(raw, _PART_MARKS).to_pylist(),
        raw,
        raw_key.to_pylist(),
        declared_format.to_pylist(),
        options.to_pylist(),
        strict=True,
    )
    groups = []
    for is_marked, record, key, declared, settings in arguments:
        found = None
        if is_marked or declared in _PART_FORMATS or "group_key" in _options(settings).fields:
            parsed = _parse(record.as_py(), None, key, declared, settings)
            if parsed.trajectories is not None:
                part = parsed.trajectories[0][0].part_of
                found = part and (parsed.format, part.group_key)
        groups.append(found)
    return _optional_structs(PART_GROUP, groups)


# An ASCII character may be written as an escape, a mark's letters too.
_PART_FORMATS = {each.name for each in FORMATS if each.part_mark}
_PART_MARKS = "|".join(
    [rf'"{re.escape(each.part_mark)}"' for each in FORMATS if each.part_mark] + [r"\\u00[2-7]"]
)


def merge_parts(parts: pa.ListArray) -> pa.StructArray:
    """One trajectory of each list of parts; see `udfs.formats.parts`.

    Args:
        parts: lists of structs of type `udfs.schema.TRAJECTORY`, shape (n,), each in order.

    Returns:
        Structs of type `udfs.schema.TRAJECTORY`, shape (n,); null for null or an empty list.
    """
    # Long runs come by the thousand: only some of them are Python objects at a time.
    slices = [parts.slice(start, _MERGED) for start in range(0, len(parts), _MERGED)]
    return pa.concat_arrays([_merged(some) for some in slices] or [_trajectories([])])


_MERGED = 64


def _merged(parts: pa.ListArray) -> pa.StructArray:
    rows = [
        _derived(merge([Trajectory.from_row(row) for row in group])) if group else None
        for group in parts.to_pylist()
    ]
    made = _trajectories([row for row in rows if row is not None])
    places = iter(range(len(made)))
    return made.take(pa.array([next(places) if row else None for row in rows], pa.int64()))


class _Parsed(NamedTuple):
    """One record's row; a trajectory with the texts that are derived from it."""

    format: str | None
    confidence: float | None
    version: str | None
    trajectories: list[tuple[Trajectory, str, str]] | None
    refusal: tuple[str, str] | None


def _parse(
    raw: bytes | None,
    has_long_integer: bool | None,
    raw_key: str | None,
    declared: str | None,
    options: str | None,
) -> _Parsed:
    found: Format | None = None
    confidence: float | None = None
    if declared is not None:
        found, confidence = format_named(declared), 1.0
    settings = _options(options)
    try:
        record = from_json(raw or b"", has_long_integer)
        if found is None:
            found, confidence = detect(record)
        parsed = found.parse(record, raw_key, settings)
        trajectories = [_derived(each) for each in apply_fields(record, parsed, settings.fields)]
    except RefusedRecord as refused:
        refusal = (refused.reason, refused.detail)
    except RecursionError:
        refusal = (too_deep().reason, too_deep().detail)
    except Exception as error:
        # The net below the parsers: a shape that one of them does not foresee costs that record.
        refusal = (
            "parser_error",
            f"The parser of {found.name if found else 'no format'} failed with "
            f"{type(error).__name__}: {error!s:.200}. Please report it with the record.",
        )
    else:
        return _Parsed(found.name, confidence, found.version, trajectories, None)
    if found is None:
        return _Parsed(None, None, None, None, refusal)
    return _Parsed(found.name, confidence, found.version, None, refusal)


def _derived(trajectory: Trajectory) -> tuple[Trajectory, str, str]:
    """A trajectory with the texts that are derived from it."""
    return trajectory, content_sha256(trajectory), to_json(trajectory.other_information)


@lru_cache(maxsize=256)  # answers of a model differ from record to record
def _options(text: str | None) -> Options:
    if text is None:
        return Options()
    known = list(Options.__dataclass_fields__)
    try:
        value = from_json(text.encode())
    except RefusedRecord as refused:
        raise ConfigError(f"Options of a parser are no JSON: {refused.detail}") from None
    if not isinstance(value, dict) or not set(value) <= set(known):
        raise ConfigError(
            f"Options of a parser are {text:.200}; they have to be a JSON object with keys among "
            f"{', '.join(known)}."
        )
    return Options(**value)


def _trajectories(rows: Sequence[tuple[Trajectory, str, str]]) -> pa.StructArray:
    parsed, hashes, information = _columns(rows, 3)
    user_query, system_prompt, tools, task_id, model_name, score, steps, _, part_of = _columns(
        parsed, len(Trajectory._fields)
    )
    return _structs(
        TRAJECTORY,
        [
            hashes,
            user_query,
            system_prompt,
            tools,
            task_id,
            model_name,
            score,
            _lists(STEP, steps, lambda flat: _steps(flat, steps)),
            information,
            _optional_structs(PART, part_of),
        ],
    )


def _steps(flat: Sequence[Any], by_trajectory: Sequence[Any]) -> pa.StructArray:
    inputs, thoughts, outputs, calls, observations, is_trainable = _columns(flat, 6)
    numbers = list(chain.from_iterable(range(1, len(steps) + 1) for steps in by_trajectory))
    return _structs(
        STEP,
        [
            numbers,
            inputs,
            thoughts,
            outputs,
            _lists(TOOL_CALL, calls, lambda rows: _structs(TOOL_CALL, _columns(rows, 3))),
            _lists(
                OBSERVATION, observations, lambda rows: _structs(OBSERVATION, _columns(rows, 4))
            ),
            [_joined(seen) for seen in observations],
            is_trainable,
        ],
    )


def _joined(observations: Iterable[Observation]) -> str | None:
    texts = [seen.content for seen in observations if seen.content is not None]
    return "\n".join(texts) if texts else None


def _columns(rows: Sequence[Any], width: int) -> list[Sequence[Any]]:
    """Rows to columns; `width` empty ones where there is no row."""
    return list(zip(*rows, strict=True)) or [()] * width


def _structs(
    kind: pa.StructType, columns: Iterable[Any], is_null: list[bool] | None = None
) -> pa.StructArray:
    fields = list(kind)
    arrays = [
        column if isinstance(column, pa.Array) else pa.array(column, field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    mask = None if is_null is None else pa.array(is_null, pa.bool_())
    return pa.StructArray.from_arrays(arrays, fields=fields, mask=mask)


def _optional_structs(kind: pa.StructType, rows: Sequence[Any]) -> pa.StructArray:
    """Structs from tuples, or null from None."""
    width = len(list(kind))
    return _structs(
        kind,
        _columns([row or (None,) * width for row in rows], width),
        is_null=[row is None for row in rows],
    )


def _lists(kind: pa.DataType, rows: Sequence[Any], build: Any) -> pa.ListArray:
    """Lists of structs, from one sequence (or None) a row, by what builds the flat structs."""
    flat = list(chain.from_iterable(row for row in rows if row))
    offsets = pa.array(accumulate((len(row or ()) for row in rows), initial=0), pa.int32())
    is_null = pa.array([row is None for row in rows], pa.bool_())
    return pa.ListArray.from_arrays(offsets, build(flat), type=pa.list_(kind), mask=is_null)
