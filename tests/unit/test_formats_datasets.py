"""Data sets with a shape of their own: OpenAssistant, API-Bank, xlam-60k; Lumos, CodeAct, …"""

from __future__ import annotations

import json
from typing import Any

import pytest

from udfs.errors import RefusedRecord
from udfs.formats import Options, Trajectory, detect


def parsed(record: Any) -> list[Trajectory]:
    return [
        each._replace(other_information=json.loads(json.dumps(each.other_information)))
        for each in detect(record)[0].parse(record, None, Options())
    ]


def message(name: str, role: str, text: str, *replies: Any, **more: Any) -> dict[str, Any]:
    return {"message_id": name, "role": role, "text": text, "replies": list(replies), **more}


TREE = {
    "message_tree_id": "t1",
    "tree_state": "ready_for_export",
    "prompt": message(
        "t1",
        "prompter",
        "Where is Lyon?",
        message("m2", "assistant", "In France.", message("m4", "prompter", "Thanks."), rank=0),
        message(
            "m3",
            "assistant",
            "In the east.",
            message("m5", "prompter", "Of?", message("m6", "assistant", "France.")),
            rank=1,
        ),
    ),
}


def test_every_path_of_a_message_tree_is_a_conversation() -> None:
    one, other = parsed(TREE)
    assert (one.task_id, other.task_id) == ("t1", "t1")
    assert one.user_query == other.user_query == "Where is Lyon?"
    assert [step.output for step in one.steps] == ["In France."]
    assert one.steps[0].observations == [("user", None, None, "Thanks.")]
    assert [step.output for step in other.steps] == ["In the east.", "France."]
    assert other.other_information["branch"]["parent"] == one.other_information["branch"]["id"]
    assert other.other_information["branch"]["shared_steps"] == 0
    assert detect(TREE)[0].to_source(other) == [
        {"message_id": "t1", "role": "prompter", "text": "Where is Lyon?"},
        {"message_id": "m3", "role": "assistant", "text": "In the east.", "rank": 1},
        {"message_id": "m5", "role": "prompter", "text": "Of?"},
        {"message_id": "m6", "role": "assistant", "text": "France."},
    ]


def test_a_path_without_an_answer_is_no_conversation() -> None:
    prompt = message(
        "a", "prompter", "b", message("c", "prompter", "d"), message("e", "assistant", "f")
    )
    assert len(parsed({"prompt": prompt})) == 1


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        ({"prompt": message("a", "prompter", "b")}, "no_steps", "None of the 1 turns"),
        ({"prompt": message("a", "robot", "b")}, "unexpected_turn", "role 'robot'"),
        (
            {"prompt": message("a", "prompter", "b", "c")},
            "unexpected_tree",
            "Node 0.0 is no object",
        ),
        (
            {"message_id": "a", "parent_id": None, "text": "b", "role": "prompter"},
            "unknown_format",
            "a single message of a tree",
        ),
        ({"role": "User", "text": "Where?"}, "unknown_format", "one turn of a dialogue"),
        ([{"role": "User", "text": "a"}, {"role": "API"}], "unexpected_turn", "Turn 2"),
        ({"query": "a", "answers": "f()", "tools": "[]"}, "unknown_format", "no list of calls"),
        ({"instruction": "a", "output": None}, "unknown_format", "not all texts"),
        (
            {"instruction": "a", "output": "b", "history": [["c", "d"]]},
            "unknown_format",
            "`history` holds earlier turns",
        ),
    ],
)
def test_what_is_not_understood_says_why(record: Any, reason: str, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parsed(record)
    assert refused.value.reason == reason
    assert words in refused.value.detail


DIALOGUE = [
    {"role": "User", "text": "Where is my parcel?"},
    {"role": "AI", "text": "Its number?"},
    {"role": "User", "text": "17."},
    {
        "role": "API",
        "api_name": "Track",
        "param_dict": {"parcel": 17},
        "result": {"output": "Lyon", "exception": None},
    },
    {"role": "AI", "text": "It is in Lyon."},
]


@pytest.mark.parametrize("turns", [DIALOGUE, DIALOGUE[:2], DIALOGUE[3:]])
def test_api_bank_dialogue_is_a_run(turns: list[Any]) -> None:
    for record in (turns, {"dialogue": turns, "id": "level-1-7"}):
        (trajectory,) = parsed(record)
        assert detect(record)[0].to_source(trajectory) == turns
    (trajectory,) = parsed(DIALOGUE)
    assert [step.output for step in trajectory.steps] == ["Its number?", None, "It is in Lyon."]
    assert trajectory.steps[1].tool_calls == [(None, "Track", '{"parcel":17}')]
    assert trajectory.steps[1].observations == [
        ("environment", "Track", None, '{"output":"Lyon","exception":null}')
    ]


TASK: dict[str, Any] = {
    "requirement": "Tell me where parcel 17 is.",
    "response": "It is in Lyon.",
    "apis": [
        {
            "api_name": "ToolSearcher",
            "input": {"keywords": "Track"},
            "output": {"output": {"name": "Track"}, "exception": None},
        },
        {"api_name": "Track", "input": {"parcel": 17}, "output": {"output": "Lyon"}},
    ],
}


def test_api_bank_task_has_a_step_for_every_call_and_the_response() -> None:
    record = TASK | {"id": 5}
    (trajectory,) = parsed(record)
    assert (trajectory.user_query, trajectory.task_id) == ("Tell me where parcel 17 is.", "5")
    assert [step.output for step in trajectory.steps] == [None, None, "It is in Lyon."]
    assert trajectory.steps[0].input == trajectory.user_query
    assert trajectory.steps[1].tool_calls == [(None, "Track", '{"parcel":17}')]
    assert trajectory.steps[1].observations == [("environment", "Track", None, '{"output":"Lyon"}')]
    assert detect(record)[0].to_source(trajectory) == TASK
    broken: list[dict[str, Any]] = [{"apis": [{}]}, {"response": None}]
    for wrong in broken:
        with pytest.raises(RefusedRecord) as refused:
            parsed(TASK | wrong)
        assert "Nearest is api_bank_task" in refused.value.detail


def test_api_bank_training_row_is_one_step() -> None:
    row = {"instruction": "Write the request.", "input": "User: Where?", "output": "[Track()]"}
    (trajectory,) = parsed(row | {"api_id": 3})
    assert trajectory.system_prompt == "Write the request."
    assert trajectory.steps == [("User: Where?", None, "[Track()]", [], [], True)]
    assert trajectory.other_information == {"api_id": 3}
    for record in (
        row,
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "input": "", "output": "b"},
        {"instruction": "a", "input": "c", "expected_output": "b"},
    ):
        assert detect(record)[0].to_source(parsed(record)[0]) == record


ANSWERS = [{"name": "track", "arguments": {"parcel": 17}}, {"name": "now", "arguments": {}}]


@pytest.mark.parametrize("answers", [ANSWERS, json.dumps(ANSWERS), []])
def test_query_and_calls_are_one_step(answers: Any) -> None:
    record = {"id": 4, "query": "Where?", "answers": answers, "tools": '[{"name": "track"}]'}
    (trajectory,) = parsed(record)
    (step,) = trajectory.steps
    assert (trajectory.task_id, trajectory.user_query, step.input) == ("4", "Where?", "Where?")
    assert (step.output, step.observations) == (None, [])
    if answers:
        assert step.tool_calls == [(None, "track", '{"parcel":17}'), (None, "now", "{}")]
    assert trajectory.tools == '[{"name": "track"}]'
    assert detect(record)[0].to_source(trajectory) == answers


def test_lumos_codeact_and_agentinstruct_are_chats() -> None:
    lumos = {
        "dataset": "strategyqa",
        "id": "q1",
        "messages": [
            {"role": "user", "content": "Provide the first subgoal."},
            {"role": "assistant", "content": "Subgoal 1: Find it."},
            {"role": "user", "content": "The executed result for Subgoal 1 is 3."},
            {"role": "assistant", "content": "No more subgoals."},
        ],
    }
    codeact = {
        "id": "c1",
        "conversations": [
            {"role": "system", "content": "You can run code."},
            {"role": "user", "content": "Task: add"},
            {"role": "assistant", "content": "<execute>1+1</execute>"},
            {"role": "user", "content": "Observation:\n2"},
            {"role": "assistant", "content": "<solution>2</solution>"},
        ],
    }
    operating_system = {
        "id": "os_0",
        "conversations": [
            {"role": "user", "content": "You act in a shell."},
            {"role": "assistant", "content": "OK."},
            {"role": "user", "content": "How many files?"},
            {"role": "assistant", "content": "Think: I list.\n\nAct: bash\n\n```bash\nls\n```"},
            {"role": "user", "content": "The output of the OS:\n\na b"},
            {"role": "assistant", "content": "Act: answer(2)"},
        ],
    }
    for record, steps, seen in ((lumos, 2, 0), (codeact, 2, 1), (operating_system, 3, 1)):
        (trajectory,) = parsed(record)
        assert detect(record)[0].name == "chat"
        assert len(trajectory.steps) == steps
        assert sum(len(step.observations) for step in trajectory.steps) == seen
        turns = record.get("messages") or record["conversations"]
        assert detect(record)[0].to_source(trajectory) == turns
    assert parsed(operating_system)[0].steps[2].input is None


def test_turns_of_a_table_with_nulls_are_chats() -> None:
    def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
        rest = {"name": None, "tool_call_id": None, "tool_calls": None}
        return {"content": content, "role": role} | rest | more

    call = {"id": "c1", "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    record = {
        "trajectory_id": "t1",
        "instance_id": "kites__kites-17",
        "trajectory": [
            turn("system", "You fix bugs."),
            turn("user", "The kite falls."),
            turn("assistant", "I look.", tool_calls=[call]),
            turn("tool", "kite.py", name="bash", tool_call_id="c1"),
            turn("assistant", "Done."),
        ],
        "exit_status": "submit",
        "resolved": 1,
        "gen_tests_correct": None,
    }
    (trajectory,) = parsed(record)
    assert (trajectory.task_id, trajectory.score) == ("kites__kites-17", 1.0)
    assert [step.output for step in trajectory.steps] == ["I look.", "Done."]
    assert trajectory.steps[0].observations == [("environment", "bash", "c1", "kite.py")]
    assert detect(record)[0].to_source(trajectory) == record["trajectory"]
