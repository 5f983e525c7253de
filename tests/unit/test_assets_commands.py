"""The commands that assets run: their words, and the running of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestration.assets import commands
from orchestration.assets.commands import CommandFailed
from udfs.errors import ConfigError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_build_without_choices_has_no_vars() -> None:
    assert commands.build({}) == ["build"]
    assert commands.build({"rater": "rules"}) == ["build", "--vars", '{"rater": "rules"}']


def test_training_is_what_a_person_types() -> None:
    overrides = ["max_steps=2", "run=a b"]
    command = commands.train("sft", "my.yaml", overrides, ["--num_processes", "8"])

    assert Path(command[0]).name == "accelerate"
    assert command[1:] == [
        *("launch", "--num_processes", "8", "-m", "train.sft", "--config", "my.yaml"),
        *("--set", "max_steps=2", "--set", "run=a b", "--go-on"),
    ]


def test_an_evaluation_is_split_as_a_shell_does() -> None:
    command = commands.evaluate("hotpotqa --parameters '{a: 1}'", "m", Path("runs/x"))

    assert command[1:] == [
        *("eval", "hotpotqa", "--parameters", "{a: 1}"),
        *("--model", "m", "--run", "runs/x", "--json"),
    ]


@pytest.mark.parametrize("given", ["", "hotpotqa 'open"])
def test_an_evaluation_that_cannot_be_read_says_so(given: str) -> None:
    with pytest.raises(ConfigError):
        commands.evaluate(given, "m", Path("runs/x"))


def test_a_second_try_has_what_the_first_left_of_the_budget() -> None:
    given = {"rater": "openai", "rater_max_usd": 1.0}
    declared = {"max_usd": 9.0, "max_trajectories": 10}

    assert commands.budgeted(given, declared, spent_usd=0.25, rated=4) == {
        "rater": "openai",
        "rater_max_usd": 0.75,
        "rater_max_trajectories": 6,
    }
    assert commands.budgeted(given, {}, spent_usd=2.0, rated=0)["rater_max_usd"] == 0
    assert commands.budgeted({}, {"max_usd": None}, spent_usd=2.0, rated=3) == {}


def test_what_a_command_writes_comes_back_and_goes_on(capfd: pytest.CaptureFixture[str]) -> None:
    said = commands.run(
        python("import os, sys; print(os.environ['X']); print('note', file=sys.stderr)"),
        {"X": "1"},
    )

    assert said == "1\n"
    assert capfd.readouterr() == ("1\n", "note\n")


def test_a_command_that_breaks_may_be_tried_again() -> None:
    with pytest.raises(CommandFailed, match="ended with status 3") as failed:
        commands.run(python("import sys; print('half way'); sys.exit(3)"))

    assert not failed.value.is_refusal
    assert "half way" in str(failed.value)


@pytest.mark.parametrize("line", ["error: no export", "error (rank 1): no export"])
def test_a_command_that_refuses_is_not_tried_again(line: str) -> None:
    with pytest.raises(CommandFailed) as failed:
        commands.run(python(f"import sys; print({line!r}, file=sys.stderr); sys.exit(1)"))

    assert failed.value.is_refusal


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C interrupts, also where a shell has started us in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_command_ends_with_us_and_so_does_what_it_started(tmp_path: Path) -> None:
    """As `accelerate launch`, which has training as a process of its own."""
    told = tmp_path / "told"
    worker = (
        "import pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r})\n"
        "def end(*_):\n"
        "    told.write_text('checkpoint')\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"

    def interrupt() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        commands.run(python(launcher))

    deadline = time.monotonic() + 10
    while not told.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert told.read_text() == "checkpoint"
