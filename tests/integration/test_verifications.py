"""The model `verifications` as `dbt build` runs it: what is new is verified, nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from udfs import lake


def chat(query: str, function: str, observation: str) -> dict[str, Any]:
    """A run with one call of a tool; only `add` is there to be called."""
    schema = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    call = {"name": function, "arguments": '{"a": 1}'}
    return {
        "tools": [{"type": "function", "function": {"name": "add", "parameters": schema}}],
        "messages": [
            {"role": "user", "content": query},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "type": "function", "function": call}],
            },
            {"role": "tool", "tool_call_id": "1", "content": observation},
            {"role": "assistant", "content": "Done."},
        ],
    }


def screen(number: int) -> dict[str, Any]:
    """A step of a run on a phone: one row of several, with one gesture."""
    return {
        "episode_id": "7",
        "episode_length": 2,
        "step_id": number,
        "goal_info": "Open the camera",
        "image/ui_annotations_text": [f"screen {number}"],
        "results/action_type": "touch",
        "results/yx_touch": [0.5, number / 10],
    }


def verified() -> dict[str, tuple[Any, ...]]:
    """query → what its verification says."""
    with lake.connect() as connection:
        rows = connection.sql(
            """
            select
                user_query, calls, calls_checked, format_ok,
                list_transform(failures, lambda f: f.failure), error_classes
            from verifications
            inner join trajectories using (trajectory_id, content_sha256)
            """
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


def version() -> int:
    table = lake.open_table("verifications")
    assert table is not None
    return table.version()


def test_a_build_verifies_what_is_new(workplace: Path, run: Callable[..., Any]) -> None:
    def build(**files: list[Any]) -> None:
        for name, records in files.items():
            path = workplace / "raw" / f"{name.replace('__', '/')}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        run("dbt", "build", "--select", "+verifications")

    build(
        chats__1=[chat("Right?", "add", "2"), chat("Wrong?", "plus", "Error: unknown tool plus")],
        phone__1=[screen(0)],
    )
    right, wrong = (1, 1, True, [], []), (1, 1, False, ["unknown_tool"], ["unknown_tool"])
    assert verified() == {
        "Right?": right,
        "Wrong?": wrong,
        "Open the camera": (1, 0, None, [], []),
    }

    before = version()
    build()
    assert version() == before

    build(chats__2=[chat("Late?", "add", "Request timed out.")], phone__2=[screen(1)])
    assert verified() == {
        "Right?": right,
        "Wrong?": wrong,
        "Late?": (1, 1, True, [], ["timeout"]),
        "Open the camera": (2, 0, None, [], []),
    }
