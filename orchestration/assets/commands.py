"""The commands that a person runs, as lists of arguments, and the running of them.

Nothing here knows Dagster. Commands are found beside the Python that runs, so that it need not be
in an activated environment.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import IO, Any

from udfs.errors import ConfigError, TrajlakeError

_BIN = Path(sys.executable).parent
DBT = _BIN / "dbt"

# How long a command that is told to end may take: a training run writes a checkpoint first.
_PATIENCE_S = 120.0
_KEPT_LINES = 30

# How our commands say that they will not do it: doing it again would end the same way.
_REFUSAL = re.compile(r"error(?: \(rank \d+\))?: ")

_TRAINING_NEEDS = ("torch", "transformers", "accelerate", "peft", "bitsandbytes")


class CommandFailed(TrajlakeError):
    """A command that ended with an error. `is_refusal`: by its own decision, so that a second try
    is of no use."""

    def __init__(self, message: str, is_refusal: bool) -> None:
        super().__init__(message)
        self.is_refusal = is_refusal


def build(variables: Mapping[str, Any]) -> list[str]:
    """`dbt build`, without the program's name."""
    return ["build", *(["--vars", json.dumps(variables)] if variables else [])]


def export(recipe: str, layout: str) -> list[str]:
    """`trajlake export`."""
    return [_beside("trajlake"), "export", recipe, "--layout", layout, "--json"]


def prepare(config: str, overrides: Sequence[str]) -> list[str]:
    """`python -m train.prepare`."""
    return [sys.executable, "-m", "train.prepare", "--config", config, *_set(overrides)]


def train(
    objective: str, config: str, overrides: Sequence[str], launch: Sequence[str] = ()
) -> list[str]:
    """`accelerate launch -m train.<objective>`, which goes on where a run of this name was
    stopped."""
    command = [_beside("accelerate"), "launch", *launch, "-m", f"train.{objective}"]
    return [*command, "--config", config, *_set(overrides), "--go-on"]


def merge(run: Path) -> list[str]:
    """`python -m train.merge`."""
    return [sys.executable, "-m", "train.merge", "--run", str(run)]


def evaluate(evaluation: str, model: str, run: Path) -> list[str]:
    """`trajlake eval`.

    Args:
        evaluation: its arguments as they are typed, such as `hotpotqa --questions my.jsonl`.
        model: the model's name at its endpoint.
        run: the training run that it comes from.

    Raises:
        ConfigError: there are none, or a quotation does not end.
    """
    try:
        arguments = shlex.split(evaluation)
    except ValueError as error:
        raise ConfigError(f"evaluation {evaluation!r}: {error}. Close the quotation.") from error
    if not arguments:
        raise ConfigError("An evaluation is empty. Name a benchmark: hotpotqa --questions …")
    return [
        *(_beside("trajlake"), "eval", *arguments),
        *("--model", model, "--run", str(run), "--json"),
    ]


def budgeted(
    variables: Mapping[str, Any], declared: Mapping[str, Any], spent_usd: float, rated: int
) -> dict[str, Any]:
    """Vars for a build that is tried again: what its first tries spent is off the budget.

    Args:
        variables: the vars of the first try.
        declared: the settings of dbt_project.yml, for what the vars leave open.
        spent_usd, rated: what the tries before have cost, and the trajectories they rated.
    """
    changed = dict(variables)
    for name, gone in (("rater_max_usd", spent_usd), ("rater_max_trajectories", rated)):
        most = variables.get(name, declared.get(name.removeprefix("rater_")))
        if gone and most is not None:
            changed[name] = max(most - gone, 0)
    return changed


def check_training() -> None:
    """Raises:
    ConfigError: torch or one of its companions is not installed.
    """
    missing = [name for name in _TRAINING_NEEDS if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} are not installed, and training needs them. Run `make train "
            "TORCH=…` once, as the README says, or train on another machine (docs/launching.md)."
        )


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command in the current folder; what it says goes on to our own output.

    If this process is told to end, so is the command, with all that it started.

    Returns:
        What it wrote to standard output.

    Raises:
        CommandFailed: it ended with an error; the message has its last lines.
    """
    said: list[str] = []
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with _started(command, environment, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        complaints = Thread(target=_pass_on, args=(process.stderr, sys.stderr, [last.append]))
        complaints.start()
        _pass_on(process.stdout, sys.stdout, [said.append, last.append])
        complaints.join()
        status = process.wait()
    if status:
        raise CommandFailed(
            f"`{shlex.join(command)}` ended with status {status}:\n{''.join(last)}",
            is_refusal=any(_REFUSAL.match(line) for line in last),
        )
    return "".join(said)


@contextmanager
def served(run: Path) -> Iterator[tuple[str, str]]:
    """`python -m train.serve` within a block: the endpoint, and the model's name there.

    Raises:
        CommandFailed: there is no model, or no server is installed.
    """
    command = [sys.executable, "-m", "train.serve", str(run), "--port", "0"]
    with _started(command, None, stderr=None) as process:
        assert process.stdout
        line = process.stdout.readline()
        found = re.fullmatch(r"(\S+) serves the model (.+)\n", line)
        if found is None:
            raise CommandFailed(
                f"`{shlex.join(command)}` served nothing. Its output says why.", is_refusal=True
            )
        yield found[1], found[2]


def model_environment(endpoint: str) -> dict[str, str]:
    """The variables by which a command asks a model that we serve; it wants no key."""
    return {"OPENAI_BASE_URL": endpoint, "OPENAI_API_KEY": "none"}


@contextmanager
def _started(
    command: Sequence[str], environment: Mapping[str, str] | None, stderr: int | None
) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, which ends with the block.

    `accelerate launch` keeps a signal to itself; its group gets it all the same.
    """
    path = f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _pass_on(stream: IO[str], to: IO[str], hearers: Sequence[Any]) -> None:
    for line in stream:
        to.write(line)
        to.flush()
        for hear in hearers:
            hear(line)


def _set(overrides: Sequence[str]) -> list[str]:
    return [argument for each in overrides for argument in ("--set", each)]


def _beside(name: str) -> str:
    return str(_BIN / name)
