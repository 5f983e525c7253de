"""What a run learns by: the loss of a batch, and in which order rows come.

`train.trainer` is the same for all of them. An objective says how many rows there are, which of
them a rank reads, what a batch needs beside its tokens, and what is summed over it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import md5
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import pad

from train.config import DpoSettings, Settings, SftSettings
from train.data import Export, Prepared, Share
from train.loss import (
    REWARDS,
    Measured,
    total_weight,
    weighted_nll,
    weighted_preference,
)
from train.reference import Reference
from train.run import RunFolder
from train.sampler import shard_order

# Of one split, from a row on or in an order of one's own: `train.trainer.Trainer._shares`.
Shares = Callable[..., Iterator[Share]]


class Objective(Protocol):
    """What a trainer asks.

    * `rows`: how many are read, repeats included.
    * `sums`: names of what `measure` sums beside the loss; their means are in the metrics.
    * `order_rule`: for a reader of the manifest.
    """

    rows: int
    sums: tuple[str, ...]
    order_rule: str

    def begin(
        self, accelerator: Accelerator, model: nn.Module, run: RunFolder | None, shares: Shares
    ) -> None:
        """Called by every rank before the first step, with the model as it is then.

        Args:
            run: that is gone on with; null: a new one.
        """

    def keep(self, run: RunFolder) -> dict[str, Any]:
        """Called by the main process when a run's folder is new; what its manifest says more."""

    def order(self, rank: int, world_size: int) -> NDArray[np.int64] | None:
        """The rows that a rank reads; null: those ≡ rank (mod world size)."""

    def complete(self, share: Share, split: str) -> Share:
        """Give a share's batches what `measure` needs beside tokens."""

    def size(self, share: Share) -> float:
        """What the loss is divided by: a rank's part."""

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Measured:
        """The loss of a batch on the model's device, and the sums."""


class Supervised:
    """`train.sft`: Σ(w·nll)/Σw over tokens, in the order of the plan."""

    sums: tuple[str, ...] = ()

    def __init__(self, settings: SftSettings, export: Export, prepared: Prepared) -> None:
        self.rows = prepared.count("train")
        self.order_rule = _ORDER_RULES[settings.order]
        self._settings = settings
        self._export = export
        self._prepared = prepared

    def begin(self, *_: Any) -> None:
        """Nothing."""

    def keep(self, _: RunFolder) -> dict[str, Any]:
        """Nothing."""
        return {}

    def order(self, rank: int, world_size: int) -> NDArray[np.int64] | None:
        """The plan's, or the specification's sampler's."""
        if self._settings.order == "plan":
            return None
        sources = self._export.sources("train").take(self._prepared.first_positions("train"))
        return shard_order(
            sources.to_pylist(),
            Counter(sources.to_pylist()),  # the recipe has given each source its share of rows
            self._settings.seed,
            rank,
            world_size,
        )

    def complete(self, share: Share, _: str) -> Share:
        """As it is."""
        return share

    def size(self, share: Share) -> float:
        """Σw; > 0 over all ranks, as every row has loss."""
        return total_weight(share.batches)

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Measured:
        """Σ(w·nll)."""
        return weighted_nll(model, batch)


class Preference:
    """`train.dpo`: Σ(w·loss)/Σw over pairs, with `train.loss.preference_losses`."""

    sums: tuple[str, ...] = REWARDS
    order_rule = (
        "step k (from 1) reads the places (k-1)*B to min(k*B, rows)-1, B = global_batch_size, of "
        "the epochs one after the other; rank r of w reads those with place % w == r; epoch 1 is "
        "the pairs in the export's order, epoch e in that of md5('<recipe's seed>|<e>|<pair_id>'), "
        "equal ones by pair_id"
    )

    def __init__(
        self, settings: DpoSettings, export: Export, prepared: Prepared, reference: Reference
    ) -> None:
        self.rows = prepared.count("train") * settings.epochs
        self._settings = settings
        self._seed = export.manifest["settings"]["seed"]
        self._prepared = prepared
        self._reference = reference

    def begin(
        self, accelerator: Accelerator, model: nn.Module, run: RunFolder | None, shares: Shares
    ) -> None:
        """Have the reference's log-probabilities of all pairs."""
        self._reference.load(accelerator, model, run, shares)

    def keep(self, run: RunFolder) -> dict[str, Any]:
        """The reference's log-probabilities are part of the run."""
        return {"reference": self._reference.keep(run)}

    def order(self, rank: int, world_size: int) -> NDArray[np.int64]:
        """One rank's rows, over all epochs."""
        pair_ids = self._prepared.pair_ids("train")
        return pair_order(pair_ids, self._seed, self._settings.epochs)[rank::world_size]

    def complete(self, share: Share, split: str) -> Share:
        """Batches with `reference_nll` and `pair_weight` [S], and segments with the first."""
        rows, sides, weights = (
            share.segments.column(name).to_numpy() for name in ("row", "segment", "pair_weight")
        )
        nll = self._reference.nll[split][rows, sides]
        sizes = [int(batch["segment"].max()) + 1 for batch in share.batches]
        blank = (0, sum(sizes) - len(nll))  # blank pairs come last, and weigh nothing
        nlls, weighed = (
            torch.split(pad(torch.tensor(values), blank), sizes) for values in (nll, weights)
        )
        batches = [
            batch | {"reference_nll": nlls[i], "pair_weight": weighed[i]}
            for i, batch in enumerate(share.batches)
        ]
        segments = share.segments.append_column("reference_nll", pa.array(nll))
        return replace(share, batches=batches, segments=segments)

    def size(self, share: Share) -> float:
        """Σw; > 0 over all ranks, as a pair of weight 0 is refused."""
        return float(share.segments.column("pair_weight").to_numpy()[::2].sum())

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Measured:
        """Σ(w·loss), and of the rewards the same."""
        return weighted_preference(
            model,
            batch,
            beta=self._settings.beta,
            label_smoothing=self._settings.label_smoothing,
            length_normalised=self._settings.length_normalised,
            sft_weight=self._settings.sft_weight,
        )


def pair_order(pair_ids: Sequence[str], seed: int, epochs: int) -> NDArray[np.int64]:
    """The rows of all epochs, one after the other: what `Preference.order_rule` says.

    Args:
        pair_ids: of every row, in the export's order, which is that of epoch 1.
        seed: the recipe's.
    """
    rows = np.arange(len(pair_ids))
    orders = [rows]
    for epoch in range(2, epochs + 1):
        keys = [(md5(f"{seed}|{epoch}|{each}".encode()).hexdigest(), each) for each in pair_ids]
        orders.append(np.array(sorted(rows, key=keys.__getitem__), dtype=np.int64))
    return np.concatenate(orders)


def make_objective(
    settings: Settings, export: Export, prepared: Prepared, base_model_sha256: str
) -> Objective:
    """The objective that the settings name."""
    if isinstance(settings, SftSettings):
        return Supervised(settings, export, prepared)
    return Preference(settings, export, prepared, Reference(settings, prepared, base_model_sha256))


_ORDER_RULES = {
    "plan": "step k (from 1) reads rows (k-1)*B to min(k*B, rows)-1, B = global_batch_size; rank r "
    "of w reads those with row % w == r; rows.parquet in the prepared folder has the plan "
    "positions of each",
    "shards": "in step k (from 1), rank r of w reads the places (k-1)*B/w to k*B/w-1, B = "
    "global_batch_size, of train.sampler.shard_order(sources of the rows' first segments, their "
    "counts of rows, seed, r, w)",
}
