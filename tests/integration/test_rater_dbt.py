"""The models of `models/rating` as `dbt build` runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from _judge_server import JudgeServer

from udfs import lake


def rated(workplace: Path) -> dict[str, tuple[Any, ...]]:
    """The current ratings, as another process sees them: query → model, score, status."""
    with duckdb.connect(workplace / "trajlake.duckdb", read_only=True) as connection:
        lake.load_delta_extension(connection)
        rows = connection.sql(
            "select user_query, rate_model, rater_score, rating_status from rated_trajectories"
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


def test_a_build_rates_by_rules_and_then_by_a_judge(
    workplace: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    chats = workplace / "raw" / "chats"
    chats.mkdir()
    (chats / "chats.jsonl").write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": query},
                        {"role": "assistant", "content": "It is 42."},
                    ]
                }
            )
            + "\n"
            for query in ("task 4", "task 5 do:prose")
        )
    )
    run("dbt", "build", "--select", "+rated_trajectories")
    assert rated(workplace) == {
        "task 4": ("rules", 5.0, "ok"),
        "task 5 do:prose": ("rules", 5.0, "ok"),
    }

    judge = JudgeServer()
    monkeypatch.setenv("OPENAI_BASE_URL", judge.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    settings = "{rater: openai, rater_model: judge-1}"
    run("dbt", "build", "--select", "+rated_trajectories", "--vars", settings)
    judge.close()

    assert rated(workplace) == {
        "task 4": ("judge-1", 4.0, "ok"),
        "task 5 do:prose": ("judge-1", None, "unparseable"),
    }
    assert judge.bodies[0]["temperature"] == 0
    with lake.connect() as connection:
        assert connection.sql("select count(*) from ratings").fetchall() == [(4,)]


def test_another_context_rates_again_and_a_build_takes_no_offence(
    workplace: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shortened run is rated anew by a larger context: a second settled rating of one rater."""
    chats = workplace / "raw" / "chats"
    chats.mkdir()
    turns = [
        {"role": "user", "content": "task 4"},
        {"role": "assistant", "content": "It is 42. " * 3_000},
    ]
    (chats / "chats.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    judge = JudgeServer()
    monkeypatch.setenv("OPENAI_BASE_URL", judge.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")

    def build(context_tokens: int, long: str) -> tuple[Any, ...]:
        settings = {
            "rater": "openai",
            "rater_model": "judge-1",
            "rater_context_tokens": context_tokens,
            "rater_long": long,
        }
        run("dbt", "build", "--select", "+rated_trajectories", "--vars", json.dumps(settings))
        with duckdb.connect(workplace / "trajlake.duckdb", read_only=True) as connection:
            lake.load_delta_extension(connection)
            (found,) = connection.sql(
                "select rater_score, rating_status, shown_share from rated_trajectories"
            ).fetchall()
        return found

    small, large = build(4_000, "shorten"), build(6_000, "shorten")
    assert small[:2] == large[:2] == (4.0, "ok") and 0 < small[2] < large[2] < 1
    # The older score stays, and says how much was read for it.
    assert build(6_000, "too_long") == large
    judge.close()
    assert len(judge.bodies) == 2
