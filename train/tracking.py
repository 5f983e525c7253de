"""Metrics to experiment trackers, through accelerate: TensorBoard, MLflow, Weights & Biases.

What they get is what `metrics.jsonl` and `evals.jsonl` hold, and the settings, which have no
secrets: credentials and addresses are the trackers' own environment variables (`WANDB_…`,
`MLFLOW_…`). What they keep on this machine lies in the run's folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration

from train.config import RunSettings
from udfs.errors import TrainingError

_PROJECT = "trajlake"


def check_trackers(names: Sequence[str]) -> None:
    """The libraries of these trackers are installed.

    Raises:
        TrainingError: some are not.
    """
    available = {str(tracker) for tracker in get_available_trackers()}
    missing = [name for name in names if name not in available]
    if missing:
        raise TrainingError(
            f"trackers: {', '.join(missing)} cannot be imported. Install it (`pip install "
            f"{' '.join(missing)}`), or leave it out of `trackers`."
        )


def start_trackers(
    accelerator: Accelerator, settings: RunSettings, run: Path, first_step: int
) -> None:
    """Begin or go on with a run of this name, and give the settings.

    Args:
        accelerator: made with `log_with=settings.trackers`.
        run: the run's folder.
        first_step: what a run that was killed had reported from this step on is taken back, where
            the tracker can do that (TensorBoard).
    """
    folder = run / "tracking"
    accelerator.project_configuration = ProjectConfiguration(
        project_dir=str(run), logging_dir=str(folder)
    )
    if accelerator.is_main_process and settings.trackers:
        folder.mkdir(exist_ok=True)
    if "mlflow" in settings.trackers:  # it would write to the working directory
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve()}/mlflow.db")
    accelerator.init_trackers(
        _PROJECT,
        config=dict(_flat(settings.model_dump(mode="json"))),
        init_kwargs={
            "tensorboard": {"purge_step": first_step},
            "mlflow": {"run_name": run.name, "logging_dir": str(folder.resolve())},
            "wandb": {"name": run.name, "dir": str(folder)},
        },
    )


def track(accelerator: Accelerator, group: str, line: Mapping[str, Any]) -> None:
    """Report a line of metrics, as `<group>/<name>` at its step."""
    values = {f"{group}/{name}": value for name, value in line.items() if name != "step"}
    accelerator.log(values, step=line["step"])


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by dotted names, values as trackers take them: numbers and texts."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            is_plain = isinstance(value, bool | int | float | str)
            yield f"{prefix}{name}", value if is_plain else str(value)
