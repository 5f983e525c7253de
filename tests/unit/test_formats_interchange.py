"""Interchange formats, both ways: their records become rows, and any row becomes their record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_formats_records import parsed_file, real_files, sample_files

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import Options, Trajectory, agentohana, detect
from udfs.formats.interchange import WRITERS, to_record
from udfs.formats.trajectory import LAYOUT, content_sha256

ATIF: dict[str, Any] = {
    "schema_version": "ATIF-v1.7",
    "session_id": "s1",
    "agent": {"name": "courier", "version": "1", "model_name": "m", "tool_definitions": [{"a": 1}]},
    "steps": [
        {"step_id": 1, "source": "system", "message": "Be brief."},
        {"step_id": 2, "source": "user", "message": "Where?"},
        {
            "step_id": 3,
            "source": "agent",
            "message": "",
            "reasoning_content": "I look.",
            "tool_calls": [
                {"tool_call_id": "c1", "function_name": "track", "arguments": {"n": 17}},
                {"tool_call_id": "c2", "function_name": "now", "arguments": {}},
            ],
            "observation": {
                "results": [
                    {"source_call_id": "c1", "content": "Lyon"},
                    {
                        "source_call_id": "c2",
                        "content": [{"type": "image", "source": {"path": "clock.png"}}],
                    },
                ]
            },
            "metrics": {"prompt_tokens": 9},
        },
        {"step_id": 4, "source": "agent", "message": "In Lyon."},
        {"step_id": 5, "source": "user", "message": "Thanks."},
    ],
    "final_metrics": {"total_steps": 5},
}
ADP: dict[str, Any] = {
    "id": "s1",
    "details": {"dataset": "d"},
    "content": [
        {"class_": "text_observation", "source": "user", "name": None, "content": "Where?"},
        {
            "class_": "api_action",
            "function": "track",
            "kwargs": {"n": 17},
            "description": "I look.",
        },
        {"class_": "text_observation", "source": "environment", "name": None, "content": "Lyon"},
        {"class_": "code_action", "language": "python", "content": "1+1", "description": None},
        {"class_": "text_observation", "source": "user", "tool_call_id": "c", "content": "2"},
        {
            "class_": "web_observation",
            "html": "<p>",
            "axtree": "RootWebArea",
            "url": "http://a",
            "image_observation": None,
            "viewport_size": [1, 2],
        },
        {"class_": "message_action", "content": "In Lyon.", "description": "Done."},
    ],
}
XLAM: dict[str, Any] = {
    "unique_trajectory_id": "s1",
    "task_instruction": "Be brief.",
    "few_shot_examples": [{"query": "a"}],
    "query": "Where?",
    "tools": [{"name": "track", "parameters": {"n": {"type": "int"}}}],
    "steps": [
        {
            "step_id": "1",
            "thought": "I look.",
            "tool_calls": [{"name": "track", "arguments": {"n": 17}}],
            "next_observation": {"at": "Lyon"},
            "user_input": "",
        },
        {
            "step_id": "2",
            "thought": "In Lyon.",
            "tool_calls": [],
            "next_observation": "",
            "user_input": "Thanks.",
        },
    ],
}
OHANA: dict[str, Any] = {
    "user query": "Where?",
    "model name": "m",
    "score": "1.0",
    "other information": {"answer": "Lyon"},
    "steps": [
        {
            "input": "Where? Follow the format.",
            "output": "Thought: I look.",
            "step_id": 1,
            "next observation": "OK.",
        },
        {
            "input": "Cumulative Steps",
            "output": "Action: Search[Lyon]",
            "step_id": 2,
            "next observation": "In France.",
        },
    ],
}
RECORDS = {"atif": ATIF, "adp": ADP, "xlam": XLAM, "agentohana": OHANA}


def parsed(record: Any) -> Trajectory:
    (trajectory,) = detect(record)[0].parse(record, None, Options())
    kept = json.loads(json.dumps(trajectory.other_information))
    return trajectory._replace(other_information=kept)


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_recognised_and_comes_back(name: str) -> None:
    record = RECORDS[name]
    found, confidence = detect(record)
    assert (found.name, confidence) == (name, 1.0)
    trajectory = parsed(record)
    assert found.to_source(trajectory) == record[trajectory.layout["field"]]


def test_atif_steps_are_turns_calls_and_results() -> None:
    trajectory = parsed(ATIF)
    first, second = trajectory.steps
    assert (trajectory.task_id, trajectory.model_name) == ("s1", "m")
    assert (trajectory.system_prompt, first.input) == ("Be brief.", "Where?")
    assert (first.thought, first.output) == ("I look.", "I look.")
    assert first.tool_calls == [("c1", "track", '{"n":17}'), ("c2", "now", "{}")]
    assert [(seen.call_id, seen.content) for seen in first.observations] == [
        ("c1", "Lyon"),
        ("c2", "<image>"),
    ]
    assert second.observations == [("user", None, None, "Thanks.")]
    assert trajectory.tools == '[{"a":1}]'
    assert trajectory.other_information["agent"] == {"name": "courier", "version": "1"}
    assert trajectory.other_information["final_metrics"] == {"total_steps": 5}


def test_adp_actions_and_observations_are_steps() -> None:
    trajectory = parsed(ADP)
    first, second, third = trajectory.steps
    assert (trajectory.task_id, first.input, first.thought) == ("s1", "Where?", "I look.")
    assert first.tool_calls == [(None, "track", '{"n":17}')]
    assert second.tool_calls == [(None, "python", '{"code":"1+1"}')]
    assert [seen.content for seen in second.observations] == ["2", "RootWebArea"]
    assert (third.thought, third.output) == ("Done.", "Done.\n\nIn Lyon.")
    assert trajectory.other_information["details"] == {"dataset": "d"}


def test_xlam_steps_hold_thought_calls_and_the_users_words() -> None:
    trajectory = parsed(XLAM)
    first, second = trajectory.steps
    assert (trajectory.system_prompt, first.input) == ("Be brief.", "Where?")
    assert (first.thought, first.tool_calls) == ("I look.", [(None, "track", '{"n":17}')])
    assert first.observations == [("environment", None, None, '{"at":"Lyon"}')]
    assert second.observations == [("user", None, None, "Thanks.")]


def test_atif_steps_that_no_model_made_here_are_not_trained_on() -> None:
    made: dict[str, Any] = {"source": "agent", "message": "a"}
    steps = [made, made | {"is_copied_context": True}, made | {"llm_call_count": 0}]
    steps += [made | {"is_copied_context": False, "llm_call_count": 2}]
    record = ATIF | {"steps": [step | {"step_id": n} for n, step in enumerate(steps, start=1)]}
    trajectory = parsed(record)
    assert [step.is_trainable for step in trajectory.steps] == [True, False, False, True]
    assert detect(record)[0].to_source(trajectory) == record["steps"]


@pytest.mark.parametrize("source", ["user", "user_msg", "environment"])
def test_adp_knows_the_user_by_either_name_and_objects_as_json(source: str) -> None:
    shown = {"class_": "json_observation", "source": "environment", "content": {"n": 17}}
    said = {"class_": "text_observation", "source": source, "content": "Where?"}
    record = {"id": "a", "content": [ADP["content"][1], shown, said, ADP["content"][-1]]}
    trajectory = parsed(record)
    seen = trajectory.steps[0].observations
    assert seen[0] == ("environment", None, None, '{"n":17}')
    assert trajectory.steps[1].input == (None if source == "environment" else "Where?")
    assert detect(record)[0].to_source(trajectory) == record["content"]


def test_xlam_conversation_is_the_run_that_its_instruction_begins() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "track", "arguments": {"n": 17}}}
    record = {
        "unique_trajectory_id": "t1",
        "task_instruction": "Answer with tools.",
        "few_shot_examples": [],
        "tools": [{"name": "track"}],
        "conversation": [
            {"role": "user", "content": "Where?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "in Lyon"},
            {"role": "assistant", "content": "In Lyon."},
        ],
    }
    assert detect(record)[0].name == "xlam"
    trajectory = parsed(record)
    assert (trajectory.task_id, trajectory.system_prompt) == ("t1", "Answer with tools.")
    assert trajectory.steps[0].tool_calls == [("c1", "track", '{"n":17}')]
    assert trajectory.steps[0].observations == [("environment", None, "c1", "in Lyon")]
    assert [step.output for step in trajectory.steps] == ["", "In Lyon."]
    assert detect(record)[0].to_source(trajectory) == record["conversation"]
    without = {key: record[key] for key in record if key != "task_instruction"}
    assert detect(without)[0].name == "chat"


def test_agentohana_history_is_no_input() -> None:
    trajectory = parsed(OHANA)
    assert (trajectory.user_query, trajectory.model_name, trajectory.score) == ("Where?", "m", 1.0)
    assert [step.input for step in trajectory.steps] == ["Where? Follow the format.", None]
    assert [step.thought for step in trajectory.steps] == ["I look.", None]
    assert trajectory.other_information["answer"] == "Lyon"


@pytest.mark.parametrize("figure", ["fig3a", "fig3b"])
def test_the_figures_are_agentohana(figure: str, shared: Path) -> None:
    record = json.loads((shared / "golden" / f"{figure}_unified.repaired.json").read_text())
    assert detect(record)[0].name == "agentohana"
    trajectory = parsed(record)
    assert trajectory.user_query == record["user query"]
    assert (trajectory.model_name, trajectory.score) == (record["model name"], 1.0)
    assert [step.output for step in trajectory.steps] == [
        step["output"] for step in record["steps"]
    ]
    assert agentohana.FORMAT.to_source(trajectory) == record["steps"]


def as_row(trajectory: Trajectory) -> dict[str, Any]:
    """A row, but for how its source was laid out."""
    kept = {key: value for key, value in trajectory.other_information.items() if key != LAYOUT}
    row = trajectory._asdict() | {"other_information": kept}
    row.pop("part_of", None)
    return row


def check_way_back(name: str, trajectory_row: dict[str, Any]) -> None:
    record = json.loads(json.dumps(to_record(name, trajectory_row)))
    written = "chat" if name == "messages" else name
    assert detect(record)[0].name == written
    back, row = parsed(record), Trajectory.from_row(trajectory_row)
    assert as_row(back) == as_row(row)
    assert content_sha256(back) == content_sha256(row)
    source = detect(record)[0].to_source(back)
    assert source == record[back.layout.get("field", "messages")]


@pytest.mark.parametrize("name", WRITERS)
def test_every_sample_row_comes_back_from_every_format(name: str) -> None:
    for path in sample_files():
        for _, _, row in parsed_file(path):
            for trajectory in row["trajectories"]:
                check_way_back(name, trajectory)


@pytest.mark.parametrize("name", WRITERS)
def test_real_rows_come_back_from_every_format(name: str, shared: Path) -> None:
    for path in real_files(shared):
        for number, (_, _, row) in enumerate(parsed_file(path)):
            if number < 3:
                for trajectory in row["trajectories"]:
                    check_way_back(name, trajectory)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("source", RECORDS)
def test_interchange_records_become_one_another(name: str, source: str) -> None:
    trajectory = parsed(RECORDS[source])
    row = trajectory._asdict() | {
        "other_information": json.dumps(trajectory.other_information),
        "steps": [
            step._asdict()
            | {
                "tool_calls": [call._asdict() for call in step.tool_calls],
                "observations": [seen._asdict() for seen in step.observations],
            }
            for step in trajectory.steps
        ],
    }
    check_way_back(name, row)


def test_a_plain_row_carries_nothing() -> None:
    chat = {
        "messages": [
            {"role": "user", "content": "Where?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "content": "Lyon", "tool_call_id": "c"},
            {"role": "assistant", "content": "In Lyon."},
        ]
    }
    trajectory = parsed(chat)
    row = as_row(trajectory) | {
        "other_information": "{}",
        "steps": [
            step._asdict()
            | {
                "tool_calls": [call._asdict() for call in step.tool_calls],
                "observations": [seen._asdict() for seen in step.observations],
            }
            for step in trajectory.steps
        ],
    }
    assert to_record("messages", row) == chat
    assert "extra" not in to_record("atif", row)


def adp_problems(record: dict[str, Any]) -> list[str]:
    """What ADP 1.2 asks of ids: answers share the id of one call before, each is used once."""
    problems, calls, answers = [], set(), set()
    items = record["content"]
    for item, after in zip(items, [*items[1:], None], strict=True):
        name = item.get("tool_call_id")
        if item["class_"] == "api_action":
            if name is None and after is not None and after["class_"] == "text_observation":
                problems.append("a call before its answer has no id")
            if name in calls:
                problems.append(f"{name} is used twice")
            calls |= {name} - {None}
        elif name is not None:
            if name not in calls or name in answers:
                problems.append(f"{name} answers no call")
            answers.add(name)
        if item["class_"] == "text_observation" and item["source"] == "environment":
            problems.append("there is no source environment")
    return problems + [f"{name} is not answered" for name in calls - answers]


def openai_problems(record: dict[str, Any]) -> list[str]:
    """What OpenAI asks: every tool's message answers a call of the answer before it."""
    problems = []
    calls: set[str] = set()
    for message in record["messages"]:
        if message["role"] == "assistant":
            calls = {call["id"] for call in message.get("tool_calls", ())}
        elif message["role"] == "tool" and message.get("tool_call_id") not in calls:
            problems.append(f"{message} answers no call")
    return problems


def test_written_ids_are_what_others_ask_for(shared: Path) -> None:
    for path in [*sample_files(), *real_files(shared)]:
        for number, (_, _, row) in enumerate(parsed_file(path)):
            for trajectory in row["trajectories"] if number < 3 else ():
                assert adp_problems(to_record("adp", trajectory)) == []
                assert openai_problems(to_record("messages", trajectory)) == []


def test_unknown_interchange_format_is_refused() -> None:
    with pytest.raises(ConfigError, match="agentohana, xlam, adp, atif, messages"):
        to_record("otlp", {})


@pytest.mark.parametrize("slot", [{"turns": {"7": {}}}, {"absent": [[0, "no"]]}, 5, [1]])
def test_a_record_changed_after_it_was_written_is_refused(slot: Any) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parsed(ATIF | {"extra": {"trajlake": slot}})
    assert refused.value.reason == "unexpected_slot"


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (ATIF | {"steps": []}, "`steps` is no list of objects"),
        (ATIF | {"schema_version": "ATIF-v2.0"}, "not one of ATIF-v1.0"),
        (ATIF | {"steps": [{"source": "tool"}]}, "has source 'tool'"),
        (ATIF | {"steps": [{"source": "agent", "tool_calls": [1]}]}, "tool call without"),
        (ADP | {"content": [ADP["content"][0], {"class_": "x"}]}, "has class 'x'"),
        (XLAM | {"steps": [{}]}, "its first step has not"),
        (OHANA | {"steps": [{"input": 1, "output": "", "next observation": ""}]}, "is a number"),
    ],
)
def test_what_is_not_understood_says_where(record: Any, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parsed(record)
    assert words in refused.value.detail
