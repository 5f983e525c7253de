"""Starting training runs, and looking into what they leave."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from udfs import lake


def places(home: Path) -> dict[str, str]:
    """The environment in which runs find what is in the folder."""
    folders = {f"TRAJLAKE_{n.upper()}": str(home / n) for n in ("exports", "prepared", "lake")}
    return folders | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}


def launch(
    launcher: list[str], arguments: list[str], module: Sequence[str] = ("-m", "train.sft")
) -> subprocess.CompletedProcess[str]:
    tools = Path(sys.executable).parent
    return subprocess.run(
        [str(tools / launcher[0]), *launcher[1:], *module, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
    )


def manifest_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "manifest.json").read_text())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def optimizer_state(run: Path) -> dict[int, dict[str, torch.Tensor]]:
    [checkpoint] = (run / "checkpoints").iterdir()
    return torch.load(checkpoint / "state.pt")["optimizer"]["state"]


def lineage_of(run: Path) -> list[dict[str, Any]]:
    """What the lake has of a run, in order."""
    with lake.connect() as connection:
        found = connection.execute(
            "select * from training_lineage where run_id = ? order by step, row, segment",
            [manifest_of(run)["run_id"]],
        )
        rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
        return rows


def evals_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "evals.jsonl").read_text().splitlines()]


def when_steps_are_done(run: Path, steps: int, act: Callable[[], None]) -> threading.Thread:
    """Call `act` once the run has written that many lines of metrics."""

    def watch() -> None:
        metrics = run / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if metrics.exists() and metrics.read_text().count("\n") >= steps:
                act()
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def result_of(run: Path) -> dict[str, torch.Tensor]:
    manifest = manifest_of(run)
    assert manifest["status"] == "finished"
    [weights] = (run / manifest["result"]).glob("*.safetensors")
    return load_file(weights)


def without_time(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]
