"""Preference pairs: which two runs make one, and where they part, built by dbt."""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import duckdb
import pytest
from _curation_fixtures import EVERY_SOURCE, RECIPE, Workspace, step, trajectory

from udfs.lake import load_delta_extension

QUERY = "Who painted the harbour?"
# A template in which many instruction-tuned models were asked.
FRAMED = f"Below is a task. Write a response.\n\n### Instruction:\n{QUERY}\n\n### Response:"

Row = dict[str, Any]


def call(call_id: str, place: str) -> Row:
    """A step that calls a tool and sees what the tool says."""
    seen = {"source": "environment", "name": "look", "call_id": call_id, "content": f"At {place}."}
    arguments = f'{{"place": "{place}"}}'
    return step(
        "I look. ",
        tool_calls=[{"call_id": call_id, "name": "look", "arguments": arguments}],
        observations=[seen],
    )


def runs(task: str, *steps: list[Row], **fields: Any) -> list[Row]:
    """Runs at one task: the first is right, all others are wrong."""
    return [
        trajectory(
            number,
            **{"user_query": f"{QUERY} {task}", "format": "chat"} | fields,
            trajectory_id=f"{task} {number}",
            content_sha256=f"{task} {number}",
            score=float(number == 0),
            rater_score=4.0 - number / 1000,
            steps=[(made[0] | {"input": made[0]["input"] or f"{QUERY} {task}"}), *made[1:]],
        )
        for number, made in enumerate(steps)
    ]


def asked(run: Row, first_turn: str, **fields: Any) -> Row:
    """The same run with another first turn."""
    first, *others = run["steps"]
    return run | {"steps": [first | {"input": first_turn}, *others]} | fields


def lake() -> list[Row]:
    right, wrong = step("Finish[Ann]", observations=[]), step("Finish[Bea]", observations=[])
    at_length = step("Ann did, as the plate says. Finish[Ann]", observations=[])
    good, bad = runs("framed", [right], [wrong], user_query=QUERY)
    framed = [asked(good, QUERY), asked(bad, FRAMED)]
    good, bad = runs("few-shot", [right], [wrong], user_query="A harbour, by whom?")
    few_shot = [
        asked(good, "A harbour, by whom?"),
        asked(bad, "Example: Finish[Cy]. " * 20 + "A harbour, by whom?"),
    ]
    good, bad = runs("instructed", [right], [wrong])
    instructed = [good, bad | {"system_prompt": "Answer in French."}]
    good, bad = runs("equipped", [right], [wrong])
    equipped = [good, bad | {"tools": '[{"type": "function"}]'}]
    good, bad = runs("elsewhere", [right], [wrong])
    elsewhere = [good, bad | {"source": "b"}]
    return [
        *runs("whole", [right], [wrong]),
        *runs(
            "forked",
            [call("c1", "quay"), at_length, step(None, observations=[])],
            [call("c9", "quay"), call("c10", "mole"), wrong],
        ),
        *framed,
        *few_shot,
        *instructed,
        *equipped,
        *elsewhere,
        *runs("same words", [right], [step("finish [ann]", observations=[])]),
        # Only the environment does something else.
        *runs("luck", [step("Look"), right], [step("Look", observations=[]), wrong]),
        # The wrong one says nothing where the right one goes on.
        *runs("broken off", [call("c1", "quay"), right], [call("c1", "quay")]),
        *runs("masked", [right], [wrong | {"is_trainable": False}]),
        *runs("light", [right], [wrong], source="c"),
        *crowd(),
        *(run for number in range(8) for run in runs(f"more{number}", [right], [wrong])),
    ]


def door(trajectory_id: str) -> int:
    """Which of six a run of the crowd opens first."""
    return int(trajectory_id.split()[-1]) // 2 % 6


def crowd() -> list[Row]:
    """Sixty runs at one task: thirty are right, and six times ten begin with the same step."""
    return [
        trajectory(
            number,
            trajectory_id=f"crowd {number:02d}",
            content_sha256=f"crowd {number}",
            user_query="A crowd?",
            score=float(number % 2),
            rater_score=5.0 if number % 2 else 2.0,
            steps=[
                step(f"Open door {door(f'crowd {number}')}", input="A crowd?"),
                step(f"Finish[{number}]", observations=[]),
            ],
        )
        for number in range(60)
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("pairs"))
    made.write_recipes(
        [
            RECIPE | {"filter": "rater_score >= 3 and score > 0", "eval_fraction": 0.5},
            RECIPE | {"recipe": "of_b"},
        ],
        [
            EVERY_SOURCE,
            EVERY_SOURCE | {"source": "c", "weight": 0.5},
            EVERY_SOURCE | {"recipe": "of_b", "source": "b"},
        ],
    )
    made.write_trajectories(lake())
    made.build()
    return made


@pytest.fixture(scope="module")
def pairs(workspace: Workspace) -> dict[str, list[Row]]:
    """Task, as its runs are named → the recipe `default`'s pairs."""
    found: dict[str, list[Row]] = {}
    for row in workspace.query("select * from preference_pairs order by pair_id"):
        assert row["recipe"] == "default"  # the other recipe has one source, without rivals
        found.setdefault(row["chosen_id"].rsplit(" ", 1)[0], []).append(row)
    return found


Pairs = dict[str, list[Row]]


def test_runs_that_part_at_once_are_a_pair_as_wholes(pairs: Pairs) -> None:
    (pair,) = pairs["whole"]
    assert (pair["chosen_id"], pair["rejected_id"]) == ("whole 0", "whole 1")
    assert (pair["level"], pair["prefix_steps"]) == ("trajectory", 0)
    assert (pair["margin_on"], pair["margin"]) == ("score", 1.0)
    assert pair["is_same_prompt"]


def test_runs_that_part_later_are_a_pair_from_there(pairs: Pairs, workspace: Workspace) -> None:
    """The ids of calls are others in every run, and a run ends with the agent's last word."""
    (pair,) = pairs["forked"]
    assert (pair["level"], pair["prefix_steps"]) == ("step", 1)
    assert (pair["chosen_last_step"], pair["rejected_last_step"]) == (2, 3)
    tokens = {
        row["trajectory_id"]: row["message_tokens"]
        for row in workspace.query("select trajectory_id, message_tokens from conversations")
    }
    # The query, the call and what was seen are the prompt.
    assert pair["chosen_tokens"] == tokens["forked 0"][3]
    assert pair["rejected_tokens"] == sum(tokens["forked 1"][3:6])
    said = tokens["forked 1"][3] + tokens["forked 1"][5]
    assert pair["length_ratio"] == tokens["forked 0"][3] / said


def test_a_query_in_another_short_frame_is_the_same_prompt(pairs: Pairs) -> None:
    (pair,) = pairs["framed"]
    assert not pair["is_same_prompt"]
    assert "few-shot" not in pairs


@pytest.mark.parametrize("task", ["instructed", "equipped", "elsewhere"])
def test_other_prompts_tools_and_scales_are_not_compared(pairs: Pairs, task: str) -> None:
    assert task not in pairs


@pytest.mark.parametrize("task", ["same words", "luck", "broken off", "masked"])
def test_a_pair_parts_at_something_that_both_agents_say(pairs: Pairs, task: str) -> None:
    assert task not in pairs


def test_of_many_runs_few_make_pairs_and_none_makes_many(pairs: Pairs) -> None:
    for level in ("trajectory", "step"):
        of_crowd = [row for row in pairs["crowd"] if row["level"] == level]
        assert len(of_crowd) == 8
        for side in ("chosen_id", "rejected_id"):
            counted = Counter(row[side] for row in of_crowd)
            assert max(counted.values()) <= 2 and len(counted) >= 4
        same_door = {door(row["chosen_id"]) == door(row["rejected_id"]) for row in of_crowd}
        assert same_door == {level == "step"}


def test_a_pair_weighs_what_the_recipe_gives_its_source(pairs: Pairs) -> None:
    assert {row["weight"] for row in pairs["light"]} == {0.5}
    assert {row["weight"] for row in pairs["whole"] + pairs["crowd"]} == {1.0}


def test_all_pairs_of_a_task_are_in_the_split_of_its_samples(
    pairs: Pairs, workspace: Workspace
) -> None:
    splits = {
        row["trajectory_id"]: row["split"]
        for row in workspace.query("select * from sft_samples where recipe = 'default'")
    }
    rows = [row for found in pairs.values() for row in found]
    assert {row["split"] for row in rows} == {"train", "eval"}
    assert all(splits[row["chosen_id"]] == row["split"] for row in rows)


def test_pairs_are_the_same_whatever_the_order_of_rows_and_nothing_is_written_twice(
    workspace: Workspace, pairs: Pairs, tmp_path: Path
) -> None:
    before = sorted(workspace.lake.rglob("*.json"))
    workspace.build()
    assert sorted(workspace.lake.rglob("*.json")) == before

    rows = lake()
    random.Random(0).shuffle(rows)
    workspace.write_trajectories(rows)
    workspace.build()
    again = workspace.query("select * from preference_pairs order by pair_id")
    assert sorted(again, key=lambda row: row["pair_id"]) == sorted(
        (row for found in pairs.values() for row in found), key=lambda row: row["pair_id"]
    )


def test_two_models_at_the_same_questions_give_pairs(
    workplace: Path, run: Callable[..., CompletedProcess[str]], shared: Path
) -> None:
    """FireAct's: 464 questions that both were asked, in two frames; the scores of 100 differ."""
    shutil.copytree(shared / "raw/fireact_hotpotqa", workplace / "raw/fireact_hotpotqa")
    run(str(Path(sys.executable).parent / "dbt"), "build", "-q", "--select", "+preference_pairs")
    with duckdb.connect(os.environ["TRAJLAKE_DB"]) as connection:
        load_delta_extension(connection)
        counted = connection.sql(
            "select level, reason, count(*), count(distinct task_key) from pair_candidates "
            "where margin_on = 'score' group by all order by all"
        ).fetchall()
        questions = connection.sql(
            """
            select count(*), count(distinct chosen.raw_file)
            from preference_pairs
            join trajectories as chosen on chosen_id = chosen.trajectory_id
            join trajectories as rejected on rejected_id = rejected.trajectory_id
            where
                trim(lower(chosen.user_query)) = trim(lower(rejected.user_query))
                and chosen.raw_file <> rejected.raw_file
                and chosen.score = 1 and rejected.score = 0
            """
        ).fetchall()
    assert counted == [
        ("step", "kept", 1, 1),
        ("trajectory", "kept", 88, 88),
        ("trajectory", "length_ratio", 11, 11),
    ]
    assert questions == [(89, 2)]  # and in either direction
