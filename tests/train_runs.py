"""Starting training runs, and looking into what they leave."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from udfs import lake
from udfs.training_tables import RUN_SCHEMA, RUNS

ROOT = Path(__file__).parents[1]


@contextmanager
def at_home(home: Path) -> Iterator[None]:
    """Within it, runs find exports, prepared rows and a lake in the folder, and use one thread."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        for name in ("exports", "prepared", "lake"):
            patch.setenv(f"TRAJLAKE_{name.upper()}", str(home / name))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        lake.write(RUNS, RUN_SCHEMA.empty_table().to_reader(), lake.WriteOptions())
        yield


def command_line(config: str, home: Path, run: str, *settings: str) -> list[str]:
    """The arguments of a short run in the folder; of settings of one name the last counts."""
    values = [
        f"run={run}",
        f"output={home / 'runs'}",
        f"model.path={home / 'tiny-model'}",
        "max_length=600",
        "micro_batch_size=1",
        "checkpoint_every=2",
        *settings,
    ]
    return ["--config", config, *(part for value in values for part in ("--set", value))]


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


def kill_when_steps_are_done(run: Path, steps: int, module: str, arguments: list[str]) -> None:
    """Begin a run in a process of its own, and kill that once so many steps are done."""
    process = subprocess.Popen([sys.executable, "-m", module, *arguments])
    watcher = when_steps_are_done(run, steps, process.kill)
    assert process.wait(timeout=120) == -signal.SIGKILL
    watcher.join()


def result_of(run: Path) -> dict[str, torch.Tensor]:
    manifest = manifest_of(run)
    assert manifest["status"] == "finished"
    [weights] = (run / manifest["result"]).glob("*.safetensors")
    return load_file(weights)


def have_the_same_result(run: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, bit for bit."""
    ours, theirs = result_of(run), result_of(other)
    return ours.keys() == theirs.keys() and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )


def without_time(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in metrics]
