"""Text of strangers on a terminal, and values as JSON.

A trajectory may hold rich's markup, a terminal's escape sequences, characters that change the
direction of a line or cannot be seen. All of them are shown as what they are and do nothing.
"""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a script, and nothing else.")]

# Controls, formats (of no width, changes of direction, tags), surrogates, private and unassigned
# characters, separators of lines and paragraphs; see Unicode's General_Category.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
# Letters and marks that show nothing: fillers, and selectors in which sentences can be hidden.
_BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xFE00, 0xFE10))}
_BLANK |= {*map(chr, range(0x180B, 0x1810)), *map(chr, range(0xE0100, 0xE01F0))}


def harmless(text: str) -> str:
    """A text with everything that cannot be seen written out, as in `\\x1b` or `\\u202e`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_written_out, text))


def _written_out(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return repr(character)[1:-1]
    return f"\\u{ord(character):04x}" if character in _BLANK else character


def line(value: object, style: str = "") -> Text:
    """A value as one line: never markup, never a terminal's command; nothing for None."""
    return Text("" if value is None else harmless(str(value)), style=style)


def cut(text: str, most: int) -> str:
    """A text's beginning, with what was left out told."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:most]} … ({left_out:,} more characters)"


def print_json(value: object) -> None:
    """Print one JSON value, indented; everything but ASCII is escaped."""
    print(json.dumps(plain(value), indent=2, allow_nan=False))


def print_json_with_rows(head: Mapping[str, Any], name: str, rows: Iterator[Any]) -> None:
    """Print a JSON object whose last item is a list, one row a line, as the rows come."""
    begun = json.dumps(plain(head), indent=2, allow_nan=False).removesuffix("\n}")
    sys.stdout.write(f"{begun},\n  {json.dumps(name)}: [")
    separator = "\n"
    for row in rows:
        sys.stdout.write(f"{separator}    {json.dumps(plain(row), allow_nan=False)}")
        separator = ",\n"
    sys.stdout.write("\n  ]\n}\n")


def plain(value: object) -> Any:
    """A value of Python or DuckDB as JSON has it; a number that is none is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return float(value) if value % 1 else int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return value
