"""Which segments share a row: best fit over the rows opened last, in the order of the plan."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def pack(
    segments: Iterable[T], length: Callable[[T], int], capacity: int, window: int
) -> Iterator[list[T]]:
    """Put segments into rows; the rows come out in the order of their first segments.

    A segment goes to the open row that it fills best, of equal ones to the oldest, else it opens
    one. Only the `window` rows opened last are open. So where segment i stands before segment j,
    j is in no row that is `window` or more before that of i: row(j) > row(i) - window. Within a
    row, segments keep their order. At most `window` rows are held at a time.

    This is bounded-space best fit (Csirik and Johnson, 1991, "Bounded space on-line bin packing:
    best is better than first").

    Args:
        segments: anything, read as far as it is needed.
        length: of a segment, from 1 to `capacity`.
        capacity: of a row, in the same unit.
        window: how many rows are open, from 1.
    """
    opened: deque[list[T]] = deque()
    closed = 0  # rows before opened[0]
    free: list[tuple[int, int]] = []  # (room left, row), of the open rows, in order
    for segment in segments:
        size = length(segment)
        place = bisect_left(free, (size, 0))
        if place < len(free):
            room, row = free.pop(place)
        else:
            if len(opened) == window:
                del free[next(i for i, (_, row) in enumerate(free) if row == closed)]
                yield opened.popleft()
                closed += 1
            room, row = capacity, closed + len(opened)
            opened.append([])
        opened[row - closed].append(segment)
        insort(free, (room - size, row))
    yield from opened
