"""Benchmarks: reading their items, and finding them in trajectories.

A benchmark is a folder, or a file, below the benchmarks folder. `declared` has what
`models/bronze/benchmarks.yml` says of some, `items` reads their texts into `benchmark_items`,
`words` says when two texts count as the same, `overlap` finds the texts in trajectories.
"""

from udfs.benchmarks.declared import declared_benchmarks
from udfs.benchmarks.items import ITEMS, read_benchmarks

__all__ = ["ITEMS", "declared_benchmarks", "read_benchmarks"]
