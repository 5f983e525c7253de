"""Settings of raters and committees: who gets a vote, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from udfs.errors import ConfigError
from udfs.rater import configured_raters

JUDGES = [{"model": "a"}, {"model": "b"}]


def raters(**settings: Any) -> list[dict[str, Any]]:
    return json.loads(configured_raters(json.dumps(settings)))


def test_one_rater_is_its_own_committee_and_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    (rules,) = raters(rater="rules")
    assert rules["rater_id"] == rules["committee_id"]
    assert (rules["rate_model"], rules["judge"], rules["is_tie_breaker"]) == ("rules", None, False)
    (judge,) = raters(rater="openai", model="a")
    assert judge["rater_id"] not in (rules["rater_id"], raters(rater="openai", model="b"))


def test_a_member_is_the_rater_that_it_would_be_alone() -> None:
    (alone,) = raters(rater="openai", model="a", parameters={"temperature": 1})
    members = raters(
        parameters={"temperature": 0},
        committee=[
            {"model": "a", "parameters": {"temperature": 1}, "samples": 2},
            {"rater": "rules"},
        ],
    )
    assert [m["judge"] for m in members] == ["a #1", "a #2", "rules"]
    assert members[0]["rater_id"] == alone["rater_id"] != members[1]["rater_id"]
    assert members[2]["rater_id"] == raters(rater="rules")[0]["rater_id"]


def test_how_votes_are_counted_changes_the_committee_and_no_rater() -> None:
    mean, median = raters(committee=JUDGES), raters(committee=JUDGES, aggregate="median")
    assert [m["rater_id"] for m in mean] == [m["rater_id"] for m in median]
    assert mean[0]["committee_id"] != median[0]["committee_id"]
    assert mean[0]["committee_name"] == "mean of a, b"
    third = raters(committee=JUDGES, tie_breaker={"model": "c", "when_spread_over": 1.0})
    assert [m["is_tie_breaker"] for m in third] == [False, False, True]


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"rater": "oracle"}, "Set the var `rater` to rules or openai"),
        ({"rater": "openai"}, "rater_model"),
        ({"modle": "a"}, "no setting modle"),
        ({"aggregate": "max"}, "mean, median, majority"),
        ({"max_trajectories": -1}, "Set 0 or more"),
        ({"committee": [{"model": "a", "tempreature": 1}]}, "tempreature cannot be set"),
        ({"committee": [{"model": "a", "max_usd": 1}]}, "max_usd cannot be set"),
        ({"committee": [{"model": "a"}, {"model": "a"}]}, "a is there twice"),
        (
            {"committee": [{"model": "a", "judge": "one"}, {"model": "a", "judge": "two"}]},
            "one, two are one rater",
        ),
        ({"committee": [{"model": "a", "samples": 0}]}, "samples of 'a' is 0"),
        (
            {"committee": [{"model": "a", "samples": 3, "parameters": {"temperature": 0}}]},
            "one answer paid for again",
        ),
        ({"committee": JUDGES, "min_votes": 3}, "there are 2 votes"),
        ({"tie_breaker": {"model": "c", "when_spread_over": 1}}, "rater_committee is empty"),
        ({"committee": JUDGES, "tie_breaker": {"model": "c"}}, "needs when_spread_over"),
        (
            {"committee": JUDGES[:1], "tie_breaker": {"model": "c", "when_spread_over": 1}},
            "two votes or more",
        ),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        raters(**settings)
    assert what in str(caught.value)
