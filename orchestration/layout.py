"""What fields records have: the paths of JSON values, their types, and how often they are there.

Paths are written as `messages[].role`: `[]` stands for every item of a list, `.*` for the keys of
an object that has so many that they are data and no fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

# An object with more keys than this, over all records, is a dictionary.
_MOST_KEYS = 40

# Records of strangers may be nested as deep as they like.
_MOST_LEVELS = 8

_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "text",
    list: "list",
    dict: "object",
}


@dataclass(frozen=True)
class FieldSeen:
    """One path, what is found there, and in how many of the records."""

    path: str
    types: tuple[str, ...]
    records: int


class _Node:
    """What was seen at one path, over all records."""

    def __init__(self) -> None:
        self.types: set[str] = set()
        self.records: set[int] = set()
        self.children: dict[str, _Node] = {}
        self.items: _Node | None = None

    def add(self, value: Any, record: int, level: int) -> None:
        self.types.add(_TYPES[type(value)])
        self.records.add(record)
        if level == _MOST_LEVELS:
            return
        if isinstance(value, dict):
            for key, each in value.items():
                self.children.setdefault(key, _Node()).add(each, record, level + 1)
        elif isinstance(value, list) and value:
            self.items = self.items or _Node()
            for each in value:
                self.items.add(each, record, level + 1)

    def fields(self, path: str) -> Iterator[FieldSeen]:
        if path:
            yield FieldSeen(path, tuple(sorted(self.types)), len(self.records))
        if self.items:
            yield from self.items.fields(f"{path}[]")
        before = f"{path}." if path else ""
        if len(self.children) > _MOST_KEYS:
            types = {each for child in self.children.values() for each in child.types}
            records = {each for child in self.children.values() for each in child.records}
            yield FieldSeen(f"{before}*", tuple(sorted(types)), len(records))
            return
        for key, child in self.children.items():
            yield from child.fields(f"{before}{key}")


def described_layout(records: Iterable[Any]) -> list[FieldSeen]:
    """The fields of JSON records, in the order in which they are met.

    Args:
        records: parsed JSON.
    """
    root = _Node()
    for number, record in enumerate(records):
        root.add(record, number, 0)
    return list(root.fields(""))
