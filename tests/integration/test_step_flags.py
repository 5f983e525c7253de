"""The models `trajectory_flags` and `step_flags` as `dbt build` runs them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from udfs import lake, settings

PROJECT = Path(__file__).resolve().parents[2]
BUILD = ("dbt", "build", "--select", "+trajectory_flags", "step_flags")
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}},
            "required": ["a"],
        },
    },
}


def chat(query: str, *turns: tuple[str, str, str], answer: str = "Done.") -> dict[str, Any]:
    """A run: per turn the function, its arguments and what came back, then an answer."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": query}]
    for number, (name, arguments, observation) in enumerate(turns):
        call = {"name": name, "arguments": arguments}
        calls = [{"id": str(number), "type": "function", "function": call}]
        messages += [
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": str(number), "content": observation},
        ]
    return {
        "tools": [TOOL],
        "messages": [*messages, {"role": "assistant", "content": answer}],
    }


def screen(number: int, gesture: float) -> dict[str, Any]:
    """A step of a run on a phone: one row of several, with one gesture."""
    return {
        "episode_id": "7",
        "episode_length": 9,
        "step_id": number,
        "goal_info": "Open the camera",
        "image/ui_annotations_text": ["the same screen"],
        "results/action_type": "touch",
        "results/yx_touch": [0.5, gesture],
    }


RUNS = [
    chat("Right?", ("add", '{"a": 1}', "1")),
    chat("Mended?", ("plus", '{"a": 1}', "Error: unknown tool plus"), ("add", '{"a": 1}', "1")),
    chat("Refused?", ("add", '{"b": 1}', "Request timed out."), ("add", '{"a": 1', "?")),
]


def put(workplace: Path, name: str, records: list[Any]) -> None:
    path = workplace / "raw" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def flagged() -> dict[tuple[str, int], tuple[Any, ...]]:
    """(query, step) → its flags, its error's class, and whether it is learned from."""
    with duckdb.connect(settings.database_file(), read_only=True) as connection:
        lake.load_delta_extension(connection)
        rows = connection.sql(
            """
            select user_query, step_id, step_flags.flags, error_class, step_flags.is_trainable
            from step_flags
            inner join trajectories using (trajectory_id)
            """
        ).fetchall()
    return {row[:2]: row[2:] for row in rows}


def version() -> int:
    table = lake.open_table("trajectory_flags")
    assert table is not None
    return table.version()


def test_flags_reach_the_view_and_only_new_or_grown_runs_are_flagged_again(
    workplace: Path, run: Callable[..., Any]
) -> None:
    put(workplace, "chats/1", RUNS)
    put(workplace, "phone/1", [screen(0, 0.1), screen(1, 0.1)])
    run(*BUILD)

    failed = ["error_observation", "invalid_action", "unknown_tool"]
    chats = {
        ("Right?", 1): ([], None, True),
        ("Right?", 2): ([], None, True),
        ("Mended?", 1): (failed, "unknown_tool", False),
        ("Mended?", 2): (["self_correction"], None, True),
        ("Mended?", 3): ([], None, True),
        ("Refused?", 1): (["error_observation", "schema_violation"], "timeout", False),
        ("Refused?", 2): (["malformed_call"], None, False),
        ("Refused?", 3): ([], None, True),
    }
    phone = {("Open the camera", n): ([], None, True) for n in (1, 2)}
    assert flagged() == chats | phone

    before = version()
    run(*BUILD)
    assert version() == before

    put(workplace, "chats/2", [chat("Late?", ("add", '{"a": 2}', "2"))])
    put(workplace, "phone/2", [screen(n, 0.1) for n in (2, 3)])
    run(*BUILD)
    late = {("Late?", n): ([], None, True) for n in (1, 2)}
    found = flagged()
    grown = {place: found.pop(place) for place in list(found) if place[0] == "Open the camera"}
    assert found == chats | late
    assert {place: flags for place, (flags, _, _) in grown.items()} == {
        ("Open the camera", 1): [],
        ("Open the camera", 2): ["loop", "repeated_action"],
        ("Open the camera", 3): ["loop", "repeated_action"],
        ("Open the camera", 4): [],
    }


def test_what_is_unmasked_is_what_messages_learn_from(
    workplace: Path, run: Callable[..., Any]
) -> None:
    shutil.copytree(PROJECT / "raw", workplace / "raw", dirs_exist_ok=True)
    run("dbt", "run", "--select", "+trajectory_flags", "+conversations")
    with lake.connect() as connection:
        differing = connection.sql(
            """
            with messages as (
                select
                    trajectory_id,
                    unnest(message_steps) as step_id,
                    unnest(agent_flags) as is_agent,
                from conversations
            ),

            steps as (
                select trajectory_id, unnest(steps, recursive := true) from trajectories
            ),

            learned as (
                select trajectory_id, list(step_id order by step_id) as steps
                from messages
                inner join steps using (trajectory_id, step_id)
                where is_agent and is_trainable
                group by trajectory_id
            )

            select trajectory_id, unmasked_steps, learned.steps
            from trajectory_flags
            left join learned using (trajectory_id)
            where unmasked_steps is distinct from coalesce(learned.steps, [])
            """
        ).fetchall()
    assert differing == []
