"""Personal data and secrets in trajectories: found, shown masked, and taken out of texts.

What counts is in `udfs.curation.personal_patterns`. Here is how millions of texts are gone
through: RE2 looks for the triggers of all rules at once, over whole Arrow arrays; few texts have
one, and only these become Python's and meet the rules they have a trigger for.

Findings are shown to many, so they never hold what was found: only where, which kind, and an
excerpt in which most is masked.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from udfs.curation.personal_patterns import (
    ANY_TRIGGER,
    RULES,
    RULES_VERSION,
    Found,
    Rule,
    find,
    placeholder,
)

FINDING = pa.struct(
    [
        ("step_id", pa.int32()),  # null: outside the steps
        ("field", pa.string()),  # of the trajectory, or of the step
        ("kind", pa.string()),
        ("excerpt", pa.string()),  # masked
    ]
)

PERSONAL_DATA = pa.struct(
    [
        ("kinds", pa.list_(pa.string())),  # each once, in order of the alphabet
        ("finding_count", pa.int32()),
        ("findings", pa.list_(FINDING)),
    ]
)


def personal_data_version() -> str:
    """A short text that changes whenever a rule does."""
    return RULES_VERSION


# ------------------------------------------------------------------------------------------------
# Finding
# ------------------------------------------------------------------------------------------------


class _Texts(NamedTuple):
    """One field of all trajectories: its texts, and where each belongs."""

    field: str
    texts: pa.Array
    rows: np.ndarray  # the trajectory of each text, counted from 0
    step_ids: pa.Array | None  # of each text; none outside the steps


class _Place(NamedTuple):
    step_id: int | None
    field: str


def find_personal_data(
    user_query: pa.Array,
    system_prompt: pa.Array,
    tools: pa.Array,
    other_information: pa.Array,
    steps: pa.Array,
) -> pa.StructArray:
    """Go through trajectories for personal data and secrets.

    What stands in one field of one step several times is one finding. A thought that is part of
    its step's output, and a query that is part of a step's input, are not counted again.

    Args:
        user_query, system_prompt, tools, other_information: texts, shape (n,), or null.
        steps: lists of `udfs.schema.STEP`, shape (n,); null counts as none.

    Returns:
        Structs of type `PERSONAL_DATA`, shape (n,), none null.
    """
    trajectories = np.arange(len(steps))
    outside = [
        _Texts("user_query", user_query, trajectories, None),
        _Texts("system_prompt", system_prompt, trajectories, None),
        _Texts("tools", tools, trajectories, None),
    ]
    last = [_Texts("other_information", other_information, trajectories, None)]
    found: dict[int, dict[_Place, dict[tuple[str, str], str]]] = {}
    for field in [*outside, *_step_texts(steps), *last]:
        for i, (text, some) in _search(field.texts).items():
            step_id = None if field.step_ids is None else field.step_ids[i].as_py()
            place = _Place(step_id, field.field)
            values = found.setdefault(int(field.rows[i]), {}).setdefault(place, {})
            for one in some:
                values.setdefault((one.kind, text[one.start : one.end]), one.excerpt)
    return _as_array({row: _findings(places) for row, places in found.items()}, len(steps))


def _step_texts(steps: pa.Array) -> list[_Texts]:
    """The fields of steps that have texts of their own."""
    flat, rows = steps.flatten(), pc.list_parent_indices(steps).to_numpy()
    ids = pc.struct_field(flat, "step_id")
    fields = [
        _Texts(name, pc.struct_field(flat, name), rows, ids)
        for name in ("input", "thought", "output")
    ]
    for name, part in (("tool_calls", "arguments"), ("observations", "content")):
        lists = pc.struct_field(flat, name)
        of_step = pc.list_parent_indices(lists)
        texts = pc.struct_field(lists.flatten(), part)
        fields.append(_Texts(name, texts, rows[of_step.to_numpy()], ids.take(of_step)))
    return fields


def _findings(
    places: Mapping[_Place, Mapping[tuple[str, str], str]],
) -> list[tuple[int | None, str, str, str]]:
    """The findings of one trajectory: what is outside the steps, then step by step."""
    inputs = {key for place, values in places.items() if place.field == "input" for key in values}
    findings = []
    for place, values in places.items():
        known: set[tuple[str, str]] = set()
        if place.field == "user_query":
            known = inputs
        elif place.field == "thought":
            known = set(places.get(_Place(place.step_id, "output"), ()))
        findings += [
            (*place, kind, excerpt)
            for (kind, value), excerpt in values.items()
            if (kind, value) not in known
        ]
    return sorted(findings, key=lambda finding: finding[0] or 0)


def _as_array(
    found: Mapping[int, list[tuple[int | None, str, str, str]]], length: int
) -> pa.StructArray:
    some = [found.get(row, []) for row in range(length)]
    kinds = [sorted({finding[2] for finding in findings}) for findings in some]
    columns = list(zip(*(finding for findings in some for finding in findings), strict=True))
    offsets = np.cumsum([0, *(len(findings) for findings in some)])
    items = pa.StructArray.from_arrays(
        [
            pa.array(values, field.type)
            for values, field in zip(columns or [()] * 4, FINDING, strict=True)
        ],
        fields=list(FINDING),
    )
    return pa.StructArray.from_arrays(
        [
            pa.array(kinds, pa.list_(pa.string())),
            pa.array([len(findings) for findings in some], pa.int32()),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items),
        ],
        fields=list(PERSONAL_DATA),
    )


def _search(texts: pa.Array) -> dict[int, tuple[str, list[Found]]]:
    """What texts have, by their index: the text and what was found; only where something was."""
    at = pc.indices_nonzero(_has(texts, ANY_TRIGGER))
    if not len(at):
        return {}
    some = texts.take(at)
    rules: dict[int, list[Rule]] = {}
    for rule in RULES:
        for i in pc.indices_nonzero(_has(some, rule.trigger)).to_pylist():
            rules.setdefault(i, []).append(rule)
    searched = ((i, some[i].as_py(), of_text) for i, of_text in rules.items())
    found = ((i, text, find(text, of_text)) for i, text, of_text in searched)
    return {at[i].as_py(): (text, some) for i, text, some in found if some}


def _has(texts: pa.Array, trigger: str) -> pa.Array:
    return pc.fill_null(pc.match_substring_regex(texts, trigger), False)


# ------------------------------------------------------------------------------------------------
# Redacting
# ------------------------------------------------------------------------------------------------


def redact(texts: pa.Array) -> pa.Array:
    """Put a placeholder (`[EMAIL]`, `[API_KEY]` …) in the place of everything that is found.

    All else stays as it is, byte for byte. Redacting again changes nothing, and nothing is found
    in what was redacted. A text that is a JSON object or array still is one.

    Args:
        texts: strings, or lists or structs with strings in them at any depth; null stays null.

    Returns:
        The same type and shape.
    """
    kind = texts.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _redact_strings(texts)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        # Over all items, those outside a slice included: the offsets stay true.
        validity, offsets = texts.buffers()[:2]
        items = redact(texts.values)
        return pa.Array.from_buffers(
            kind, len(texts), [validity, offsets], offset=texts.offset, children=[items]
        )
    if pa.types.is_struct(kind):
        children = [redact(child) for child in texts.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=texts.is_null())
    return texts


def _redact_strings(texts: pa.Array) -> pa.Array:
    found = _search(texts)
    if not found:
        return texts
    is_found = np.zeros(len(texts), dtype=bool)
    is_found[list(found)] = True
    redacted = [redact_text(found[i][0]) for i in sorted(found)]
    return pc.replace_with_mask(texts, pa.array(is_found), pa.array(redacted, texts.type))


# A string of JSON, and a number that is a value by itself.
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NUMBER = re.compile(r"[0-9.eE+-]+")


def redact_text(text: str) -> str:
    """One text without what is found in it; see `redact`."""
    # What is replaced may have stood between others and hidden them, so look again. Each time
    # there is less text that is no placeholder, so this ends.
    while found := find(text):
        quoted = _bare_numbers(text, found)
        parts, end = [], 0
        for one in found:
            mark = placeholder(one.kind)
            parts += [text[end : one.start], f'"{mark}"' if one in quoted else mark]
            end = one.end
        text = "".join([*parts, text[end:]])
    return text


def _bare_numbers(text: str, found: list[Found]) -> set[Found]:
    """Of what was found in JSON, the numbers that stand outside its strings."""
    numbers = {one for one in found if _NUMBER.fullmatch(text, one.start, one.end)}
    if not numbers or not text.lstrip().startswith(("{", "[")):
        return set()
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return set()
    strings = [match.span() for match in _STRING.finditer(text)]
    starts = [start for start, _ in strings]

    def is_inside(one: Found) -> bool:
        at = bisect_left(starts, one.start)
        return at > 0 and one.start < strings[at - 1][1]

    return {one for one in numbers if not is_inside(one)}
