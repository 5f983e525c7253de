"""`train.sft` under DeepSpeed's ZeRO, in two processes on CPU, beside data parallelism."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("bitsandbytes", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")
pytest.importorskip("deepspeed", reason="the extra deepspeed is not installed")

import torch
from train_export import react_sample, tool_sample, write_export
from train_runs import (
    at_home,
    command_line,
    have_the_same_result,
    launch,
    manifest_of,
    metrics_of,
    optimizer_state,
    result_of,
    when_steps_are_done,
)
from transformers import AutoModelForCausalLM

from train import sft

PLAIN = ["torchrun", "--standalone", "--nproc_per_node", "2", "-m", "train.sft"]
LAUNCH = ["accelerate", "launch", "--num_processes", "2"]
SCRIPT = ["tests/deepspeed_on_cpu.py", "train.sft"]
STEPS = 4


def zero(stage: int) -> list[str]:
    config = ["--config_file", "train/accelerate/zero2.yaml", "--zero_stage", str(stage)]
    return [*LAUNCH, *config, *SCRIPT]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an export of 24 rows."""
    home = tmp_path_factory.mktemp("home")
    samples = [(react_sample if i % 2 else tool_sample)(i, weight=1 + i % 3) for i in range(24)]
    write_export(home / "exports" / "default", samples, [react_sample(i) for i in range(900, 903)])
    with at_home(home):
        yield home


def settings(home: Path, run: str, method: str) -> list[str]:
    """The command line of a short run, with two micro-batches a step in each of two processes."""
    sizes = (f"max_steps={STEPS}", "global_batch_size=4")
    return command_line("train/configs/tiny.yaml", home, run, f"method={method}", *sizes)


def run_to_its_end(launcher: list[str], arguments: list[str]) -> None:
    done = launch(launcher, arguments, module=[])
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def runs(home: Path) -> dict[str, Path]:
    """Uninterrupted runs in two processes, by name."""
    for method in ("qlora", "full"):
        run_to_its_end(PLAIN, settings(home, f"plain-{method}", method))
    for stage, method in ((2, "qlora"), (3, "full")):
        run_to_its_end(zero(stage), settings(home, f"zero{stage}", method))
    return {run.name: run for run in (home / "runs").iterdir()}


def is_close(one: Path, other: Path) -> None:
    """The same numbers but for the order in which they were added."""
    for name in ("loss", "gradient_norm"):
        assert [m[name] for m in metrics_of(one)] == pytest.approx(
            [m[name] for m in metrics_of(other)], rel=1e-4
        )
    expected = result_of(other)
    found = result_of(one)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize(("run", "plain"), [("zero2", "plain-qlora"), ("zero3", "plain-full")])
def test_zero_trains_as_data_parallelism_does(runs: dict[str, Path], run: str, plain: str) -> None:
    ours, theirs = runs[run], runs[plain]

    assert manifest_of(ours)["sessions"][0]["distributed"] == "DEEPSPEED"
    is_close(ours, theirs)
    assert manifest_of(ours)["eval"]["loss"] == pytest.approx(
        manifest_of(theirs)["eval"]["loss"], rel=1e-4
    )
    state, expected = optimizer_state(ours), optimizer_state(theirs)
    assert state.keys() == expected.keys()
    for name, moments in state.items():
        assert moments["step"] == STEPS
        torch.testing.assert_close(
            moments["exp_avg"], expected[name]["exp_avg"], rtol=1e-2, atol=1e-4
        )


def test_what_was_cut_in_parts_is_a_whole_model(runs: dict[str, Path]) -> None:
    AutoModelForCausalLM.from_pretrained(runs["zero3"] / "model")


@pytest.fixture(scope="module", params=[(2, "qlora"), (3, "full")], ids=["zero2", "zero3"])
def stopped(home: Path, runs: dict[str, Path], request: pytest.FixtureRequest) -> tuple[int, Path]:
    """ZeRO's stage, and a run that a signal stopped after a step."""
    stage, method = request.param
    run = home / "runs" / f"stopped{stage}"
    launcher = zero(stage)
    program = Path(sys.executable).parent / launcher[0]
    process = subprocess.Popen([program, *launcher[1:], *settings(home, run.name, method)])
    watcher = when_steps_are_done(run, 1, process.terminate)
    process.wait(timeout=180)
    watcher.join()
    assert manifest_of(run)["status"] == "stopped"
    return stage, run


def test_a_run_goes_on_bit_by_bit(stopped: tuple[int, Path], runs: dict[str, Path]) -> None:
    stage, before = stopped
    run = shutil.copytree(before, before.with_name(f"again{stage}"))

    run_to_its_end(zero(stage), ["--resume", str(run)])

    assert have_the_same_result(run, runs[f"zero{stage}"])


def test_a_run_goes_on_in_one_process(stopped: tuple[int, Path], runs: dict[str, Path]) -> None:
    stage, before = stopped
    run = shutil.copytree(before, before.with_name(f"alone{stage}"))

    assert sft.main(["--resume", str(run)]) == 0

    assert [s["distributed"] for s in manifest_of(run)["sessions"]] == ["DEEPSPEED", "NO"]
    is_close(run, runs[f"zero{stage}"])
