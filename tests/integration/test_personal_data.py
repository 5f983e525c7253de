"""The model `personal_data` as `dbt build` runs it, and `redact` as SQL calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb

from udfs import lake
from udfs.functions import register_functions


def chat(query: str, answer: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": query}, {"role": "assistant", "content": answer}]
    return {"messages": turns}


def screen(number: int, text: str) -> dict[str, Any]:
    """A step of a run on a phone: one row of several, with one gesture."""
    return {
        "episode_id": "7",
        "episode_length": 2,
        "step_id": number,
        "goal_info": "Open the mail",
        "image/ui_annotations_text": [text],
        "results/action_type": "touch",
        "results/yx_touch": [0.5, 0.1],
    }


def searched() -> dict[str, tuple[list[str], int]]:
    """query → kinds and number of findings."""
    with lake.connect() as connection:
        rows = connection.sql(
            """
            select user_query, kinds, finding_count
            from personal_data
            inner join trajectories using (trajectory_id, content_sha256)
            """
        ).fetchall()
    return {row[0]: row[1:] for row in rows}


def table() -> Any:
    found = lake.open_table("personal_data")
    assert found is not None
    return found


def test_a_build_searches_what_is_new(workplace: Path, run: Callable[..., Any]) -> None:
    def build(**files: list[Any]) -> None:
        for name, records in files.items():
            path = workplace / "raw" / f"{name.replace('__', '/')}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        run("dbt", "build", "--select", "+personal_data")

    build(
        chats__1=[chat("Who?", "Write to ann@lee.org."), chat("What?", "Nothing.")],
        phone__1=[screen(0, "Inbox")],
    )
    assert searched() == {
        "Who?": (["email"], 1),
        "What?": ([], 0),
        "Open the mail": ([], 0),
    }
    with lake.connect() as connection:
        (finding,) = connection.sql("select unnest(findings) from personal_data").fetchall()
    assert finding[0] == {
        "step_id": 1,
        "field": "output",
        "kind": "email",
        "excerpt": "a…@l….org",
    }

    version = table().version()
    build()
    assert table().version() == version

    build(
        chats__2=[chat("Late?", "password=hunter2")],
        phone__2=[screen(1, "From bob@lee.org")],
    )
    assert searched() == {
        "Who?": (["email"], 1),
        "What?": ([], 0),
        "Late?": (["password"], 1),
        # The run has grown, and its row is replaced: the screen that the first step led to is
        # what the second one sees.
        "Open the mail": (["email"], 2),
    }

    # Nothing that was found is in the table, in whatever column.
    rows = json.dumps(table().to_pyarrow_table().to_pylist())
    assert "lee.org" not in rows and "hunter2" not in rows


def test_sql_redacts_a_text() -> None:
    with duckdb.connect() as connection:
        register_functions(connection)
        rows = connection.sql(
            "select redact(t) from (values ('Call +49 30 901820'), (null), ('42')) as v (t)"
        ).fetchall()
    assert rows == [("Call [PHONE]",), (None,), ("42",)]


def test_records_by_others_have_what_a_reader_found_in_them(
    shared: Path, workplace: Path, run: Callable[..., Any]
) -> None:
    """Every finding in these two sources was looked at; none is a number of another kind."""
    for source in ("fireact_hotpotqa", "toolbench_dfs"):
        (workplace / "raw" / source).symlink_to(shared / "raw" / source)
    run("dbt", "run", "--select", "+personal_data")
    with lake.connect() as connection:
        found = connection.sql(
            """
            select source, finding.kind, count(*)
            from (
                select source, unnest(findings) as finding
                from personal_data
                inner join trajectories using (trajectory_id)
            )
            group by all
            order by all
            """
        ).fetchall()
    assert found == [
        ("fireact_hotpotqa", "phone", 10),
        ("toolbench_dfs", "email", 48),
        ("toolbench_dfs", "phone", 52),
    ]
