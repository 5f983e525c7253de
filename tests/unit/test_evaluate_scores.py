"""How answers are scored, how BFCL's scores are read, and the numbers that were published."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from orchestration.agent.model import Model
from orchestration.evaluate.bfcl import CategoryScore, read_scores, run_bfcl
from orchestration.evaluate.scores import (
    Attempt,
    exact_match,
    f1,
    normalised_answer,
    success_by_budget,
)
from udfs.errors import ConfigError, EvaluationError

SEED = Path(__file__).parents[2] / "dbt_project" / "seeds" / "published_results.csv"


@pytest.mark.parametrize(
    ("answer", "gold", "exact", "harmonic"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("a tower in Paris", "the Eiffel Tower", 0.0, 0.4),
        ("tower tower", "Eiffel Tower", 0.0, 0.5),
        ("yes", "Yes.", 1.0, 1.0),
        ("yes, it is", "yes", 0.0, 0.0),
        ("no", "no one", 0.0, 0.0),
        ("", "Paris", 0.0, 0.0),
        ("Lyon", "Paris", 0.0, 0.0),
        ("a", "the", 1.0, 0.0),
    ],
)
def test_answers_are_scored_as_hotpotqa_does(
    answer: str, gold: str, exact: float, harmonic: float
) -> None:
    assert exact_match(answer, gold) == exact
    assert f1(answer, gold) == pytest.approx(harmonic)


def test_an_answer_is_normalised() -> None:
    assert normalised_answer("  The  U.S. and\tan  Anthem ") == "us and anthem"


def test_success_grows_with_the_budget() -> None:
    attempts = [Attempt(True, 1), Attempt(True, 3), Attempt(False, 2), Attempt(False, 5)]
    assert success_by_budget(attempts, 5) == [0.25, 0.25, 0.5, 0.5, 0.5]


def test_bfcl_scores_are_read_by_category(tmp_path: Path) -> None:
    for folder, category, accuracy, count in (
        ("non_live", "simple_python", 0.5, 400),
        ("multi_turn", "multi_turn_base", 0.0, 200),
    ):
        path = tmp_path / "served" / folder / f"BFCL_v4_{category}_score.json"
        path.parent.mkdir(parents=True)
        head = {"accuracy": accuracy, "correct_count": 1, "total_count": count}
        path.write_text(json.dumps(head) + "\n" + json.dumps({"id": "x", "valid": False}))
    assert read_scores(tmp_path) == [
        CategoryScore("multi_turn_base", 0.0, 200),
        CategoryScore("simple_python", 0.5, 400),
    ]
    path.write_text('{"id": "x"}')
    with pytest.raises(EvaluationError, match="does not begin with BFCL's line"):
        read_scores(tmp_path)
    with pytest.raises(EvaluationError, match="left no score"):
        read_scores(tmp_path / "nowhere")


def test_an_environment_without_bfcl_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    with pytest.raises(ConfigError, match="is no virtual environment with bfcl-eval"):
        run_bfcl(tmp_path, Model("m", {}, 1.0), ["simple"], tmp_path, prompted=False, threads=1)


def test_published_numbers_are_those_of_the_tables(shared: Path) -> None:
    with (shared / "golden" / "benchmarks.csv").open() as given, SEED.open() as ours:
        printed = [
            (f"US 2025/0259054 A1, Table {row['table'][1]}", *list(row.values())[2:])
            for row in csv.DictReader(given)
        ]
        seed = [
            (row["source"], row["model_name"], row["setting"], row["value"])
            for row in csv.DictReader(ours)
        ]
    assert seed == printed
