"""`train.sft` as it is launched: on CPU, in one process and in two, stopped and resumed.

The launches run in processes of their own, as a user starts them. What needs no launcher runs in
this process, through the same command line.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("bitsandbytes", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import duckdb
import torch
from peft import AutoPeftModelForCausalLM
from train_export import react_sample, tool_sample, write_export
from train_runs import (
    ROOT,
    at_home,
    command_line,
    evals_of,
    have_the_same_result,
    kill_when_steps_are_done,
    launch,
    lineage_of,
    manifest_of,
    metrics_of,
    optimizer_state,
    result_of,
    when_steps_are_done,
    without_time,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from train import lineage, sft
from udfs import lake

CONFIG = "train/configs/tiny.yaml"
STEPS = 6


def too_long(number: int) -> dict[str, Any]:
    sample = react_sample(number)
    sample["messages"][0]["content"] = "word " * 1000
    return sample


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an export of 46 rows. Two of its samples cannot be trained on."""
    home = tmp_path_factory.mktemp("home")
    samples = [(react_sample if i % 2 else tool_sample)(i, weight=1 + i % 3) for i in range(48)]
    samples[4] = too_long(4)
    samples[17] = react_sample(17) | {"loss_flags": [False] * 4}
    write_export(home / "exports" / "default", samples, [react_sample(i) for i in range(900, 905)])
    with at_home(home):
        yield home


def settings(home: Path, run: str, *more: str) -> list[str]:
    """The command line of a short run. In its last step two micro-batches are blank."""
    return command_line(CONFIG, home, run, f"max_steps={STEPS}", *more)


@pytest.fixture(scope="module")
def launched(home: Path) -> Path:
    """The folder of a run that `accelerate launch` started and that finished."""
    done = launch(["accelerate", "launch", "--cpu"], settings(home, "launched"))
    assert done.returncode == 0, done.stderr
    assert f"step {STEPS}/{STEPS}  loss" in done.stdout
    assert "refused (listed in" in done.stdout
    assert "finished: " in done.stdout
    return home / "runs" / "launched"


# --- one launch -------------------------------------------------------------------------------


def test_the_model_learns_from_the_export(launched: Path) -> None:
    losses = [line["loss"] for line in metrics_of(launched)]

    assert len(losses) == STEPS
    assert losses[-1] < losses[0] - 2
    assert manifest_of(launched)["eval"]["loss"] < losses[0] - 2


def test_the_adapter_can_be_used_with_its_tokenizer(launched: Path) -> None:
    model = AutoPeftModelForCausalLM.from_pretrained(launched / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(launched / "adapter")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Which is larger, 3 or 4?"}],
        add_generation_prompt=True,
        return_tensors="pt",
    )

    assert model.generate(**prompt, max_new_tokens=3).shape[1] > prompt["input_ids"].shape[1]


def test_the_manifest_says_what_the_run_was_made_from(home: Path, launched: Path) -> None:
    manifest = manifest_of(launched)

    assert manifest["status"] == "finished"
    assert manifest["settings"]["max_steps"] == STEPS
    assert manifest["export"]["manifest"]["recipe"] == "default"
    prepared = Path(manifest["prepared"]["folder"])
    assert prepared.name == f"default-{manifest['identity']['prepared_key'][:16]}"
    assert manifest["prepared"]["splits"]["train"]["rows"] == 46
    assert manifest["model"]["four_bit_parameters"] > 0
    assert manifest["model"]["trained_parameters"] > 0
    assert manifest["sessions"][0]["world_size"] == 1
    assert manifest["sessions"][0]["versions"]["torch"] == torch.__version__
    assert {row["trajectory_id"]: row["reason"] for row in manifest["refused"]} == {
        "react-4": "too_long",
        "react-17": "nothing_to_learn",
    }


def test_the_metrics_say_which_samples_a_step_saw(launched: Path) -> None:
    manifest, metrics = manifest_of(launched), metrics_of(launched)

    assert [(m["step"], m["first_row"], m["next_row"]) for m in metrics] == [
        (k, (k - 1) * 8, min(k * 8, 46)) for k in range(1, STEPS + 1)
    ]
    assert manifest["next_row"] == 46
    for name in ("rows", "segments", "tokens", "trained_tokens"):
        assert manifest["totals"][name] == sum(m[name] for m in metrics)
    assert all(0 < m["trained_tokens"] < m["tokens"] for m in metrics)


def test_the_documented_query_lists_the_samples_of_a_step(home: Path, launched: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text()
    query = page.split('trajlake sql "')[1].split('"')[0]
    query = query.replace("runs/first", str(launched)).replace("exports/", f"{home}/exports/")
    query = query.replace("prepared/", f"{home}/prepared/")

    # Position 4 was refused, so the rows after it are one less.
    assert duckdb.sql(query).fetchall() == [
        (2, row, row + 1, "test", f"{'tool' if row % 2 else 'react'}-{row + 1}", 0)
        for row in range(8, 16)
    ]


def test_the_lake_says_what_each_step_saw_and_how_hard_it_was(home: Path, launched: Path) -> None:
    seen, metrics = lineage_of(launched), metrics_of(launched)

    assert [(s["step"], s["row"]) for s in seen] == [(1 + r // 8, r) for r in range(46)]
    assert {s["rank"] for s in seen} == {0}
    # Positions 4 and 17 were refused.
    assert [s["position"] for s in seen] == [p for p in range(48) if p not in (4, 17)]
    assert seen[1]["trajectory_id"] == "react-1"
    for line in metrics:
        of_step = [s for s in seen if s["step"] == line["step"]]
        assert sum(s["trained_tokens"] for s in of_step) == line["trained_tokens"]
        loss = sum(s["nll"] for s in of_step) / sum(s["weight"] for s in of_step)
        assert loss == pytest.approx(line["loss"], rel=1e-5)
    assert all(s["weight"] == s["trained_tokens"] * (1 + s["position"] % 3) for s in seen)

    with lake.connect() as connection:
        [run] = connection.execute(
            "select status, step, recipe, trained_tokens from training_runs where run_id = ?",
            [manifest_of(launched)["run_id"]],
        ).fetchall()
    assert run == ("finished", STEPS, "default", sum(m["trained_tokens"] for m in metrics))


def test_a_run_is_told_to_a_lake_once(
    launched: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = lineage_of(launched)
    assert lineage.main([str(launched)]) == 0
    assert lineage_of(launched) == seen

    monkeypatch.setenv("TRAJLAKE_LAKE", str(launched.parent / "none"))
    assert lineage.main([str(launched)]) == 1
    assert "there is no lake at" in capfd.readouterr().err


def test_packed_rows_train_too(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = home / "runs" / "packed"
    packed = ["packing=window", "too_long=split", "global_batch_size=2", "max_steps=3"]
    assert sft.main(settings(home, run.name, *packed)) == 0
    manifest, metrics = manifest_of(run), metrics_of(run)

    assert manifest["prepared"]["splits"]["train"]["efficiency"] > 0.8
    assert all(m["segments"] > 2 * m["rows"] for m in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    seen = lineage_of(run)
    assert len(seen) == manifest["totals"]["segments"]
    for line in metrics:
        of_step = [s for s in seen if s["step"] == line["step"]]
        loss = sum(s["nll"] for s in of_step) / sum(s["weight"] for s in of_step)
        assert loss == pytest.approx(line["loss"], rel=1e-5)


# --- evaluated on the way ---------------------------------------------------------------------


# A learning rate so high that the eval loss soon rises.
EARLY = [
    "method=full",
    "learning_rate=0.2",
    "schedule=constant_with_warmup",
    "warmup_steps=0",
    "eval_every=1",
]


def test_evaluating_does_not_change_what_is_learned(home: Path, launched: Path) -> None:
    run = home / "runs" / "evaluated"
    assert sft.main(settings(home, run.name, "eval_every=2")) == 0
    evals, manifest = evals_of(run), manifest_of(run)

    assert [line["step"] for line in evals] == [2, 4, 6]
    assert manifest["eval"] == evals[-1]
    assert manifest["best_eval"] == min(evals, key=lambda line: line["loss"])
    assert manifest["stopped_early"] is False
    assert [m["loss"] for m in metrics_of(run)] == [m["loss"] for m in metrics_of(launched)]
    assert have_the_same_result(run, launched)


def test_a_run_without_gain_stops_early_with_its_best(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, short = home / "runs" / "early", home / "runs" / "until-best"
    more = [*EARLY, "stop_after_evals_without_gain=2"]
    assert sft.main(settings(home, run.name, *more)) == 0
    evals, manifest = evals_of(run), manifest_of(run)
    losses = [line["loss"] for line in evals]
    best = losses.index(min(losses)) + 1

    assert manifest["stopped_early"] is True
    assert manifest["step"] == len(evals) == len(metrics_of(run)) == best + 2 < STEPS
    assert manifest["eval"] == manifest["best_eval"] == evals[best - 1]
    assert f"2 evaluations without gain since step {best}" in capfd.readouterr().out
    assert sft.main(settings(home, short.name, *EARLY, f"max_steps={best}")) == 0
    assert have_the_same_result(run, short)

    # The same, stopped by a signal on the way.
    stopped = home / "runs" / "early-stopped"
    when_steps_are_done(stopped, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sft.main(settings(home, stopped.name, *more)) == 0
    assert manifest_of(stopped)["status"] == "stopped"
    assert sft.main(["--resume", str(stopped)]) == 0
    assert without_time(evals_of(stopped)) == without_time(evals)
    assert manifest_of(stopped)["stopped_early"] is True
    assert have_the_same_result(stopped, run)


def test_a_run_that_is_to_evaluate_needs_rows_for_it(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write_export(home / "no-eval" / "default", [react_sample(i) for i in range(3)])
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(home / "no-eval"))

    assert sft.main(settings(home, "no-eval", "eval_every=1")) == 1
    assert "has no rows to evaluate on" in capfd.readouterr().err


# --- trackers ---------------------------------------------------------------------------------


def test_tensorboard_gets_what_the_files_of_the_run_say(home: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = home / "runs" / "tracked"
    more = ["trackers=[tensorboard]", "max_steps=4", "eval_every=2"]
    assert sft.main(settings(home, run.name, *more)) == 0
    events = EventAccumulator(str(run / "tracking" / "trajlake"))
    events.Reload()

    for tag, lines in (("train/loss", metrics_of(run)), ("eval/loss", evals_of(run))):
        found = [(event.step, event.value) for event in events.Scalars(tag)]
        assert found == [(line["step"], pytest.approx(line["loss"])) for line in lines]


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_loaded(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    missing = [name for name in ("tensorboard", "mlflow", "wandb") if find_spec(name) is None]
    if not missing:
        pytest.skip("every tracker is installed")

    assert sft.main(settings(home, "untracked", f"trackers=[{missing[0]}]")) == 1
    said = capfd.readouterr()
    assert f"`pip install {missing[0]}`" in said.err
    assert "prepared:" not in said.out
    assert not (home / "runs" / "untracked").exists()


# --- less memory ------------------------------------------------------------------------------


def test_gradient_checkpointing_teaches_the_same(home: Path, launched: Path) -> None:
    run = home / "runs" / "checkpointed"
    assert sft.main(settings(home, run.name, "gradient_checkpointing=true")) == 0
    assert [m["loss"] for m in metrics_of(run)] == [m["loss"] for m in metrics_of(launched)]


# --- two processes ----------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [2, 4])
def test_more_processes_train_as_one_does(home: Path, launched: Path, world_size: int) -> None:
    run = home / "runs" / f"world-{world_size}"
    done = launch(
        ["torchrun", "--standalone", "--nproc_per_node", str(world_size)],
        settings(home, run.name, f"world_size={world_size}"),
    )
    assert done.returncode == 0, done.stderr
    one, more = metrics_of(launched), metrics_of(run)
    evaluated = manifest_of(launched)["eval"]["loss"]
    manifest = manifest_of(run)

    for name in ("loss", "gradient_norm"):
        assert [m[name] for m in more] == pytest.approx([m[name] for m in one], rel=1e-4)
    for name in ("first_row", "rows", "segments", "tokens", "trained_tokens"):
        assert [m[name] for m in more] == [m[name] for m in one]
    assert manifest["sessions"][0]["world_size"] == world_size
    assert manifest["refused"] == manifest_of(launched)["refused"]
    assert manifest["eval"]["loss"] == pytest.approx(evaluated, rel=1e-3)
    # Adam's first moment is a running mean of the gradients.
    ours, theirs = optimizer_state(run), optimizer_state(launched)
    for key, state in theirs.items():
        expected = state["exp_avg"]
        torch.testing.assert_close(
            ours[key]["exp_avg"], expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
        )
    expected = result_of(launched)
    for name, weight in result_of(run).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


def test_another_world_size_than_asked_for_is_refused(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert sft.main(settings(home, "none", "world_size=2")) == 1
    assert "1 process(es) run, but world_size is 2" in capfd.readouterr().err
    assert not (home / "runs" / "none").exists()


# --- stopped and resumed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [("qlora", "adamw"), ("lora", "adamw"), ("full", "paged_adamw_8bit")],
)
def test_a_stopped_run_ends_as_one_that_was_not(
    home: Path, method: str, optimizer: str, capfd: pytest.CaptureFixture[str]
) -> None:
    more = [f"method={method}", f"optimizer={optimizer}", "lora.dropout=0.1"]
    whole, stopped = home / "runs" / f"{method}-whole", home / "runs" / f"{method}-stopped"
    assert sft.main(settings(home, whole.name, *more)) == 0

    when_steps_are_done(stopped, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sft.main(settings(home, stopped.name, *more)) == 0
    assert manifest_of(stopped)["status"] == "stopped"
    assert 3 <= manifest_of(stopped)["step"] < STEPS
    assert f"--resume {stopped}" in capfd.readouterr().out
    assert not (stopped / "adapter").exists()

    assert sft.main(["--resume", str(stopped)]) == 0
    assert without_time(metrics_of(stopped)) == without_time(metrics_of(whole))
    assert have_the_same_result(stopped, whole)
    assert manifest_of(stopped)["totals"] == manifest_of(whole)["totals"]
    assert len(manifest_of(stopped)["sessions"]) == 2
    if method == "full":
        AutoModelForCausalLM.from_pretrained(stopped / "model")
        states = [
            each["__bnb_optimizer_quant_state__"] for each in optimizer_state(stopped).values()
        ]
        assert torch.uint8 in {state["state1"].dtype for state in states}
        assert metrics_of(stopped)[-1]["loss"] < metrics_of(stopped)[0]["loss"] - 1


@pytest.fixture(scope="module")
def killed(home: Path) -> Path:
    """A run killed after a checkpoint: its folder says `running`, and nobody is."""
    run = home / "runs" / "killed"
    kill_when_steps_are_done(run, 3, "train.sft", settings(home, run.name))
    return run


def test_a_killed_run_goes_on_from_its_checkpoint_with_other_ranks(
    home: Path, launched: Path, killed: Path
) -> None:
    run = home / "runs" / "killed-copy"
    shutil.copytree(killed, run)
    done = launch(
        ["torchrun", "--standalone", "--nproc_per_node", "2"],
        ["--resume", str(run), "--set", "world_size=2"],
    )
    assert done.returncode == 0, done.stderr
    manifest = manifest_of(run)

    assert [m["step"] for m in metrics_of(run)] == list(range(1, STEPS + 1))
    assert [m["loss"] for m in metrics_of(run)] == pytest.approx(
        [m["loss"] for m in metrics_of(launched)], rel=1e-4
    )
    assert [s["world_size"] for s in manifest["sessions"]] == [1, 2]
    assert manifest["sessions"][1]["first_step"] in (3, 5)
    assert manifest["totals"] == manifest_of(launched)["totals"]
    assert manifest["refused"] == manifest_of(launched)["refused"]
    ours, theirs = lineage_of(run), lineage_of(launched)
    assert [(s["step"], s["row"]) for s in ours] == [(s["step"], s["row"]) for s in theirs]
    first = manifest["sessions"][1]["first_step"]
    assert all(s["rank"] == (s["row"] % 2 if s["step"] >= first else 0) for s in ours)


def swap_rows(home: Path) -> None:
    shutil.rmtree(home / "exports" / "default")
    write_export(home / "exports" / "default", [react_sample(i) for i in range(60)][::-1])


def change_template(home: Path) -> None:
    file = home / "tiny-model" / "chat_template.jinja"
    file.write_text(file.read_text() + "{# changed #}")


def change_weights(home: Path) -> None:
    file = home / "tiny-model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (swap_rows, "order_sha256 differ"),
        (change_template, "tokenizer_sha256 differ"),
        (change_weights, "base_model_sha256 differ"),
    ],
)
def test_a_run_does_not_go_on_with_something_else(
    home: Path,
    killed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    change: Callable[[Path], None],
    said: str,
) -> None:
    other = tmp_path / "home"
    shutil.copytree(home / "exports", other / "exports")
    shutil.copytree(home / "tiny-model", other / "tiny-model")
    run = other / "runs" / "killed"
    shutil.copytree(killed, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(home), str(other)))
    monkeypatch.setenv("TRAJLAKE_EXPORTS", str(other / "exports"))
    change(other)
    before = (run / "manifest.json").read_bytes()

    assert sft.main(["--resume", str(run)]) == 1
    assert said in capfd.readouterr().err
    assert (run / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("run", "overrides", "said"),
    [
        ("killed", ["learning_rate=1"], "learning_rate cannot change"),
        ("launched", [], "has finished"),
        ("nowhere", [], "there is no config file"),
    ],
)
def test_a_resume_that_makes_no_sense_is_refused(
    home: Path,
    killed: Path,
    launched: Path,
    capfd: pytest.CaptureFixture[str],
    run: str,
    overrides: list[str],
    said: str,
) -> None:
    arguments = [part for override in overrides for part in ("--set", override)]

    assert sft.main(["--resume", str(home / "runs" / run), *arguments]) == 1
    assert said in capfd.readouterr().err


# --- FSDP 2 -----------------------------------------------------------------------------------

FSDP = ["torchrun", "--standalone", "--nproc_per_node", "2", "tests/fsdp_on_cpu.py", "train.sft"]


def test_a_run_goes_on_in_shards(home: Path, launched: Path, killed: Path) -> None:
    run = home / "runs" / "killed-sharded"
    shutil.copytree(killed, run)
    done = launch(FSDP, ["--resume", str(run), "--set", "world_size=2"], module=[])
    assert done.returncode == 0, done.stderr
    ours, theirs = manifest_of(run), manifest_of(launched)

    assert [s["distributed"] for s in ours["sessions"]] == ["NO", "FSDP"]
    for name in ("loss", "gradient_norm"):
        assert [m[name] for m in metrics_of(run)] == pytest.approx(
            [m[name] for m in metrics_of(launched)], rel=1e-4
        )
    assert ours["eval"]["loss"] == pytest.approx(theirs["eval"]["loss"], rel=1e-3)
    expected = result_of(launched)
    for name, weight in result_of(run).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)


def test_a_run_in_shards_goes_on_in_one_process(home: Path) -> None:
    run, whole = home / "runs" / "sharded", home / "runs" / "sharded-whole"
    more = ["method=full", "packing=window", "global_batch_size=2", "max_steps=null"]
    tools = Path(sys.executable).parent
    process = subprocess.Popen([tools / FSDP[0], *FSDP[1:], *settings(home, run.name, *more)])
    watcher = when_steps_are_done(run, 1, process.terminate)
    process.wait(timeout=120)
    watcher.join()
    assert manifest_of(run)["status"] == "stopped"
    assert manifest_of(run)["sessions"][0]["distributed"] == "FSDP"
    assert sft.main(["--resume", str(run)]) == 0

    assert sft.main(settings(home, whole.name, *more)) == 0
    for name in ("loss", "gradient_norm"):
        assert [m[name] for m in metrics_of(run)] == pytest.approx(
            [m[name] for m in metrics_of(whole)], rel=1e-3
        )
    expected = result_of(whole)
    for name, weight in result_of(run).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-2, atol=1e-3)
    AutoModelForCausalLM.from_pretrained(run / "model")


def test_sharding_that_would_not_happen_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # What the launcher sets for train/accelerate/fsdp2.yaml.
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")

    assert sft.main(settings(home, "none")) == 1
    assert "accelerate shards nothing on a CPU or in one process" in capfd.readouterr().err


def test_an_8_bit_optimizer_is_not_sharded(home: Path) -> None:
    done = launch(FSDP, settings(home, "none", "optimizer=paged_adamw_8bit"), module=[])

    assert done.returncode != 0
    assert "the optimizer paged_adamw_8bit cannot keep its state in shards" in done.stderr
    assert not (home / "runs" / "none").exists()


# --- the specification's order ----------------------------------------------------------------


def test_a_command_that_is_given_again_goes_on(
    home: Path, launched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = home / "runs" / "again"
    command = [*settings(home, run.name), "--go-on"]

    # Two signals at once, as by a launcher that passes on what its group has got.
    def stop_twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    when_steps_are_done(run, 1, stop_twice)
    assert sft.main(command) == 0
    assert manifest_of(run)["status"] == "stopped"
    assert sft.main(command) == 0
    assert manifest_of(run)["status"] == "finished"
    assert len(manifest_of(run)["sessions"]) == 2
    assert have_the_same_result(run, launched)

    before = (run / "manifest.json").read_bytes()
    capfd.readouterr()
    assert sft.main(command) == 0
    assert capfd.readouterr().out == f"finished before: {run}\n"
    assert (run / "manifest.json").read_bytes() == before

    # Another training of the same name is not taken for this one.
    assert sft.main([*command, "--set", "learning_rate=0.5"]) == 1
    assert "another learning_rate" in capfd.readouterr().err
    assert sft.main([*command, "--set", "run=null"]) == 1
    assert "Give it one by --set run=" in capfd.readouterr().err


def test_what_ended_before_its_first_checkpoint_begins_anew(home: Path) -> None:
    run = home / "runs" / "cut-off"
    command = settings(home, run.name, "max_steps=1", "checkpoint_every=9")
    assert sft.main(command) == 0
    manifest = manifest_of(run)
    (run / "manifest.json").write_text(json.dumps(manifest | {"status": "running"}))

    assert sft.main([*command, "--go-on"]) == 0

    assert manifest_of(run)["status"] == "finished"
    assert manifest_of(run)["run_id"] != manifest["run_id"]


def test_the_order_of_shards_is_taken_up_again_but_by_no_other_world(
    home: Path, launched: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, stopped = home / "runs" / "shards-whole", home / "runs" / "shards-stopped"
    assert sft.main(settings(home, whole.name, "order=shards")) == 0
    assert manifest_of(whole)["totals"] == manifest_of(launched)["totals"]
    assert [m["tokens"] for m in metrics_of(whole)] != [m["tokens"] for m in metrics_of(launched)]

    when_steps_are_done(stopped, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sft.main(settings(home, stopped.name, "order=shards")) == 0
    assert manifest_of(stopped)["status"] == "stopped"
    manifest = stopped / "manifest.json"
    began = manifest.read_text()
    manifest.write_text(began.replace('"world_size": 1,', '"world_size": 2,'))
    assert sft.main(["--resume", str(stopped)]) == 1
    assert "rows would be read twice, and others never. Resume with 2." in capfd.readouterr().err

    manifest.write_text(began)
    assert sft.main(["--resume", str(stopped)]) == 0
    assert without_time(metrics_of(stopped)) == without_time(metrics_of(whole))


# --- runs that cannot be ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run=launched", "exists. Go on with that run by --resume"),
        ("recipe=missing", "there is no export at"),
        ("micro_batch_size=3", "it must be a multiple of 3"),
        ("max_length=10", "can be trained on: 47 × too_long, 1 × nothing_to_learn"),
        ("learning_rate=1e30", "at step 3"),
    ],
)
def test_a_run_that_cannot_be_says_why(
    home: Path,
    launched: Path,
    capfd: pytest.CaptureFixture[str],
    override: str,
    said: str,
) -> None:
    name = f"refused-{override.partition('=')[0]}"

    assert sft.main(settings(home, name, override)) == 1
    assert said in capfd.readouterr().err
