"""What commands print: tables for people, JSON for scripts, and both safe of what they quote."""

from __future__ import annotations

import json
import math
import re
import sys
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

# Controls but for tab and line feed. Records of strangers hold them, and a terminal obeys them.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def table(title: str) -> Table:
    """An empty table that fits a terminal of 80 columns."""
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)


def text(value: object) -> Text:
    """A value as a cell or line: never markup, never a terminal's command; nothing for None."""
    shown = "" if value is None else str(value)
    return Text(_CONTROLS.sub(lambda found: repr(found.group())[1:-1], shown))


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
