"""What a recipe trains on, how often and in which order: curation and plan, built by dbt."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory

# A dozen sources of all sizes, and as many again with three trajectories each.
SIZES = {f"big_{i:02d}": 1200 // (i + 1) for i in range(12)} | {
    f"small_{i:02d}": 3 for i in range(12)
}


def recipe(name: str, **fields: Any) -> dict[str, Any]:
    return RECIPE | {"recipe": name} | fields


def entry(name: str, source: str = "*", **fields: Any) -> dict[str, Any]:
    return EVERY_SOURCE | {"recipe": name, "source": source} | fields


RECIPES = [
    recipe("default"),
    recipe("same_seed", filter="true"),
    recipe("other_seed", seed=43),
    recipe("weighted", epochs=2, eval_fraction=0),
    recipe("levelled", temperature=2.0, eval_fraction=0),
    recipe("capped", epochs=1, eval_fraction=0),
    recipe("short", eval_fraction=0, token_budget=5_000),
]
SOURCES = [
    entry("default"),
    entry("same_seed"),
    entry("other_seed"),
    entry("weighted", weight=0.5),
    entry("weighted", "big_00", weight=1.25),
    entry("weighted", "big_01", weight=0),
    entry("weighted", "small_11", weight=0.01),  # less than half a position
    entry("levelled", max_repeats=1000),
    entry("capped", weight=1, max_repeats=2),
    entry("capped", "big_11", weight=7, max_repeats=2),
    entry("short"),
]


def trajectories(extra: int = 0) -> list[dict[str, Any]]:
    """Of every source its trajectories, a fifth of them of tasks that other sources have too."""
    names = [name for name, size in SIZES.items() for _ in range(size)] + ["new"] * extra
    return [
        trajectory(
            number,
            source=source,
            user_query=f"Shared {number % 97}" if number % 5 == 0 else f"Question {number}",
        )
        for number, source in enumerate(names)
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("plan"))
    made.write_recipes(RECIPES, SOURCES)
    made.write_trajectories(trajectories())
    made.build()
    return made


@pytest.fixture(scope="module")
def plans(workspace: Workspace) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(recipe, split) → the plan's rows in order."""
    return read_plans(workspace)


def read_plans(workspace: Workspace) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in workspace.query("select * from training_plan order by recipe, split, position"):
        found.setdefault((row["recipe"], row["split"]), []).append(row)
    return found


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["trajectory_id"] for row in rows]


Plans = dict[tuple[str, str], list[dict[str, Any]]]


def test_positions_run_on_over_all_epochs(plans: Plans) -> None:
    for rows in plans.values():
        assert [row["position"] for row in rows] == list(range(len(rows)))
        assert [row["epoch"] for row in rows] == sorted(row["epoch"] for row in rows)


def test_with_weight_and_temperature_1_an_epoch_is_one_pass_over_everything(plans: Plans) -> None:
    rows = plans["default", "train"]
    everything = set(ids(rows))
    for epoch in (1, 2, 3):
        of_epoch = [row for row in rows if row["epoch"] == epoch]
        assert sorted(ids(of_epoch)) == sorted(everything)
        assert {row["pass"] for row in of_epoch} == {epoch}


def test_every_pass_over_a_source_is_a_permutation_of_its_own(plans: Plans) -> None:
    passes = [
        [
            row["trajectory_id"]
            for row in plans["default", "train"]
            if row["source"] == "big_00" and row["pass"] == number
        ]
        for number in (1, 2, 3)
    ]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    for one, other in ((0, 1), (0, 2), (1, 2)):
        in_place = sum(a == b for a, b in zip(passes[one], passes[other], strict=True))
        assert in_place < 10  # of about 1,100; one or two by chance


@pytest.mark.parametrize("name", ["default", "weighted", "levelled"])
def test_every_source_keeps_its_share_in_every_window(plans: Plans, name: str) -> None:
    sources = np.array([row["source"] for row in plans[name, "train"]])
    for length in (100, 1000):
        for source in np.unique(sources):
            count = np.cumsum(np.concatenate([[0], sources == source]))
            in_window = count[length:] - count[:-length]
            share = length * count[-1] / len(sources)
            assert abs(in_window - share).max() < 2, (source, length)


def test_weights_say_how_often_a_source_is_seen(plans: Plans) -> None:
    counted = Counter(row["source"] for row in plans["weighted", "train"])
    assert counted["big_00"] == 2 * 1.25 * 1200
    assert counted["big_02"] == 2 * 0.5 * 400
    assert counted["small_00"] == 3
    assert "big_01" not in counted  # weight 0
    per_row = Counter(ids([r for r in plans["weighted", "train"] if r["source"] == "big_00"]))
    assert set(per_row.values()) == {2, 3}  # no trajectory comes twice more than another


def test_temperature_levels_the_sources_at_the_same_length(plans: Plans) -> None:
    rows = plans["levelled", "train"]
    counted = Counter(row["source"] for row in rows)
    assert counted["big_00"] / counted["big_11"] == pytest.approx((1200 / 100) ** 0.5, rel=0.01)
    assert len(rows) == pytest.approx(3 * sum(SIZES.values()), abs=len(SIZES))


def test_no_trajectory_is_repeated_more_often_than_its_source_allows(plans: Plans) -> None:
    counted = Counter(row["source"] for row in plans["capped", "train"])
    assert counted["big_11"] == 2 * 100  # not 7 × 100
    assert counted["big_00"] == 1200  # the positions left over go to nobody else


def test_the_plan_ends_before_its_token_budget_does(plans: Plans, workspace: Workspace) -> None:
    tokens = {
        row["trajectory_id"]: row["estimated_tokens"]
        for row in workspace.query("select * from sft_samples where recipe = 'short'")
    }
    rows = plans["short", "train"]
    spent = sum(tokens[i] for i in ids(rows))
    assert 5_000 - max(tokens.values()) < spent <= 5_000
    # It is the beginning of the same plan without a budget, so shares hold.
    assert len({row["source"] for row in rows}) > 10


def test_a_task_is_in_one_split_whatever_source_and_recipe_it_is_in(
    plans: Plans, workspace: Workspace
) -> None:
    task = {
        row["trajectory_id"]: row["task_key"]
        for row in workspace.query("select trajectory_id, task_key from curated_trajectories")
    }
    for name in ("default", "same_seed"):
        train = {task[i] for i in ids(plans[name, "train"])}
        held_back = {task[i] for i in ids(plans[name, "eval"])}
        assert not train & held_back
        assert len(held_back) / len(train | held_back) == pytest.approx(0.1, abs=0.02)
    assert set(ids(plans["default", "eval"])) == set(ids(plans["same_seed", "eval"]))
    assert set(ids(plans["default", "eval"])) != set(ids(plans["other_seed", "eval"]))
    assert ("weighted", "eval") not in plans  # eval_fraction 0


def test_the_eval_split_has_every_row_once(plans: Plans) -> None:
    rows = plans["default", "eval"]
    assert len(set(ids(rows))) == len(rows)
    assert {(row["epoch"], row["pass"]) for row in rows} == {(1, 1)}


def test_a_seed_decides_the_order(plans: Plans) -> None:
    assert ids(plans["default", "train"]) == ids(plans["same_seed", "train"])
    assert ids(plans["default", "train"]) != ids(plans["other_seed", "train"])


def test_a_new_source_joins_without_moving_what_is_there(
    workspace: Workspace, plans: Plans, tmp_path: Path
) -> None:
    """In another lake, where the rows lie in another order, with a source dropped in later."""
    rows = trajectories(extra=50)
    random.Random(0).shuffle(rows)
    other = Workspace(tmp_path)
    other.write_recipes(RECIPES, SOURCES)
    other.write_trajectories([row for row in rows if row["source"] != "new"])
    other.build()
    assert read_plans(other) == plans

    other.write_trajectories(rows)
    other.build()
    grown = read_plans(other)
    assert "new" in {row["source"] for row in grown["default", "train"]}
    for split in ("train", "eval"):
        assert set(ids(plans["default", split])) <= set(ids(grown["default", split]))


def test_the_funnel_counts_every_record_of_every_source(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_trajectories(
        [trajectory(number) for number in range(5)]
        + [
            trajectory(10, rater_score=None, rating_status="refused"),
            trajectory(11, rater_score=None, rating_status=None),
            trajectory(12, rater_score=1.0),
            trajectory(13, steps=[step(is_trainable=False)]),
            trajectory(14, content_sha256=trajectory(0)["content_sha256"]),
        ],
        refused=[{"raw_record_id": f"r{i}", "source": "unreadable"} for i in range(3)],
    )
    workspace.build()
    of_a, unreadable = workspace.query("select * from funnel order by source")
    assert of_a | {"train_positions": 0, "train_trajectories": 0, "eval_trajectories": 0} == {
        "recipe": "default",
        "source": "a",
        "raw_records": 10,
        "quarantined": 0,
        "trajectories": 10,
        "rated": 8,
        "source_excluded": 0,
        "source_not_in_recipe": 0,
        "not_rated": 2,
        "benchmark_overlap": 0,
        "filtered": 1,
        "no_trainable_output": 1,
        "duplicate_content": 1,
        "near_duplicate": 0,
        "over_quota": 0,
        "kept": 5,
        "salvaged": 0,
        "kept_tasks": 5,
        "train_positions": 0,
        "train_trajectories": 0,
        "eval_trajectories": 0,
    }
    assert of_a["train_trajectories"] + of_a["eval_trajectories"] == 5
    assert of_a["train_positions"] == 3 * of_a["train_trajectories"]
    assert (unreadable["raw_records"], unreadable["quarantined"]) == (3, 3)
    assert unreadable["trajectories"] == unreadable["train_positions"] == 0


def test_nothing_is_written_again_where_nothing_changed(workspace: Workspace) -> None:
    before = sorted(workspace.lake.rglob("*.json"))
    workspace.build()
    assert sorted(workspace.lake.rglob("*.json")) == before


def test_a_filter_that_cannot_be_used_ends_the_build_with_its_place(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_trajectories([trajectory(1)])
    workspace.write_recipes(
        [RECIPE, RECIPE | {"recipe": "mine", "filter": "rater_score > 4 and ratng_ok"}],
        [EVERY_SOURCE, entry("mine")],
    )
    printed = workspace.build(ok=False)
    assert "Recipe 'mine'" in printed
    assert "at line 1, column 21: `ratng_ok` is not a column" in printed
    assert not (workspace.lake / "curated_trajectories").exists()


def test_recipes_that_cannot_be_used_end_the_build_before_any_table(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_trajectories([trajectory(1)])
    unusable = {
        "../mine": recipe("../mine"),
        "no_epochs": recipe("no_epochs", epochs=0),
        "all_eval": recipe("all_eval", eval_fraction=1),
        "cold": recipe("cold", temperature=0),
        "no_tokens": recipe("no_tokens", token_budget=0),
        "no_sources": recipe("no_sources"),
        "negative": recipe("negative"),
        "never": recipe("never"),
        "twice": recipe("twice"),
    }
    workspace.write_recipes(
        [RECIPE, *unusable.values()],
        [
            *(entry(name) for name in ["default", *unusable] if name != "no_sources"),
            entry("negative", "a", weight=-1),
            entry("never", "a", max_repeats=0),
            entry("twice"),
            entry("unknown"),
        ],
    )
    printed = workspace.build(ok=False)
    assert "FAIL 1 relationships_recipe_sources_recipe__recipe__ref_recipes_" in printed
    assert f"FAIL {len(unusable)} assert_recipes_are_usable" in printed
    assert not (workspace.lake / "recipe_settings").exists()
    with duckdb.connect(workspace.environment["TRAJLAKE_DB"]) as connection:
        (sql,) = workspace.project.rglob("target/compiled/**/assert_recipes_are_usable.sql")
        reasons = connection.sql(sql.read_text())
        assert {row[0] for row in reasons.fetchall()} == set(unusable)
