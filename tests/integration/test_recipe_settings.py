"""What the columns of the recipe seeds do, in one build by dbt."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory

from udfs.lake import load_delta_extension
from udfs.recipes import FILTER_COLUMNS


def recipe(name: str, **fields: Any) -> dict[str, Any]:
    return RECIPE | {"recipe": name, "eval_fraction": 0.0} | fields


def entry(name: str, source: str = "*", **fields: Any) -> dict[str, Any]:
    return EVERY_SOURCE | {"recipe": name, "source": source} | fields


def quota(name: str, dimension: str, value: str, most: int) -> dict[str, Any]:
    return {"recipe": name, "dimension": dimension, "value": value, "max_trajectories": most}


def call(name: str) -> list[dict[str, Any]]:
    return [{"call_id": "c", "name": name, "arguments": "{}"}]


def seen(content: str) -> dict[str, Any]:
    observation = {"source": "environment", "name": None, "call_id": "c", "content": content}
    return {"observations": [observation], "next_observation": content}


TOOLS = '[{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]'

# Right, then a tool that is not there, then right again.
STUMBLING = [
    step("I search.", input="Find it.", tool_calls=call("search"), **seen("a page")),
    step("I look.", tool_calls=call("look"), **seen("Error: no tool named look")),
    step("I search on.", tool_calls=call("search"), **seen("another page")),
    step("It is 42.", observations=[], next_observation=None),
]


def rows() -> list[dict[str, Any]]:
    chats = [
        trajectory(
            number,
            source="chats",
            environment="desk",
            task_type="chat",
            score=number / 100,
            user_query=f"Chat {number}",
        )
        for number in range(20)
    ]
    runs = [
        trajectory(
            100 + number, source="runs", environment="shop", task_type="shopping", generator="g"
        )
        for number in range(40)
    ]
    unwanted = [trajectory(200 + number, source="unwanted") for number in range(5)]
    stumbling = [
        trajectory(
            300 + number,
            source="stumbling",
            format="chat",
            tools=TOOLS,
            steps=STUMBLING,
            rater_score=5.0 if number else 1.0,
        )
        for number in range(2)
    ]
    return chats + runs + unwanted + stumbling


RECIPES = [
    recipe("plain"),
    recipe("unmasked", masks_bad_steps=False),
    recipe("salvaging", salvage_filter="rater_score < 2"),
    recipe("mixed", agent_share=0.2),
    recipe("limited"),
    recipe("told", metadata_prefix="task_type source rater_score"),
]
SOURCES = [
    *(entry(each["recipe"], max_repeats=100) for each in RECIPES),
    entry("mixed", "chats", is_general=True, max_repeats=100),
]
QUOTAS = [
    quota("limited", "task_type", "*", 30),
    quota("limited", "task_type", "chat", 5),
    quota("limited", "environment", "shop", 7),
]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("recipes"))
    made.write_recipes(RECIPES, SOURCES, QUOTAS)
    made.write_trajectories(rows())
    made.build(variables={"exclude_sources": ["unwanted"]})
    return made


def verdicts(workspace: Workspace, name: str, **where: Any) -> list[dict[str, Any]]:
    found = workspace.query(
        f"select * from curated_trajectories where recipe = '{name}' order by trajectory_id"
    )
    return [row for row in found if all(row[key] == value for key, value in where.items())]


def test_an_excluded_source_is_in_no_recipe(workspace: Workspace) -> None:
    for each in RECIPES:
        reasons = {v["reason"] for v in verdicts(workspace, each["recipe"], source="unwanted")}
        assert reasons == {"source_excluded"}
    assert not workspace.query("select * from training_plan where source = 'unwanted'")


def test_a_misspelt_excluded_source_ends_the_build(workspace: Workspace, tmp_path: Path) -> None:
    other = Workspace(tmp_path)
    other.write_trajectories([trajectory(1)])
    printed = other.build(ok=False, variables={"exclude_sources": ["unwnted"]})
    assert "FAIL 1 assert_excluded_sources_exist" in printed


def test_bad_steps_stay_in_the_conversation_without_loss(workspace: Workspace) -> None:
    for name, learned in (("plain", [1, 3, 4]), ("unmasked", [1, 2, 3, 4])):
        (verdict,) = verdicts(workspace, name, source="stumbling", is_kept=True)
        assert verdict["trained_steps"] == learned
        (sample,) = workspace.query(
            f"""
            select loss_flags, messages, trained_tokens, sft_samples.estimated_tokens
            from sft_samples
            inner join conversations using (trajectory_id)
            where recipe = '{name}' and source = 'stumbling'
            """
        )
        contents = [message["content"] for message in sample["messages"]]
        assert "I look." in contents and "Error: no tool named look" in contents
        trained = [c for c, flag in zip(contents, sample["loss_flags"], strict=True) if flag]
        said = ["I search.", "I look.", "I search on.", "It is 42."]
        assert trained == [said[i - 1] for i in learned]
        assert 0 < sample["trained_tokens"] < sample["estimated_tokens"]


def test_a_failed_run_is_salvaged_up_to_its_first_error(workspace: Workspace) -> None:
    (verdict,) = verdicts(workspace, "salvaging", source="stumbling", rater_score=1.0)
    assert (verdict["reason"], verdict["trained_steps"]) == ("salvaged", [1])
    (verdict,) = verdicts(workspace, "plain", source="stumbling", rater_score=1.0)
    assert (verdict["reason"], verdict["is_kept"]) == ("filtered", False)
    (counted,) = workspace.query(
        "select kept, salvaged from funnel where recipe = 'salvaging' and source = 'stumbling'"
    )
    assert counted == {"kept": 2, "salvaged": 1}


def test_agents_runs_and_general_data_get_the_shares_that_were_asked_for(
    workspace: Workspace,
) -> None:
    plan = workspace.query("select source from training_plan where recipe = 'mixed'")
    counted = Counter(row["source"] for row in plan)
    assert counted["chats"] / len(plan) == pytest.approx(0.8, abs=0.01)
    # Among themselves, the others keep the proportion of their sizes.
    assert counted["runs"] / counted["stumbling"] == pytest.approx(40, rel=0.1)


def test_a_quota_keeps_the_best_of_each_value(workspace: Workspace) -> None:
    chats = verdicts(workspace, "limited", source="chats")
    kept = sorted(verdict["score"] for verdict in chats if verdict["is_kept"])
    assert kept == [0.15, 0.16, 0.17, 0.18, 0.19]
    dropped = {v["reason_detail"] for v in chats if v["reason"] == "over_quota"}
    assert dropped == {"task_type chat: 5"}
    runs = verdicts(workspace, "limited", source="runs", is_kept=True)
    assert len(runs) == 7  # its environment's quota is smaller than its task type's


def test_a_recipe_may_tell_the_model_where_a_trajectory_is_from(workspace: Workspace) -> None:
    told = workspace.query(
        "select distinct source, metadata_prefix from sft_samples where recipe = 'told'"
    )
    prefixes = {row["source"]: row["metadata_prefix"] for row in told}
    assert prefixes["chats"] == "source: chats\ntask_type: chat\nrater_score: 5.0"
    assert prefixes["stumbling"] == "source: stumbling\nrater_score: 5.0"  # no task type known
    none = workspace.query("select * from sft_samples where recipe = 'plain' and source = 'runs'")
    assert {row["metadata_prefix"] for row in none} == {None}


def test_shares_of_samples_and_tokens_are_reported_by_source_and_by_window(
    workspace: Workspace,
) -> None:
    sources = workspace.query("select * from plan_sources where recipe = 'mixed'")
    assert sum(row["requested_share"] for row in sources) == pytest.approx(1)
    assert sum(row["realised_share"] for row in sources) == pytest.approx(1)
    assert sum(row["trained_token_share"] for row in sources) == pytest.approx(1)
    by_source = {row["source"]: row for row in sources}
    assert by_source["chats"]["requested_share"] == pytest.approx(0.8)
    assert by_source["chats"]["passes"] == pytest.approx(by_source["chats"]["positions"] / 20)
    windows = workspace.query("select * from plan_windows where recipe = 'mixed'")
    for source in by_source:
        of_source = [row for row in windows if row["source"] == source]
        assert sum(row["positions"] for row in of_source) == by_source[source]["positions"]
    # Fewer than 1,000 positions are one window.
    assert {row["window_number"] for row in windows} == {0}


def test_a_filter_may_use_every_column_of_measured_trajectories(workspace: Workspace) -> None:
    with duckdb.connect(workspace.environment["TRAJLAKE_DB"], read_only=True) as connection:
        load_delta_extension(connection)
        theirs = connection.sql("select * from measured_trajectories limit 0")
        ours = connection.from_arrow(FILTER_COLUMNS.empty_table())
        assert dict(zip(ours.columns, ours.types, strict=True)) == dict(
            zip(theirs.columns, theirs.types, strict=True)
        )


def test_a_dropped_trajectory_can_be_read_with_its_reason(workspace: Workspace) -> None:
    (row,) = workspace.view("rejections", "recipe = 'plain' and source = 'stumbling'")
    assert (row["reason"], row["last_output"], row["step_count"]) == ("filtered", "It is 42.", 4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"agent_share": 1.5}, "assert_recipes_are_usable"),
        ({"agent_share": 0.5}, "assert_recipes_are_usable"),  # no source is general
        ({"metadata_prefix": "source licence"}, "assert_recipes_are_usable"),
        ({"excluded_benchmarks": "no_such_benchmark"}, "assert_excluded_benchmarks_exist"),
    ],
)
def test_settings_that_cannot_be_used_end_the_build(
    tmp_path: Path, fields: dict[str, Any], reason: str
) -> None:
    workspace = Workspace(tmp_path)
    workspace.write_trajectories([trajectory(1)])
    workspace.write_recipes([RECIPE | fields], [EVERY_SOURCE])
    printed = workspace.build(ok=False)
    assert "FAIL" in printed and reason in printed
    assert not (workspace.lake / "training_plan").exists()
