"""A run's folder: what was trained, from what, in which order, and how it went.

    runs/<run>/
    ├── config.yaml      the settings, overrides included; `--resume` starts from them
    ├── manifest.json    what the run was made from and what it saw
    ├── metrics.jsonl    one line per optimiser step
    ├── evals.jsonl      one line per evaluation
    ├── reference.parquet  what the reference says of every pair, of runs on pairs
    ├── lineage/         step-<first>-<last>.parquet: which samples each step saw, and their loss
    ├── tracking/        what trackers keep here, if there are any
    ├── checkpoints/     step-<k>/: the newest, and the best if a run may stop early
    └── adapter/         the result (`model/` for the method `full`), tokenizer included

Every file and folder here appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from train.config import RunSettings
from udfs.errors import TrainingError
from udfs.folders import atomic_file, atomic_folder


class RunFolder:
    """Reads and writes `runs/<run>`. One process of the run writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self._metrics = path / "metrics.jsonl"
        self._evals = path / "evals.jsonl"
        self._checkpoints = path / "checkpoints"
        self._lineage = path / "lineage"
        self._reference = path / "reference.parquet"

    def check_new(self) -> None:
        """Nothing is here yet.

        Raises:
            TrainingError: there is a run of this name.
        """
        if self.path.exists():
            raise TrainingError(
                f"{self.path} exists. Go on with that run by --resume {self.path}, or give `run` "
                "another name."
            )

    def create(self, settings: RunSettings) -> None:
        """Make the folder of a new run."""
        self.path.mkdir(parents=True)
        content = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
        self._write(self.config, content)

    def has_checkpoint(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any(self._checkpoints.glob("step-*"))

    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        try:
            return bool(self.read_manifest()["status"] == "finished")
        except TrainingError:
            return False

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)

    def read_manifest(self) -> dict[str, Any]:
        """The manifest as it was last written.

        Raises:
            TrainingError: there is none.
        """
        try:
            content: dict[str, Any] = json.loads((self.path / "manifest.json").read_bytes())
        except FileNotFoundError:
            raise TrainingError(f"there is no run at {self.path} (no manifest.json)") from None
        return content

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Replace the manifest."""
        self._write(
            self.path / "manifest.json", json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        )

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add one step's line."""
        self._append(self._metrics, line)

    def write_lineage(self, first: int, last: int, seen: pa.Table) -> None:
        """Add what the steps `first` to `last` saw (`train.lineage.SEGMENT_SCHEMA`)."""
        self._lineage.mkdir(exist_ok=True)
        with atomic_file(self._lineage / f"step-{first:08d}-{last:08d}.parquet") as staging:
            pq.write_table(seen, staging, compression="zstd")

    def write_reference(self, pairs: pa.Table) -> None:
        """Keep what `train.reference` found, for when the run goes on."""
        with atomic_file(self._reference) as staging:
            pq.write_table(pairs, staging, compression="zstd")

    def read_reference(self) -> pa.Table:
        """What `write_reference` was given.

        Raises:
            TrainingError: there is none.
        """
        try:
            return pq.read_table(self._reference)
        except FileNotFoundError:
            raise TrainingError(
                f"{self._reference} is missing, from which the run's rewards are measured. Restore "
                "it, or start a new run."
            ) from None

    def lineage(self) -> list[tuple[int, int, Path]]:
        """Its files in order, each with its first and last step."""
        files = sorted(self._lineage.glob("step-*.parquet"))
        return [(*map(int, file.stem.split("-")[1:]), file) for file in files]  # type: ignore[misc]

    def append_eval(self, line: dict[str, Any]) -> None:
        """Add one evaluation's line."""
        self._append(self._evals, line)

    def forget_after(self, step: int) -> None:
        """Drop what is known of steps that a resumed run takes again."""
        for _, last, file in self.lineage():
            if last > step:
                file.unlink()
        for file in filter(Path.exists, (self._metrics, self._evals)):
            lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
            # A killed run may have left half a line, but only of a step after its checkpoint.
            kept = [
                line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step
            ]
            self._write(file, "".join(kept))

    def save_checkpoint(
        self,
        step: int,
        model: Any,
        weights: dict[str, Any],
        state: dict[str, Any],
        keep: int | None = None,
    ) -> None:
        """Write a checkpoint, then remove the older ones but that of step `keep`."""
        target = self.checkpoint(step)
        with atomic_folder(target) as staging:
            save_model(model, weights, staging)
            torch.save(state, staging / "state.pt")
        kept = {target} if keep is None else {target, self.checkpoint(keep)}
        for other in self._checkpoints.iterdir():
            if other not in kept:
                shutil.rmtree(other)

    def checkpoint(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self._checkpoints / f"step-{step:08d}"

    def newest_checkpoint(self) -> Path:
        """The folder of the newest complete checkpoint.

        Raises:
            TrainingError: the run was cut off before its first.
        """
        found = sorted(self._checkpoints.glob("step-*"))
        if not found:
            raise TrainingError(f"{self.path} has no checkpoint to go on from: start the run again")
        return found[-1]

    @staticmethod
    def _append(file: Path, line: dict[str, Any]) -> None:
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    @staticmethod
    def _write(file: Path, content: str) -> None:
        with atomic_file(file) as staging:
            staging.write_text(content, encoding="utf-8")


def load_state(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given as `state`."""
    state: dict[str, Any] = torch.load(
        checkpoint / "state.pt",
        map_location="cpu",
        mmap=True,  # the ranks of a machine share its memory
    )
    return state


def copy_model(checkpoint: Path, folder: Path) -> None:
    """Put what `save_checkpoint` was given as `model` into `folder`."""
    shutil.copytree(
        checkpoint, folder, ignore=shutil.ignore_patterns("state.pt"), dirs_exist_ok=True
    )


def save_model(model: Any, weights: dict[str, Any], folder: Path) -> None:
    """Write a model, or its adapter, in the form that `from_pretrained` reads.

    Args:
        model: not wrapped.
        weights: its trained ones, by name; those of the model itself may be shards.
    """
    # peft would otherwise ask the hub whether the base model's vocabulary was extended.
    options = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
    model.save_pretrained(folder, state_dict=weights, **options)
