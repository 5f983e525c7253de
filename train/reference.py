"""What the reference says of every pair: the log-probabilities that DPO's rewards are measured
from.

The reference is the model as it is before the first step. So its log-probabilities are computed
then, once, by the model that is about to be trained; no second model is held, whatever the method,
and no step pays for a second forward pass. They are kept twice: in the prepared folder, a few
hundred pairs a file, where a killed run goes on from and later runs on the same pairs and model
find them; and whole in the run's folder, which a resumed run reads, and nothing else.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import nn

from train.config import DpoSettings
from train.data import SIDES, Prepared, Share
from train.loss import segment_nll
from train.model import evaluation_mode
from train.run import RunFolder
from udfs.errors import TrainingError
from udfs.folders import atomic_file

# Pairs that are computed at a time.
CHUNK_PAIRS = 512
_LINE_EVERY_S = 10.0

_SPLITS = ("train", "eval")
_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("row", pa.int64()),
        *((f"{side}_nll", pa.float64()) for side in SIDES),
    ]
)


class Reference:
    """The reference's negative log-probabilities of the prepared pairs.

    After `load`, `nll` has for each split an array [rows, 2] in float64, chosen first: summed over
    the tokens that carry loss, in nats.
    """

    def __init__(self, settings: DpoSettings, prepared: Prepared, base_model_sha256: str) -> None:
        self.nll: dict[str, NDArray[np.float64]] = {}
        self._prepared = prepared
        self._micro_batch_size = settings.micro_batch_size
        # What the numbers depend on, but for rounding by the place in a batch.
        made_from = {
            "prepared_key": prepared.manifest["key"],
            "base_model_sha256": base_model_sha256,
            "method": settings.method,
            "precision": settings.precision,
            "attention": settings.model.attention,
        }
        self.key = sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
        self._folder = prepared.folder / "reference" / self.key[:16]
        self._computed = 0

    def load(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        run: RunFolder | None,
        shares: Callable[..., Iterator[Share]],
    ) -> None:
        """Read them from the run, or else from the prepared folder, and compute what is missing.

        All ranks call. Only the first one reads and writes files.

        Args:
            model: as it is before the first step; not used where there is a run.
            run: that is gone on with.
            shares: `train.data.shares` of the prepared rows, without the arguments that the
                launch decides.

        Raises:
            TrainingError: the run's own are missing or of other pairs.
        """
        for split in _SPLITS:
            known: list[Any] = [None]
            if accelerator.is_main_process:
                known = [self._of_run(run, split) if run else self._cached(split)]
            found: NDArray[np.float64] = broadcast_object_list(known)[0]
            while len(found) < self._prepared.count(split):
                found = self._go_on(accelerator, model, split, found, shares)
            self.nll[split] = found

    def keep(self, run: RunFolder) -> dict[str, Any]:
        """Write them to a new run's folder; what its manifest says of them."""
        table = pa.concat_tables(
            pa.table(
                [pa.repeat(split, len(nll)), np.arange(len(nll)), *nll.T.copy()], schema=_SCHEMA
            )
            for split, nll in self.nll.items()
        )
        run.write_reference(table)
        pairs = sum(map(len, self.nll.values()))
        return {"key": self.key, "pairs": pairs, "computed_here": self._computed}

    def _of_run(self, run: RunFolder, split: str) -> NDArray[np.float64]:
        table = run.read_reference()
        of_split = table.filter(pa.compute.field("split") == split)
        nll = np.stack([of_split[f"{side}_nll"].to_numpy() for side in SIDES], axis=1)
        if len(nll) != self._prepared.count(split):
            raise TrainingError(
                f"{run.path} has the reference of {len(nll)} {split} pairs, and there are "
                f"{self._prepared.count(split)}. Start a new run."
            )
        return nll

    def _cached(self, split: str) -> NDArray[np.float64]:
        """What is there from the first row on, without a gap."""
        parts = [np.zeros((0, 2))]
        done = 0
        while file := next(self._folder.glob(f"{split}-{done:012d}-*.npy"), None):
            parts.append(np.load(file))
            done += len(parts[-1])
        return np.concatenate(parts)

    def _go_on(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        split: str,
        done: NDArray[np.float64],
        shares: Callable[..., Iterator[Share]],
    ) -> NDArray[np.float64]:
        """Compute the next chunk, of which each rank has its part; all there is then."""
        first, total = len(done), self._prepared.count(split)
        rows = np.arange(first, min(first + CHUNK_PAIRS, total))
        rank, world_size = accelerator.process_index, accelerator.num_processes
        nll = torch.zeros((len(rows), 2), dtype=torch.float64, device=accelerator.device)
        began = time.monotonic()
        with evaluation_mode(model):
            for share in shares(
                split,
                0,
                order=rows[rank::world_size],
                rows_in_order=len(rows),
                global_batch_size=world_size * self._micro_batch_size,
            ):
                measured = [
                    segment_nll(model, {name: each.to(nll.device) for name, each in batch.items()})
                    for batch in share.batches
                ]
                of_rows = torch.from_numpy(share.segments.column("row").to_numpy()[::2] - first)
                found = torch.cat([each for each, _ in measured]).view(-1, 2)
                nll[of_rows.to(nll.device)] = found[: len(of_rows)]
        new = accelerator.reduce(nll, "sum").cpu().numpy()  # the others' are zeros
        self._computed += len(new)
        if accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = self._folder / f"{split}-{first:012d}-{first + len(new):012d}.npy"
            with atomic_file(file) as staging, staging.open("wb") as stream:
                np.save(stream, new)
            rate = len(new) / (time.monotonic() - began)
            print(
                f"reference: {first + len(new):,} of {total:,} {split} pairs, {rate:,.1f}/s",
                flush=True,
            )
        return np.concatenate([done, new])
