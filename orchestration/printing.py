"""What commands print: tables for people, JSON for scripts, and both safe of what they quote."""

from __future__ import annotations

import json
import math
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for a script, and nothing else.")]

# Records of strangers hold what a terminal obeys, or does not show: controls, formats (of no width,
# changes of direction, tags), surrogates, private and unassigned characters, separators of lines
# and paragraphs, by Unicode's General_Category; and letters and selectors that show nothing.
_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
_BLANK = {*"\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0", *map(chr, range(0xFE00, 0xFE10))}
_BLANK |= {*map(chr, range(0x180B, 0x1810)), *map(chr, range(0xE0100, 0xE01F0))}


def table(title: str) -> Table:
    """An empty table that fits a terminal of 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)


def text(value: object) -> Text:
    """A value as a cell or lines: never markup, never a terminal's command; nothing for None."""
    return Text("" if value is None else harmless(str(value), keep="\t\n"))


def line(value: object, style: str = "") -> Text:
    """The same as one line: its breaks are written out, too."""
    return Text("" if value is None else harmless(str(value)), style=style)


def harmless(text: str, keep: str = "") -> str:
    """A text with everything that cannot be seen written out, as in `\\x1b` or `\\u202e`.

    Args:
        text: any text.
        keep: characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(each if each in keep else _written_out(each) for each in text)


def _written_out(character: str) -> str:
    if unicodedata.category(character) in _UNSEEN:
        return repr(character)[1:-1]
    return f"\\u{ord(character):04x}" if character in _BLANK else character


def cut(text: str, most: int) -> str:
    """A text's beginning, with what was left out told."""
    left_out = len(text) - most
    return text if left_out <= 0 else f"{text[:most]} … ({left_out:,} more characters)"


def note(line: str) -> None:
    """Say something beside the result: on standard error, so that a script's input stays clean."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(text(line))


def print_json(value: object) -> None:
    """Print one JSON value, indented."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def print_json_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print a JSON array, one row a line, as the rows come."""
    before = "[\n"
    for row in rows:
        sys.stdout.write(f"{before}{json.dumps(plain(row), ensure_ascii=False, allow_nan=False)}")
        before = ",\n"
    sys.stdout.write("[]\n" if before == "[\n" else "\n]\n")


def print_json_with_rows(head: Mapping[str, Any], name: str, rows: Iterable[Any]) -> None:
    """Print a JSON object whose last item is an array, one row a line, as the rows come."""
    begun = json.dumps(plain(head), indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write(f"{begun.removesuffix(chr(10) + '}')},\n  {json.dumps(name)}: [")
    separator = "\n"
    for row in rows:
        as_json = json.dumps(plain(row), ensure_ascii=False, allow_nan=False)
        sys.stdout.write(f"{separator}    {as_json}")
        separator = ",\n"
    sys.stdout.write("\n  ]\n}\n")


def plain(value: object) -> Any:
    """A value of Python or DuckDB as JSON has it.

    Times are ISO 8601, decimals numbers, bytes hexadecimal digits; a number that is none
    (NaN, infinity) is null, because JSON has no word for it.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return plain(float(value)) if value % 1 else int(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    return str(value)


def size_text(size: int) -> str:
    """A number of bytes for a reader."""
    amount = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"
