"""From labels to a trained and calibrated rater, by the commands a person runs."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest

from udfs import labels, lake
from udfs.labels import Label

Run = Callable[..., subprocess.CompletedProcess[str]]

pytest.importorskip("sklearn", reason="needs the extra `evaluation`")

# Without their tests, which `dbt build` of the samples runs.
BUILD = ("dbt", "build", "--select", "+rated_trajectories", "--exclude-resource-type", "test")
BUILD = (*BUILD, "unit_test")


def write_runs(folder: Path, tasks: int = 150) -> None:
    """Two runs of each task, as FireAct writes them. Who finds the answer is mostly right."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name in ("first", "second"):
        runs = {}
        for task in range(tasks):
            found = chance.random() < 0.6
            right = chance.random() < (0.9 if found else 0.15)
            seen = f"Harbour {task} lies on the Grey Sea." if found else f"Similar: [{name} {task}]"
            answer = "the Grey Sea" if found else "not found"
            runs[str(task)] = {
                "reward": right,
                "em": right,
                "f1": 1.0 if right else round(0.4 * chance.random(), 2),
                "gt": "the Grey Sea",
                "prompt": "",
                "traj": (
                    "Below is an instruction.\n\n### Instruction:\n"
                    f"On which sea lies harbour {task}?\n\n### Response:\n"
                    f"Thought: I search for it, as run {name}.\nAction: search[harbour {task}]\n"
                    f"Observation: {seen}\nThought: I have the answer.\n"
                    f"Action: finish[{answer}]\n"
                    f"Observation: Episode finished, reward = {right}\n"
                ),
            }
        (folder / f"{name}.json").write_text(json.dumps(runs))


def query(workplace: Path, sql: str) -> list[tuple[Any, ...]]:
    with duckdb.connect(workplace / "trajlake.duckdb", read_only=True) as connection:
        lake.load_delta_extension(connection)
        return connection.sql(sql).fetchall()


def test_from_labels_to_a_calibrated_trained_rater(workplace: Path, run: Run) -> None:
    write_runs(workplace / "raw" / "harbours")
    run(*BUILD)
    assert query(
        workplace,
        "select label, labelled_by, count(value) from labels group by all order by all",
    ) == [
        ("em", "environment", 300),
        ("f1", "environment", 300),
        ("reward", "environment", 300),
        ("success", "environment", 300),
    ]

    rater = workplace / "raters" / "harbours"
    said = run(
        *(sys.executable, "-m", "train.rater", "--label", "success", "--repeats", "2"),
        *("--output", str(rater)),
    ).stdout
    assert "held out" in said
    manifest = json.loads((rater / "manifest.json").read_text())
    held_out = manifest["held_out"]["measures"]
    assert held_out["trained"]["spearman"][0] > 0.5
    assert held_out["rules"]["auc"][0] == 0.5  # the runs look tidy, all of them
    assert manifest["cross_validated"]["correlations"]["all"]["features"][0] > 0.5
    assert (rater / "report.svg").read_text().startswith("<svg")

    chosen = json.dumps({"rater": "local", "rater_model": str(rater)})
    run(*BUILD, "--vars", chosen)
    rows = query(
        workplace,
        """
        select rate_model, count(*), count(rater_score), min(rater_score) > 0, max(rater_score) < 5
        from rated_trajectories group by all
        """,
    )
    assert rows == [(f"harbours@{manifest['model_sha256'][:8]}", 300, 300, True, True)]

    # What it has learned from is marked, both runs of a task alike, and proves nothing.
    marked = query(
        workplace,
        """
        select count(*) filter (where is_trained_on), count(*) filter (where not is_trained_on)
        from labelled_ratings where rater = 'local' and label = 'success'
        """,
    )
    trained = manifest["trained"]["trajectories"]
    assert marked == [(trained, 300 - trained)]
    report = run("trajlake", "calibration", "--rater", "local").stdout
    assert f"Left out: {trained} ratings" in report

    # A score becomes a probability, which is higher where the score is, and near the truth.
    better, worse, rate = query(
        workplace,
        """
        select
            avg(success_probability) filter (where score = 1),
            avg(success_probability) filter (where score = 0),
            avg(success_probability) - avg(score)
        from rated_trajectories
        """,
    )[0]
    assert better > worse + 0.2 and abs(rate) < 0.1

    # Nothing has changed: no table gets a new version.
    tables = ("labels", "human_labels", "rating_calibrations", "ratings")
    versions = {name: lake.open_table(name).version() for name in tables}  # type: ignore[union-attr]
    run(*BUILD, "--vars", chosen)
    assert versions == {
        name: lake.open_table(name).version()  # type: ignore[union-attr]
        for name in tables
    }

    # A person's label is there with the next build, and as a page with plots.
    contents = [
        row[0] for row in query(workplace, "select distinct content_sha256 from trajectories")
    ]
    labels.append([Label(sha256, float(n % 6), "ada") for n, sha256 in enumerate(contents)])
    run(*BUILD, "--vars", chosen)
    page = workplace / "page.html"
    report = run("trajlake", "calibration", "--label", "human", "--page", str(page)).stdout
    assert "rules" in report and f"harbours@{manifest['model_sha256'][:8]}" in report
    assert "<svg" in page.read_text() and "http-equiv" not in page.read_text()

    # A model that somebody changed is not what the ledger would say that it is.
    model = json.loads((rater / "model.json").read_text())
    (rater / "model.json").write_text(json.dumps(model | {"intercept": 9.0}))
    write_runs(workplace / "raw" / "more_harbours", tasks=3)
    failed = run(*BUILD, "--vars", chosen, ok=False)
    assert failed.returncode and "is not the one that its manifest.json describes" in failed.stdout


def test_a_text_model_is_trained_and_rates(workplace: Path, run: Run) -> None:
    pytest.importorskip("torch", reason="needs the extra `train`")
    from train.config import TinyModel
    from train.tiny import make_tiny_model

    write_runs(workplace / "raw" / "harbours", tasks=60)
    run(*BUILD)
    base = workplace / "tiny"
    make_tiny_model(base, TinyModel(vocab_size=1024, hidden_size=32, layers=1, heads=2))
    rater = workplace / "raters" / "text"
    run(
        *(sys.executable, "-m", "train.rater", "--label", "success", "--kind", "text"),
        *("--base", str(base), "--epochs", "12", "--max-length", "96", "--output", str(rater)),
        *("--learning-rate", "0.01"),
    )
    manifest = json.loads((rater / "manifest.json").read_text())
    # Two words tell right from wrong here; a model that reads the answer learns them.
    assert manifest["held_out"]["measures"]["trained"]["spearman"][0] > 0.4
    assert not list(rater.rglob("*.bin")) and list(rater.rglob("*.safetensors"))

    chosen = json.dumps({"rater": "local", "rater_model": str(rater)})
    run(*BUILD, "--vars", chosen)
    rows = query(
        workplace,
        """
        select count(rater_score), avg(rater_score) filter (where score = 1)
            > avg(rater_score) filter (where score = 0)
        from rated_trajectories
        """,
    )
    assert rows == [(120, True)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rater": "local"}, "needs a trained rater"),
        ({"rater": "local", "rater_model": "raters/none"}, "finds no trained rater at raters/none"),
    ],
)
def test_a_rater_that_is_not_there_is_said_to_be_missing(
    workplace: Path, run: Run, settings: dict[str, str], message: str
) -> None:
    write_runs(workplace / "raw" / "harbours", tasks=2)
    failed = run(*BUILD, "--vars", json.dumps(settings), ok=False)
    assert failed.returncode and message in failed.stdout


def test_too_few_labels_are_said_to_be_too_few(workplace: Path, run: Run) -> None:
    failed = run(sys.executable, "-m", "train.rater", ok=False)
    assert failed.returncode == 1 and "Run `dbt build`" in failed.stderr
    write_runs(workplace / "raw" / "harbours", tasks=5)
    run(*BUILD)
    failed = run(sys.executable, "-m", "train.rater", ok=False)
    assert failed.returncode == 1 and "10 trajectories have a value" in failed.stderr
    assert query(workplace, "select count(*), count(success_probability) from rated_trajectories")[
        0
    ] == (10, 0)
    assert "too few" in run("trajlake", "calibration").stdout


def test_a_trained_rater_orders_real_runs_better_than_rules(
    workplace: Path, run: Run, shared: Path
) -> None:
    """FireAct's runs on HotpotQA, against f1; the rules without the reward, which is the label."""
    for name, file in (("gpt", "gpt-3.5-turbo-0613.json"), ("llama", "llama-2-13b.json")):
        folder = workplace / "raw" / name
        folder.mkdir()
        (folder / file).write_bytes((shared / "raw/fireact_hotpotqa" / file).read_bytes())
    run(*BUILD)
    rater = workplace / "raters" / "f1"
    run(
        *(sys.executable, "-m", "train.rater", "--label", "f1", "--repeats", "1"),
        *("--output", str(rater)),
    )
    manifest = json.loads((rater / "manifest.json").read_text())
    for place, found in manifest["cross_validated"]["correlations"].items():
        assert found["features"][0] > found["rules"] + 0.15, place
        assert found["features"][0] > 0.35, place
    assert manifest["held_out"]["measures"]["trained"]["spearman"][1] > 0.2  # of 95%, the low end
