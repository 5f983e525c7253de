"""What a trained rater may see of a trajectory, and what not."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udfs.formats import react_chat
from udfs.formats.trajectory import Options
from udfs.rater.features import FEATURES_VERSION, NAMES, features
from udfs.rater.local_rater import FeatureModel, identities


def step(output: str, seen: str | None, **fields: Any) -> dict[str, Any]:
    source = {"source": "environment", "name": None, "call_id": None, "content": seen}
    return {
        "step_id": 1,
        "input": None,
        "thought": None,
        "output": output,
        "tool_calls": [],
        "observations": [source] if seen is not None else [],
        "next_observation": seen,
        "is_trainable": True,
    } | fields


def run(verdict: str) -> list[dict[str, Any]]:
    return [
        step(
            "Action: search[capital of Peru]", "Lima is the capital of Peru.", thought="I search."
        ),
        step("Action: finish[Lima]", verdict, thought="The capital of Peru is Lima."),
    ]


def test_the_environments_verdict_is_not_read() -> None:
    right, wrong = run("Episode finished, reward = True"), run("Episode finished, reward = False")
    assert features(right, "Capital of Peru?") == features(wrong, "Capital of Peru?")
    torch_text = pytest.importorskip("udfs.rater.text_model", reason="needs the extra `train`")
    shown = torch_text.visible_text(right, "Capital of Peru?")
    assert shown == torch_text.visible_text(wrong, "Capital of Peru?")
    assert "Lima is the capital of Peru." in shown and "finish[Lima]" in shown
    assert "reward" not in shown


def test_features_say_what_they_are_called() -> None:
    found = features(run("Episode finished, reward = True"), "What is the capital of Peru?")
    assert (found["steps"], found["calls"]) == (2, 2)
    assert found["answer_in_observations"] == found["answer_in_last_thought"] == 1
    assert found["answer_in_question"] == 0
    assert (found["asks_what"], found["asks_yes_no"], found["answer_is_yes_no"]) == (1, 0, 0)
    hedged = run("")
    hedged[1] |= {"thought": "I could not find it.", "output": "Action: finish[not found]"}
    found = features(hedged, "What is the capital of Peru?")
    assert found["answer_gives_up"] == 1 and found["answer_in_observations"] == 0


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [step("", None)],
        [step("Hello.", None)],
        [step("x" * 200_000, "y" * 200_000)] * 2,
        [step("", None, tool_calls=[{"call_id": None, "name": None, "arguments": None}])],
    ],
    ids=["none", "empty", "plain", "huge", "nameless call"],
)
def test_every_trajectory_has_the_same_finite_features(steps: list[dict[str, Any]]) -> None:
    found = features(steps, None)
    assert tuple(found) == NAMES
    assert all(math.isfinite(value) for value in found.values())


def test_real_runs_give_nothing_of_their_outcome_away(shared: Path) -> None:
    records = json.loads((shared / "raw/fireact_hotpotqa/gpt-3.5-turbo-0613.json").read_text())
    for key, record in list(records.items())[:150]:
        turned = json.loads(
            json.dumps(record)
            .replace("reward = True", "reward = X")
            .replace("reward = False", "reward = True")
            .replace("reward = X", "reward = False")
        )
        turned |= {"em": not record["em"], "f1": 1 - record["f1"], "reward": not record["reward"]}
        found = [
            features(
                [_as_row(s, place) for place, s in enumerate(trajectory.steps)],
                trajectory.user_query,
            )
            for r in (record, turned)
            for trajectory in react_chat.parse(copy.deepcopy(r), key, Options())
        ]
        assert found[0] == found[1], key


def _as_row(found: Any, place: int) -> dict[str, Any]:
    seen = [{"source": o.source, "content": o.content} for o in found.observations]
    return step(found.output, None) | {
        "input": found.input,
        "thought": found.thought,
        "observations": seen,
    }


def test_a_run_is_known_by_its_content_and_its_task() -> None:
    one = identities({"content_sha256": "a", "user_query": " Capital  of Peru? "})
    other = identities({"content_sha256": "b", "user_query": "capital of\nperu?"})
    assert len(one & other) == 1 and one != other
    assert identities({"content_sha256": "a", "user_query": None}) == {"a"}


def test_a_value_beyond_those_of_the_training_counts_as_the_nearest_of_them() -> None:
    """Or a question of a thousand words would be a good answer by its length alone."""
    names = len(NAMES)
    weights = np.zeros(names)
    weights[at := NAMES.index("question_words")] = 1.0
    model = FeatureModel(
        {
            "features_version": FEATURES_VERSION,
            "names": NAMES,
            "lowest": np.full(names, 5.0),
            "highest": np.full(names, 40.0),
            "mean": np.full(names, 20.0),
            "scale": np.full(names, 10.0),
            "weights": weights,
            "intercept": 0.0,
        }
    )
    questions = np.zeros((5, names))
    questions[:, at] = [0, 5, 30, 40, 1_000]
    none, shortest, usual, longest, endless = model.shares(questions)
    assert none == shortest < usual < longest == endless < 0.9
