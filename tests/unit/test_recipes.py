"""What a recipe's filter may say, and how one that cannot be used is refused."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.errors import ConfigError
from udfs.recipes import FILTER_COLUMNS, checked_filter

PROJECT = Path(__file__).resolve().parents[2]


def passing(expression: str, rows: list[dict[str, object]]) -> list[object]:
    """Of rows given by some of their columns, the ids of those that pass."""
    names = FILTER_COLUMNS.names
    table = pa.Table.from_pylist([dict.fromkeys(names) | row for row in rows], FILTER_COLUMNS)
    with duckdb.connect() as connection:
        connection.register("measured_trajectories", table)
        condition = checked_filter("r", "filter", expression)
        found = connection.sql(f"select trajectory_id from measured_trajectories where {condition}")
        return [row[0] for row in found.fetchall()]


def refusal(expression: str | None) -> str:
    with pytest.raises(ConfigError) as error:
        checked_filter("mine", "filter", expression)
    return str(error.value)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("rater_score >= 4.0", ["good", "short"]),
        ("rater_score >= 4 and len(steps) >= 2", ["good"]),
        ("source in ('a', 'b') and not is_synthetic", ["good"]),
        ("user_query like 'Who%' or lower(environment) = 'web'", ["good", "bad"]),
        ("cast(other_information ->> '$.f1' as double) > 0.5", ["good"]),
        ("case source when 'a' then score > 0.5 else rater_score > 4 end", ["good", "short"]),
        ("coalesce(score, rater_score / 5) between 0.9 and 1", ["good", "short"]),
        ("task_id is null", ["short", "bad"]),
        ("rated_at < timestamptz '2026-01-01 00:00:00+00'", []),
        ("format_ok", ["good"]),
        ("format_ok is not false and calls_checked <= calls", ["good"]),
        ("error_observations <= 1 and not contains(error_classes, 'timeout')", ["good"]),
        ("rater_votes >= 2 and rater_spread <= 1 and rater_stddev < 1", ["good"]),
        ("shown_share = 1", ["good"]),
        ("true -- all of them", ["good", "short", "bad"]),
    ],
)
def test_a_filter_keeps_what_it_says(expression: str, expected: list[str]) -> None:
    rows: list[dict[str, object]] = [
        {
            "trajectory_id": "good",
            "source": "a",
            "task_id": "7",
            "user_query": "Who?",
            "score": 1.0,
            "rater_score": 4.5,
            "steps": [{"step_id": 1}, {"step_id": 2}],
            "is_synthetic": False,
            "other_information": '{"f1": 0.9}',
            "calls": 2,
            "calls_checked": 2,
            "format_ok": True,
            "error_observations": 1,
            "error_classes": ["not_found"],
            "rater_votes": 3,
            "rater_spread": 1.0,
            "rater_stddev": 0.5,
            "shown_share": 1.0,
        },
        {
            "trajectory_id": "short",
            "source": "b",
            "rater_score": 4.6,
            "steps": [{"step_id": 1}],
            "other_information": '{"f1": "none"}',
            "format_ok": False,
            "error_observations": 1,
            "error_classes": ["timeout"],
            "rater_votes": 1,
            "shown_share": 0.4,
        },
        {
            "trajectory_id": "bad",
            "source": "c",
            "environment": "WEB",
            "rater_score": 1.0,
            "other_information": "{}",
        },
    ]
    assert passing(expression, rows) == expected


@pytest.mark.parametrize(
    ("expression", "place", "what"),
    [
        ("rater_score > 4 and exists (select 1)", "column 29", "subquery"),
        ("score in (from secrets)", "mine", "`(SELECT * FROM secrets)` is not allowed"),
        ("rater_score > 4; drop table ratings", "column 16", "second statement"),
        ("read_text('/etc/passwd') is not null", "column 1", "`read_text` is not allowed"),
        ("rater_score > 4\n  or getenv('HOME') = 'x'", "line 2, column 6", "`getenv`"),
        ("random() > 0.5", "column 1", "`random` is not allowed"),
        ("rated_at < now()", "column 12", "`now` is not allowed"),
        ("row_number() over () < 5", "column 1", "not allowed"),
        ("score = max(score)", "column 9", "`MAX(score)` is not allowed"),
        ("steps[1].output = 'x'", "column 1", "not allowed"),
        ("len(list_filter(steps, lambda s: true)) > 1", "column 5", "`list_filter`"),
        ("rater_score > $1", "mine", "`$1` is not allowed"),
        ("raterscore >= 4", "column 1", "`raterscore` is not a column"),
        ("score > 0 and ratings.rater_score > 4", "column 15", "`ratings.rater_score`"),
        ("rater_score >= 4 limit 5", "column 18", "does not parse at `limit`"),
        ("rater_score >= ", "column 13", "does not parse"),
        ("score::struct(a int) is null", "column 1", "a cast to"),
        ("source = 'a", "mine", "missing quote"),
        ("rater_score", "mine", "gives DOUBLE; a filter is a condition"),
        ("rater_score >= 'high'", "mine", "Could not convert string 'high' to DOUBLE"),
        ("lower(score) = 'x'", "mine", "lower(DOUBLE)"),
        ("regexp_matches(source, '(')", "mine", "missing )"),
        ("", "mine", "it is empty"),
        ("-- rater_score >= 4", "mine", "it is empty"),
        (None, "mine", "it is empty"),
    ],
)
def test_what_is_not_listed_is_refused_with_its_place(
    expression: str | None, place: str, what: str
) -> None:
    message = refusal(expression)
    assert message.startswith("Recipe 'mine': the filter `")
    assert place in message
    assert what in message
    assert message.endswith("Change it in dbt_project/seeds/recipes.csv.")


def test_a_refusal_says_what_may_be_used_instead() -> None:
    assert "rater_score" in refusal("raterscore >= 4")
    assert "regexp_matches" in refusal("regexp_full_match(source, 'a')")


def test_a_comment_cannot_reach_the_models_sql() -> None:
    assert checked_filter("r", "filter", "rater_score >= 4 -- ) or (true") == "rater_score >= 4"
    assert checked_filter("r", "filter", "rater_score >= 4 /* ) or (true */") == "rater_score >= 4"


@settings(deadline=None)
@given(st.text(max_size=40))
def test_a_text_of_the_filter_stays_a_text(text: str) -> None:
    """Whatever stands between quotes is compared, and is no SQL."""
    quoted = text.replace("\x00", "").replace("'", "''")
    rows: list[dict[str, object]] = [{"trajectory_id": "t", "source": text.replace("\x00", "")}]
    assert passing(f"source = '{quoted}'", rows) == ["t"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_a_condition_or_a_refusal(text: str) -> None:
    try:
        sql = checked_filter("r", "filter", text)
    except ConfigError:
        return
    with duckdb.connect() as connection:
        connection.register("measured_trajectories", FILTER_COLUMNS.empty_table())
        connection.sql(f"select ({sql}) as passes from measured_trajectories").fetchall()
