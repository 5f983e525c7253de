"""What commands print of values."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest

from orchestration.printing import line, plain, print_json_rows, text


@pytest.mark.parametrize(
    ("value", "as_json"),
    [
        (None, None),
        (True, True),
        (10**20, 10**20),
        (float("nan"), None),
        (Decimal("12"), 12),
        (Decimal("1.5"), 1.5),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (date(2026, 1, 2), "2026-01-02"),
        (timedelta(seconds=90), 90.0),
        (b"\x00\xff", "00ff"),
        ({"a": [{"b": float("inf")}]}, {"a": [{"b": None}]}),
    ],
)
def test_values_as_json_has_them(value: object, as_json: object) -> None:
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == as_json


@pytest.mark.parametrize("rows", [[], [{"a": 1}], [{"a": 1}, {"a": "\n\x1b"}]])
def test_rows_are_one_array_with_a_row_a_line(
    rows: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    print_json_rows(rows)
    printed = capsys.readouterr().out
    assert json.loads(printed) == rows
    assert printed.count("\n") == (len(rows) + 2 if rows else 1)


def test_text_is_neither_markup_nor_a_terminals_command() -> None:
    assert text("[red]x[/] \x1b[2J\x9b1m\ttab").plain == r"[red]x[/] \x1b[2J\x9b1m" + "\ttab"
    assert text("a\u202eb\u200d\U000e0041\ufe0f").plain == r"a\u202eb\u200d\U000e0041\ufe0f"
    assert text("é 你 😀").plain == "é 你 😀"
    assert text("a\nb").plain == "a\nb" and line("a\nb").plain == r"a\nb"
    assert text(None).plain == line(None).plain == ""
