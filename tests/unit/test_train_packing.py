"""Which segments share a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.packing import pack

CAPACITY = 50
lengths_of_any_kind = st.lists(st.integers(1, CAPACITY), max_size=120)


def rows_of(lengths: list[int], window: int) -> list[list[int]]:
    """Rows, as places in `lengths`."""
    return list(pack(range(len(lengths)), lambda i: lengths[i], CAPACITY, window))


def by_definition(lengths: list[int], window: int) -> list[list[int]]:
    """Best fit over the last rows, in as few words as it takes."""
    rows: list[list[int]] = []
    for i, length in enumerate(lengths):
        room = [CAPACITY - sum(lengths[j] for j in row) for row in rows]
        fitting = [r for r in range(len(rows))[-window:] if room[r] >= length]
        if fitting:
            rows[min(fitting, key=lambda r: (room[r], r))].append(i)
        else:
            rows.append([i])
    return rows


@given(lengths_of_any_kind, st.integers(1, 12))
def test_each_segment_goes_where_it_fits_best(lengths: list[int], window: int) -> None:
    assert rows_of(lengths, window) == by_definition(lengths, window)


@given(lengths_of_any_kind, st.integers(1, 12))
def test_no_segment_moves_further_than_the_window(lengths: list[int], window: int) -> None:
    rows = rows_of(lengths, window)
    row_of = {i: number for number, row in enumerate(rows) for i in row}

    assert sorted(row_of) == list(range(len(lengths)))
    assert all(row == sorted(row) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    for j in range(len(lengths)):
        latest_before = max((row_of[i] for i in range(j)), default=-1)
        assert row_of[j] > latest_before - window
        assert row_of[j] <= latest_before + 1


@pytest.mark.parametrize(("window", "least"), [(1, 0.7), (64, 0.95)])
def test_a_wider_window_wastes_less(window: int, least: float) -> None:
    lengths = np.random.default_rng(0).integers(1, CAPACITY + 1, size=2000).tolist()
    rows = rows_of(lengths, window)

    assert sum(lengths) / (len(rows) * CAPACITY) > least


def test_rows_come_as_soon_as_they_are_full_of_waiting() -> None:
    read = 0

    def segments():  # type: ignore[no-untyped-def]
        nonlocal read
        for _ in range(10_000):
            read += 1
            yield CAPACITY

    rows = pack(segments(), lambda length: length, CAPACITY, 4)
    assert next(rows) == [CAPACITY]
    assert read == 5
