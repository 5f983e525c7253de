"""BFCL, the Berkeley Function Calling Leaderboard, by its own program in its own environment.

`bfcl-eval` pins what Trajlake has newer, so it never shares an environment with it. Here it is
started against the served model, and what it wrote is read.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from orchestration.agent.model import Model
from orchestration.evaluate import bfcl_served
from orchestration.printing import note
from udfs.errors import ConfigError, EvaluationError

# The version whose layout of results is read here. It imports soundfile and does not ask for it.
REQUIREMENTS = ("bfcl-eval==2026.3.23", "soundfile")

_SCORE_FILE = re.compile(r"BFCL_v\d+_(.+)_score\.json")


@dataclass(frozen=True)
class CategoryScore:
    """One category: the share of its tasks that were solved, and how many there are."""

    category: str
    accuracy: float
    item_count: int


def run_bfcl(
    environment: Path,
    model: Model,
    categories: Sequence[str],
    out: Path,
    *,
    prompted: bool,
    threads: int,
) -> list[CategoryScore]:
    """Let BFCL ask the model at the endpoint, and score it.

    Args:
        environment: the virtual environment that bfcl-eval is in; made where it is missing.
        categories: as `bfcl test-categories` lists them.
        out: a new folder below it keeps what BFCL writes.
        prompted: whether functions stand in the prompt and calls in text; else both are native.
        threads: requests at a time.

    Raises:
        ConfigError: the environment is none, or it cannot be made.
        EvaluationError: BFCL failed; what it printed says why.
    """
    python = _python(environment)
    folder = (out / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{os.getpid()}").resolve()
    folder.mkdir(parents=True)
    mode = "prompt" if prompted else "calls"
    # The folder of the script stays off the path: it has modules of its own names.
    command = [str(python), "-P", str(Path(bfcl_served.__file__)), model.name, mode]
    which = ["--model", "served", "--test-category", ",".join(categories)]
    for step in (["generate", *which, "--num-threads", str(threads)], ["evaluate", *which]):
        done = subprocess.run(
            [*command, *step],
            cwd=folder,
            env=os.environ | {"BFCL_PROJECT_ROOT": str(folder)},
            stdout=sys.stderr,
        )
        if done.returncode:
            raise EvaluationError(
                f"`bfcl {step[0]}` failed (exit {done.returncode}); it says why above. What it has "
                f"done is in {folder}."
            )
    return read_scores(folder / "score")


def read_scores(folder: Path) -> list[CategoryScore]:
    """The scores that BFCL wrote, by category.

    Args:
        folder: its `score` folder.

    Raises:
        EvaluationError: there is no score, or one is not what BFCL writes.
    """
    scores = []
    for file in sorted(folder.rglob("*_score.json")):
        named = _SCORE_FILE.fullmatch(file.name)
        try:
            with file.open(encoding="utf-8") as lines:
                head = json.loads(lines.readline())
            if named:
                scores.append(
                    CategoryScore(named[1], float(head["accuracy"]), int(head["total_count"]))
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{file} does not begin with BFCL's line of accuracy and total_count "
                f"({type(error).__name__}: {error}). Evaluate with {REQUIREMENTS[0]}."
            ) from error
    if not scores:
        raise EvaluationError(
            f"BFCL left no score in {folder}. It scores only answers to tasks of the categories "
            "that were asked; see what it printed."
        )
    return scores


def _python(environment: Path) -> Path:
    """The environment's Python, with bfcl-eval; installed where there is no environment."""
    python = environment.absolute() / "bin" / "python"
    if not environment.exists():
        note(f"note: making {environment} for bfcl-eval; it brings torch, some gigabytes")
        for command in (
            [sys.executable, "-m", "venv", str(environment)],
            [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS],
        ):
            if subprocess.run(command, stdout=sys.stderr).returncode:
                raise ConfigError(
                    f"{environment} could not be made; pip says why above. Make it by hand: python "
                    f"-m venv {environment} && {python} -m pip install {' '.join(REQUIREMENTS)}"
                )
    probe = [str(python), "-c", "import bfcl_eval"]
    if not python.exists() or subprocess.run(probe, stderr=subprocess.DEVNULL).returncode:
        raise ConfigError(
            f"{environment} is no virtual environment with bfcl-eval. Give another one, or delete "
            "it: it is made anew."
        )
    return python
