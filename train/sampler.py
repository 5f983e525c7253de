"""The order of the specification (US 2025/0259054): a shard a rank, shuffled by the rank's seed.

The trainer's own order is the plan's (`train.data`); `order: shards` takes this one. Every source
is divided among the ranks; `init_device_seed` gives each rank a seed of its own, by which it
shuffles its part of every source and draws the sources by `sample_probs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def shard_order(
    sources: Sequence[str],
    sample_probs: Mapping[str, float],
    seed: int,
    rank: int,
    world_size: int,
) -> NDArray[np.int64]:
    """The rows that one rank reads, in order: together the ranks read every row once.

    Args:
        sources: of every row, by its number.
        sample_probs: how likely a source is drawn next, > 0, up to a common factor. One that has
            no rows left is drawn no more, and the others share its part.

    The ranks' rows differ in number by at most one, in all and of every source.
    """
    names, codes = np.unique(np.asarray(sources, dtype=object), return_inverse=True)
    order = np.argsort(codes, kind="stable")[rank::world_size]
    drawn = np.random.default_rng(seed + rank)  # init_device_seed
    # Events of independent Poisson processes, in the order of time, come from each process with
    # the probability that its rate has in the sum: so rates are the probabilities.
    times = np.empty(len(order))
    for code, name in enumerate(names):
        of_source = np.flatnonzero(codes[order] == code)
        order[of_source] = drawn.permutation(order[of_source])
        waits = drawn.exponential(1 / sample_probs[name], len(of_source))
        times[of_source] = waits.cumsum()
    return order[np.argsort(times)]
