"""The specification's order: shards of ranks, shuffled by their seeds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from train.sampler import shard_order

SOURCES = ["large"] * 700 + ["middle"] * 250 + ["small"] * 51
PROBS = {"large": 0.7, "middle": 0.25, "small": 0.05}


def orders(world_size: int, seed: int = 7, sources: list[str] = SOURCES) -> list[list[int]]:
    return [
        shard_order(sources, PROBS, seed, rank, world_size).tolist() for rank in range(world_size)
    ]


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_read_every_row_once_and_share_every_source(world_size: int) -> None:
    ranks = orders(world_size)

    assert sorted(row for rank in ranks for row in rank) == list(range(len(SOURCES)))
    for source in ("large", "middle", "small"):
        counts = [sum(SOURCES[row] == source for row in rank) for rank in ranks]
        assert max(counts) - min(counts) <= 1
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_every_rank_has_a_seed_of_its_own() -> None:
    sources = ["large", "middle"] * 400
    first, second = orders(2, sources=sources)

    assert [sources[row] for row in first] != [sources[row] for row in second]
    # Shuffled alike, both would read their n-th rows at the same time.
    assert [row // 4 for row in first] != [row // 4 for row in second]


def test_the_order_follows_from_the_seed() -> None:
    assert orders(2) == orders(2)
    assert orders(2)[0] != orders(2, seed=8)[0]


def test_sources_are_drawn_by_their_probabilities() -> None:
    sources = ["large"] * 3000 + ["middle"] * 3000 + ["small"] * 3000
    beginning = shard_order(sources, PROBS, 0, 0, 1)[:3000]
    counts = Counter(sources[row] for row in beginning)

    for source, share in PROBS.items():
        assert counts[source] / 3000 == pytest.approx(share, abs=0.03)


def test_a_source_without_rows_leaves_its_part_to_the_others() -> None:
    sources = ["large"] * 10 + ["middle"] * 3000 + ["small"] * 3000
    later = np.array(sources)[shard_order(sources, PROBS, 0, 0, 1)[100:1600]]

    assert (later == "middle").mean() == pytest.approx(0.25 / 0.3, abs=0.04)
