"""Sources take turns so that each has its share in every window."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.curation.interleaving import interleave, interleaved


def worst_window(quotas: list[int]) -> float:
    """How far any window of any length is off any source's share, in samples."""
    order = interleaved(quotas)
    places = np.arange(len(order) + 1)
    worst = 0.0
    for number, quota in enumerate(quotas, start=1):
        had = np.concatenate([[0], np.cumsum(order == number)])
        assert had[-1] == quota
        ahead = had - places * quota / len(order)
        worst = max(worst, ahead.max() - ahead.min())
    return worst


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=40))
def test_no_window_is_off_by_two_samples(quotas: list[int]) -> None:
    assert worst_window(quotas) < 2


@pytest.mark.parametrize(
    "quotas", [[1], [7], [1] * 50 + [1000], [3] * 12 + [1200 // (i + 1) for i in range(12)]]
)
def test_small_sources_are_spread_out_and_not_heaped_up(quotas: list[int]) -> None:
    assert worst_window(quotas) < 2


def test_two_equal_sources_take_turns() -> None:
    assert interleaved([3, 3]).tolist() in ([1, 2] * 3, [2, 1, 1, 2, 2, 1])


def test_lists_are_ordered_one_by_one_and_null_stays_null() -> None:
    found = interleave(pa.array([[1, 1], None, [2]], pa.list_(pa.int64())))
    assert found.to_pylist() == [[1, 2], None, [1, 1]]
