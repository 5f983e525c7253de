"""The shape of a record: its keys, without its values. Records of one shape are asked about once.

Items of a list are taken together, keys that look like data (numbers, hashes, dates, or very many
of them) are one `*`, and whether a value is a text, a number or missing makes no difference.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

import pyarrow as pa

from udfs.errors import RefusedRecord
from udfs.formats import detect
from udfs.formats.jsontext import from_json, to_json

_DEEPEST = 6
_MOST_KEYS = 60
_MOST_ITEMS = 200
_ANY = "*"
_TOO_DEEP = 100
# A key that is data: digits, a date or time, a UUID or another long hexadecimal number.
_DATA = re.compile(r"[\d.:/T_-]*\d[\d.:/TZ_-]*|(?=[a-fA-F-]*\d)[\da-fA-F-]{8,}")

Shape = Any  # None for a value, a dictionary of shapes for an object, a list of one for a list


def shape_of(value: Any, depth: int = 0) -> Shape:
    """The shape of a decoded value: None, `{key: shape}` or `[shape of all items]`."""
    if depth < _DEEPEST:
        if isinstance(value, dict):
            found: dict[str, Shape] = {}
            for key, item in value.items():
                name = _ANY if len(value) > _MOST_KEYS or _is_data(key) else key
                shape = shape_of(item, depth + 1)
                found[name] = _merged(found[name], shape) if name in found else shape
            return found
        if isinstance(value, list):
            shape = None
            for item in value[:_MOST_ITEMS]:
                shape = _merged(shape, shape_of(item, depth + 1))
            return [shape]
    return None


@lru_cache(maxsize=10_000)
def _is_data(key: str) -> bool:
    return _DATA.fullmatch(key) is not None


def _merged(one: Shape, other: Shape) -> Shape:
    """Both shapes as one; of two that differ, an object says the most and a value the least."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, dict) and isinstance(other, dict):
        return one | {
            key: _merged(one[key], shape) if key in one else shape for key, shape in other.items()
        }
    if isinstance(one, list) and isinstance(other, list):
        return [_merged(one[0], other[0])]
    return one if isinstance(one, dict) else other


def shape_sha256(shape: Shape) -> str:
    """The hash of a shape, whatever the order of keys."""
    return hashlib.sha256(to_json(shape, sort_keys=True).encode()).hexdigest()


def is_deep(value: Any) -> bool:
    """Whether a value is nested more deeply than anything that is meant."""
    level = [value]
    for _ in range(_TOO_DEEP):
        below: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                below.extend(each.values())
            elif isinstance(each, list):
                below.extend(each)
        level = [each for each in below if isinstance(each, dict | list)]
        if not level:
            return False
    return True


def record_shapes(raw: pa.Array) -> pa.Array:
    """The shapes of the records that no format fits.

    Args:
        raw: binary, shape (n,): the bytes of one JSON value each.

    Returns:
        Hashes of shapes, shape (n,); null where a format fits, several do, or the record cannot
        be read or is nested a hundred levels deep.
    """
    return pa.array([_unknown_shape(each) for each in raw.to_pylist()], pa.string())


def _unknown_shape(raw: bytes | None) -> str | None:
    try:
        record = from_json(raw or b"")
        detect(record)
    except RefusedRecord as refused:
        if refused.reason != "unknown_format":
            return None
    else:
        return None
    return None if is_deep(record) else shape_sha256(shape_of(record))
