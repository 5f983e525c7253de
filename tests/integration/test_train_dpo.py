"""`train.dpo` as it is launched: it learns, whatever the world, and goes on where it stopped."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("bitsandbytes", reason="the training extra is not installed")
pytest.importorskip("mistral_common", reason="the training extra is not installed")

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peft import PeftModel
from train_export import preference_pair, react_sample, write_export, write_pairs
from train_runs import (
    at_home,
    command_line,
    evals_of,
    have_the_same_result,
    kill_when_steps_are_done,
    launch,
    lineage_of,
    manifest_of,
    metrics_of,
    when_steps_are_done,
    without_time,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from train import dpo, merge, reference, sft
from udfs import lake

CONFIG = "train/configs/dpo-tiny.yaml"
STEPS = 6  # of 4 pairs: 11 of them twice, so in the last step two are blank
LORA = ("method=lora", "model.tiny.hidden_size=64")
COLOURS = ("green", "red", "blue", "white", "black", "brown", "yellow", "grey")


def signal_pair(number: int) -> dict[str, Any]:
    """What is right at one colour is wrong at another: no answer is better as such."""
    texts = ("Go on now.", "Stop at once.")
    right = number % 2
    return {
        "pair_id": f"pair-{number}",
        "chosen_id": f"good-{number}",
        "rejected_id": f"bad-{number}",
        "prompt": [{"role": "user", "content": f"The light is {COLOURS[number % 8]}."}],
        "chosen": [{"role": "assistant", "content": texts[right]}],
        "rejected": [{"role": "assistant", "content": texts[1 - right]}],
        "tools": None,
        "chosen_loss_flags": [True],
        "rejected_loss_flags": [True],
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an export of 12 pairs, of which one is refused, and a lake that knows them."""
    home = tmp_path_factory.mktemp("home")
    pairs = [preference_pair(number) | {"weight": 1 + number % 3} for number in range(12)]
    pairs[5]["rejected"] = [{"role": "assistant", "content": "word " * 700}]
    held_back = [preference_pair(90) | {"weight": 0.5}, preference_pair(91)]
    write_pairs(home / "exports" / "default.pairs", pairs, held_back)
    write_pairs(home / "exports" / "signals.pairs", [signal_pair(i) for i in range(8)])
    write_export(home / "exports" / "samples", [react_sample(i) for i in range(8)])
    with at_home(home):
        known = [{k: pair[k] for k in ("pair_id", "chosen_id", "rejected_id")} for pair in pairs]
        table = pa.Table.from_pylist(known)
        lake.write("preference_pairs", table.to_reader(), lake.WriteOptions())
        yield home


def settings(home: Path, run: str, *more: str) -> list[str]:
    usual = (*LORA, "epochs=2", "learning_rate=1e-2")
    return command_line(CONFIG, home, run, *usual, *more)


@pytest.fixture(scope="module")
def launched(home: Path) -> Path:
    """The folder of a run that `accelerate launch` started and that finished."""
    done = launch(
        ["accelerate", "launch", "--cpu"],
        settings(home, "launched", "eval_every=3", "method=qlora"),
        module=("-m", "train.dpo"),
    )
    assert done.returncode == 0, done.stderr
    assert f"step {STEPS}/{STEPS}  loss" in done.stdout
    assert "1 × too_long" in done.stdout
    return home / "runs" / "launched"


def test_the_chosen_side_becomes_likelier_against_the_rejected_one(launched: Path) -> None:
    metrics, evals = metrics_of(launched), evals_of(launched)

    # In the first step the model still is its own reference.
    assert metrics[0]["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert metrics[0]["reward_margin"] == pytest.approx(0, abs=1e-3)
    assert metrics[-1]["loss"] < 0.2 and metrics[-1]["reward_accuracy"] == 1
    assert [line["step"] for line in evals] == [3, 6]
    assert evals[-1]["reward_accuracy"] == 1 and evals[-1]["rows"] == 2
    for line in metrics + evals:
        assert line["reward_margin"] == pytest.approx(
            line["chosen_reward"] - line["rejected_reward"], abs=1e-9
        )
    assert [(m["rows"], m["segments"]) for m in metrics] == [(4, 8)] * 5 + [(2, 4)]
    manifest = manifest_of(launched)
    assert manifest["order"]["rows"] == manifest["next_row"] == 22
    assert manifest["eval"] == evals[-1]
    [refused] = manifest["refused"]
    assert (refused["pair_id"], refused["reason"]) == ("pair-5", "too_long")


def log_probability(model: Any, tokenizer: Any, number: int, side: str) -> float:
    """Of one side of a pair, from its text, by transformers alone."""
    pair = signal_pair(number)
    ids, before = (
        tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)
        for messages, prompt in ((pair["prompt"] + pair[side], False), (pair["prompt"], True))
    )
    with torch.no_grad():
        told = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(told[t - 1, ids[t]] for t in range(len(before), len(ids))))


def test_it_learns_which_answer_is_right_where(home: Path) -> None:
    run = home / "runs" / "signals"
    more = ["recipe=signals", "epochs=12", "global_batch_size=8", "micro_batch_size=8"]
    assert dpo.main(settings(home, run.name, *more, "method=full", "learning_rate=2e-3")) == 0
    assert metrics_of(run)[-1]["reward_accuracy"] == 1

    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    told_apart = []
    for folder in (home / "tiny-model", run / "model"):
        model = AutoModelForCausalLM.from_pretrained(folder)
        margins = [
            log_probability(model, tokenizer, number, "chosen")
            - log_probability(model, tokenizer, number, "rejected")
            for number in range(8)
        ]
        told_apart.append(sum(margin > 0 for margin in margins) / 8)
    # Whatever a model thinks of the two answers, it cannot be right by that more than half the
    # time: the one is right as often as the other.
    assert told_apart[0] <= 0.75
    assert told_apart[1] == 1


def test_two_processes_train_as_one_does(home: Path, launched: Path) -> None:
    done = launch(
        ["torchrun", "--standalone", "--nproc_per_node", "2"],
        settings(home, "two", "world_size=2", "eval_every=3", "method=qlora"),
        module=("-m", "train.dpo"),
    )
    assert done.returncode == 0, done.stderr
    one, two = launched, home / "runs" / "two"
    for name in ("loss", "gradient_norm", "chosen_reward", "rejected_reward"):
        assert [m[name] for m in metrics_of(two)] == pytest.approx(
            [m[name] for m in metrics_of(one)], rel=1e-3, abs=1e-4
        )
    for name in ("rows", "segments", "tokens", "trained_tokens"):
        assert [m[name] for m in metrics_of(two)] == [m[name] for m in metrics_of(one)]
    assert manifest_of(two)["eval"]["loss"] == pytest.approx(
        manifest_of(one)["eval"]["loss"], rel=1e-2
    )
    seen = lineage_of(two)
    assert {s["rank"] for s in seen} == {0, 1}
    ours, theirs = (
        sorted((s["step"], s["pair_id"], s["side"]) for s in lineage_of(run)) for run in (two, one)
    )
    assert ours == theirs


def test_shards_train_as_one_process_does(home: Path, launched: Path) -> None:
    done = launch(
        ["torchrun", "--standalone", "--nproc_per_node", "2", "tests/fsdp_on_cpu.py", "train.dpo"],
        settings(home, "sharded", "world_size=2", "eval_every=3", "method=qlora", "max_steps=3"),
        module=[],
    )
    assert done.returncode == 0, done.stderr
    sharded = home / "runs" / "sharded"
    assert manifest_of(sharded)["sessions"][0]["distributed"] == "FSDP"
    # The schedule is that of three steps, so the first two are alike at most in what they began.
    assert metrics_of(sharded)[0]["loss"] == pytest.approx(metrics_of(launched)[0]["loss"], 1e-4)
    assert metrics_of(sharded)[1]["loss"] == pytest.approx(metrics_of(launched)[1]["loss"], 2e-2)


# What a run may do beside the plain loss.
ALL_SORTS = ["lora.dropout=0.1", "sft_weight=0.5", "label_smoothing=0.1", "eval_every=2"]


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The folder of a run that went through to its end."""
    run = home / "runs" / "whole"
    assert dpo.main(settings(home, run.name, *ALL_SORTS)) == 0
    return run


def assert_is_the_same(run: Path, other: Path) -> None:
    """Two runs took the same steps, and came to the same end."""
    assert without_time(metrics_of(run)) == without_time(metrics_of(other))
    assert without_time(evals_of(run)) == without_time(evals_of(other))
    assert have_the_same_result(run, other)
    assert lineage_of(run) == [
        line | {"run_id": manifest_of(run)["run_id"]} for line in lineage_of(other)
    ]


def test_a_stopped_run_ends_as_one_that_was_not(
    home: Path, whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stopped = home / "runs" / "stopped"
    when_steps_are_done(stopped, 3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert dpo.main(settings(home, stopped.name, *ALL_SORTS)) == 0
    assert manifest_of(stopped)["status"] == "stopped"
    assert f"-m train.dpo --resume {stopped}" in capfd.readouterr().out
    assert sft.main(["--resume", str(stopped)]) == 1
    assert "launch it by train.dpo, not train.sft" in capfd.readouterr().err

    # The run's own reference is what it goes on with, whatever became of the other.
    for folder in (home / "prepared").glob("default.pairs-*/reference"):
        shutil.rmtree(folder)
    assert dpo.main(["--resume", str(stopped)]) == 0
    assert "reference:" not in capfd.readouterr().out
    assert_is_the_same(stopped, whole)

    kept = stopped / "reference.parquet"
    kept.unlink()
    manifest = stopped / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "finished"', '"status": "stopped"'))
    assert dpo.main(["--resume", str(stopped)]) == 1
    assert f"{kept} is missing" in capfd.readouterr().err


def test_a_killed_run_ends_as_one_that_was_not(home: Path, whole: Path) -> None:
    killed = home / "runs" / "killed"
    kill_when_steps_are_done(killed, 3, "train.dpo", settings(home, killed.name, *ALL_SORTS))
    assert manifest_of(killed)["status"] == "running"

    assert dpo.main(["--resume", str(killed)]) == 0
    assert manifest_of(killed)["sessions"][1]["first_step"] in (3, 5)
    assert_is_the_same(killed, whole)


def test_a_run_without_gain_stops_early_with_its_best(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # A tenth of the eval split is the wrong way round, so sides can be pulled too far apart.
    pair = preference_pair(90)
    wrong = pair | {
        "chosen": pair["rejected"],
        "rejected": pair["chosen"],
        "chosen_loss_flags": pair["rejected_loss_flags"],
        "rejected_loss_flags": pair["chosen_loss_flags"],
    }
    right = preference_pair(91) | {"weight": 9}
    pairs = [preference_pair(number) for number in range(12)]
    write_pairs(home / "exports" / "doubtful.pairs", pairs, [right, wrong])
    steady = [
        "recipe=doubtful",
        "eval_every=1",
        "schedule=constant_with_warmup",
        "learning_rate=1.5e-3",
    ]

    run, short = home / "runs" / "early", home / "runs" / "until-best"
    assert dpo.main(settings(home, run.name, *steady, "stop_after_evals_without_gain=2")) == 0
    evals, manifest = evals_of(run), manifest_of(run)
    losses = [line["loss"] for line in evals]
    best = losses.index(min(losses)) + 1
    assert manifest["stopped_early"] is True
    assert best > 1 and manifest["step"] == len(evals) == best + 2 < STEPS
    assert manifest["eval"] == manifest["best_eval"] == evals[best - 1]
    assert f"2 evaluations without gain since step {best}" in capfd.readouterr().out
    assert dpo.main(settings(home, short.name, *steady, f"max_steps={best}")) == 0
    assert have_the_same_result(run, short)


def test_a_reference_is_computed_once_and_gone_on_with(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "CHUNK_PAIRS", 4)
    first, again, part = (home / "runs" / name for name in ("first", "again", "part"))
    more = ["max_steps=1", "max_length=590"]
    assert dpo.main(settings(home, first.name, *more)) == 0
    assert manifest_of(first)["reference"]["computed_here"] == 13
    # Neither another beta nor another rate of learning asks the reference anew.
    assert dpo.main(settings(home, again.name, *more, "beta=0.5", "learning_rate=1e-4")) == 0
    assert manifest_of(again)["reference"]["computed_here"] == 0
    [folder] = [
        folder
        for folder in (home / "prepared").glob("default.pairs-*/reference/*")
        if len(list(folder.glob("train-*"))) == 3
    ]
    # As a killed run leaves it.
    for file in sorted(folder.glob("train-*"))[1:]:
        file.unlink()
    assert dpo.main(settings(home, part.name, *more)) == 0
    assert manifest_of(part)["reference"]["computed_here"] == 7
    tables = [pq.read_table(run / "reference.parquet") for run in (first, again, part)]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0].num_rows == 13


def test_the_lake_says_which_pairs_a_step_saw_and_what_they_were_worth(launched: Path) -> None:
    with lake.connect() as connection:
        found = connection.execute(
            """
            select
                seen.step,
                count(*) as sides,
                count(distinct pair_id) as pairs,
                bool_and(
                    seen.trajectory_id = if(side = 'chosen', chosen_id, rejected_id)
                ) as is_that_run,
                sum(pair_weight * 0.1 * (reference_nll - nll)) filter (where side = 'chosen')
                / sum(pair_weight) filter (where side = 'chosen') as chosen,
                sum(pair_weight * 0.1 * (reference_nll - nll)) filter (where side = 'rejected')
                / sum(pair_weight) filter (where side = 'rejected') as rejected,
                cast(sum(seen.trained_tokens) as integer) as trained_tokens,
            from training_lineage as seen
            inner join training_runs using (run_id)
            inner join preference_pairs using (pair_id)
            where run_id = ? and objective = 'dpo'
            group by all
            order by all
            """,
            [manifest_of(launched)["run_id"]],
        ).fetchall()
    assert found == [
        (
            m["step"],
            m["segments"],
            m["rows"],
            True,
            pytest.approx(m["chosen_reward"], abs=1e-5),
            pytest.approx(m["rejected_reward"], abs=1e-5),
            m["trained_tokens"],
        )
        for m in metrics_of(launched)
    ]
    seen = lineage_of(launched)
    counts = {
        pair: sum(s["pair_id"] == pair for s in seen) for pair in {s["pair_id"] for s in seen}
    }
    assert set(counts.values()) == {4} and len(counts) == 11  # two sides in two epochs
    for side in seen:
        assert side["pair_weight"] == 1 + int(side["pair_id"].removeprefix("pair-")) % 3
        assert side["weight"] == side["trained_tokens"]  # of the tokens, which all count as much


def test_pairs_come_after_samples(home: Path) -> None:
    before, after = home / "runs" / "samples", home / "runs" / "after"
    short = ["max_steps=2", "epochs=1"]
    supervised = ("train/configs/tiny.yaml", home, before.name, "recipe=samples", "max_steps=2")
    assert sft.main(command_line(*supervised, *LORA)) == 0
    base = merge.merge(before)
    more = [f"model.path={base}", "model.tiny=null", *short]
    assert dpo.main(settings(home, after.name, *more)) == 0
    assert metrics_of(after)[0]["loss"] == pytest.approx(0.693147, abs=1e-4)

    merged = merge.merge(after)
    assert "2 steps over 8 preference pairs (DPO)" in (merged / "README.md").read_text()
    ids = torch.arange(20, 40).unsqueeze(0)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), after / "adapter"
    )
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipe=missing", "`trajlake export missing --layout pairs`"),
        ("max_length=20", "none of the 12 pairs of"),
        ("label_smoothing=0.5", "less than 0.5"),
        ("packing=window", "there is no key 'packing'"),
        ("objective=ppo", "objective: 'ppo' is none. Choose from: sft, dpo."),
        ("objective=sft", "there is no key 'epochs'"),
    ],
)
def test_a_run_that_cannot_be_says_why(
    home: Path, capfd: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert dpo.main(settings(home, "refused", override)) == 1
    assert said in capfd.readouterr().err
    assert not (home / "runs" / "refused").exists()
