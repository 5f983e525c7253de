"""The order in which sources take turns, so that each has its share everywhere and not on average.

Of N positions, a source with q of them would have p·q/N after p positions if it could be split.
`interleave` keeps every source less than one position away from that after any number of
positions, so less than two in any window. Item k (from 0) of the source may then come from
position ⌊k·N/q⌋ on and has to come before position ⌈(k+1)·N/q⌉; taking, of all items that may
come, the one that has to come first always meets these bounds (Steiner and Yeomans, "Level
Schedules for Mixed-Model, Just-in-Time Processes", Management Science 39(6), 1993).
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
import pyarrow as pa


def interleave(quotas: pa.Array) -> pa.Array:
    """For each list of quotas, whose turn it is at each position.

    Args:
        quotas: lists of whole numbers, shape (n,): positions of each source, 1 or more.

    Returns:
        Lists of int32, shape (n,): for each of the sum(quotas) positions the number of the
        source, from 1. Null for null.
    """
    orders = [None if each is None else interleaved(each) for each in quotas.to_pylist()]
    return pa.array(orders, pa.list_(pa.int32()))


def interleaved(quotas: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The order for one list of quotas; whole numbers only, so every machine gives the same."""
    total = sum(quotas)
    order = np.empty(total, np.int32)
    # Sources wait until their next item may come, then stand in the order in which they must.
    waiting: list[tuple[int, int]] = []
    ready = [(-(-total // quota), number) for number, quota in enumerate(quotas)]
    heapify(ready)
    taken = [0] * len(quotas)
    for position in range(total):
        while waiting and waiting[0][0] <= position:
            number = heappop(waiting)[1]
            heappush(ready, (-(-(taken[number] + 1) * total // quotas[number]), number))
        number = ready[0][1]
        order[position] = number + 1
        taken[number] += 1
        done, quota = taken[number], quotas[number]
        if done < quota and done * total // quota <= position + 1:
            heapreplace(ready, (-(-(done + 1) * total // quota), number))
        else:
            heappop(ready)
            if done < quota:
                heappush(waiting, (done * total // quota, number))
    return order
