"""ToolBench's search trees and ToolAlpaca's judged runs: every path, every step, every verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from udfs.errors import RefusedRecord
from udfs.formats import Options, Trajectory, detect
from udfs.formats.trajectory import content_sha256


def parsed(record: Any) -> list[Trajectory]:
    return [
        each._replace(other_information=json.loads(json.dumps(each.other_information)))
        for each in detect(record)[0].parse(record, None, Options())
    ]


def node(what: str, text: str, *children: Any, **more: Any) -> dict[str, Any]:
    return {
        "node_type": what,
        "description": text,
        "pruned": False,
        "children": list(children),
        **more,
    }


def action(name: str, arguments: str, *children: Any, **more: Any) -> dict[str, Any]:
    return node("Action", name, node("Action Input", arguments, *children, **more))


ANSWER = action("Finish", '{"final_answer": "Lyon"}', observation="done", observation_code=3)
GIVE_UP = action("Finish", "{}", observation="ok", observation_code=4, pruned=True)
CONVERSATION: list[Any] = [
    {"role": "system", "content": "You can use tools."},
    {"role": "user", "content": "\nWhere is it?\nBegin!\n"},
    {"role": "assistant", "content": None, "function_call": {"name": "track", "arguments": "{}"}},
    {"role": "function", "name": "track", "content": "in Lyon"},
    {"role": "user", "content": "This is not the first time."},
    {
        "role": "assistant",
        "content": "I know it.",
        "function_call": {"name": "Finish", "arguments": '{"final_answer": "Lyon"}'},
    },
]


def tree(*below: Any, win: bool = True, **answer: Any) -> dict[str, Any]:
    return {
        "win": win,
        "tree": {"size": 7, "tree": node("Action Input", "", *below)},
        "forward_args": {"answer": 1},
        "answer_generation": {
            "query": "Where is it?",
            "function": [{"name": "track"}],
            "finish_type": "give_answer",
            "train_messages": [CONVERSATION[:3], CONVERSATION],
            **answer,
        },
    }


SEARCH = tree(
    action(
        "track",
        "{}",
        node("Thought", "I give up.", GIVE_UP),
        node("Thought", "I know it.", ANSWER),
        observation="in Lyon",
    )
)


def test_the_answer_comes_first_and_what_failed_follows_with_its_parent() -> None:
    won, failed = parsed(SEARCH)
    assert (won.score, failed.score) == (1.0, 0.0)
    assert won.other_information["branch"] == {
        "id": "0.0.1.0.0",
        "parent": None,
        "shared_steps": 0,
        "depth": 5,
        "is_pruned": False,
    }
    assert failed.other_information["branch"] == {
        "id": "0.0.0.0.0",
        "parent": "0.0.1.0.0",
        "shared_steps": 1,
        "depth": 5,
        "is_pruned": True,
    }
    assert failed.other_information["finish_type"] == "give_answer"
    assert json.loads(won.tools or "") == json.loads(failed.tools or "") == [{"name": "track"}]
    assert won.user_query == failed.user_query == "Where is it?"


def test_the_answer_is_told_as_the_model_saw_it() -> None:
    won, _ = parsed(SEARCH)
    first, second = won.steps
    assert won.system_prompt == "You can use tools."
    assert first.tool_calls == [(None, "track", "{}")]
    assert first.observations == [("environment", "track", None, "in Lyon")]
    assert second.input == "This is not the first time."
    assert (second.thought, second.output) == ("I know it.", "I know it.")


def test_a_failed_path_is_told_by_the_tree() -> None:
    _, failed = parsed(SEARCH)
    first, second = failed.steps
    assert (failed.system_prompt, first.input) == ("You can use tools.", CONVERSATION[1]["content"])
    assert (second.thought, second.tool_calls) == ("I give up.", [(None, "Finish", "{}")])
    assert second.observations == [("environment", "Finish", None, "ok")]


def test_paths_come_back_node_by_node() -> None:
    won, failed = parsed(SEARCH)
    source = detect(SEARCH)[0].to_source
    assert source(won) == CONVERSATION
    root = SEARCH["tree"]["tree"]
    path = []
    for number in (0, 0, 0, 0, 0):
        root = root["children"][number]
        path.append({key: value for key, value in root.items() if key != "children"})
    assert source(failed) == path


def test_a_search_without_messages_begins_with_the_query() -> None:
    record = tree(action("track", "{}", observation="x", pruned=True), win=False, train_messages=[])
    (failed,) = parsed(record)
    assert (failed.steps[0].input, failed.score) == ("Where is it?", 0.0)


def chain(*names: str, **last: Any) -> list[dict[str, Any]]:
    nodes: list[dict[str, Any]] = []
    for name in names:
        nodes += [
            {"node_type": "Action", "description": name, "pruned": False},
            {"node_type": "Action Input", "description": "{}", "observation": f"{name} ran"},
        ]
    nodes[-1] |= last
    return nodes


def test_every_try_of_a_chain_without_search_is_a_run() -> None:
    tries = [
        {"chain": chain("track", "Finish", observation_code=4), "win": False},
        {"chain": chain("find", "Finish", observation_code=3), "win": False},
        {"chain": [], "win": False},
    ]
    record = {
        "win": True,
        "try_count": 3,
        "trys": tries,
        "answer_generation": {"query": "Where?", "function": [{"name": "track"}]},
    }
    answer, failed = parsed(record)
    assert (answer.score, failed.score) == (1.0, 0.0)
    assert [call.name for step in answer.steps for call in step.tool_calls] == ["find", "Finish"]
    assert [step.observations[0].content for step in failed.steps] == ["track ran", "Finish ran"]
    assert answer.other_information["trys"] == [{"win": False}] * 3
    assert [detect(record)[0].to_source(run) for run in (answer, failed)] == [
        tries[1]["chain"],
        tries[0]["chain"],
    ]
    broken: tuple[Any, ...] = (None, [], [{}], [{"chain": [3]}])
    for wrong in broken:
        with pytest.raises(RefusedRecord) as refused:
            parsed(record | {"trys": wrong})
        assert "`trys` is no list of objects with a `chain`" in refused.value.detail


def test_thoughts_that_call_nothing_are_steps() -> None:
    record = tree(node("Thought", "a", node("Thought", "b", GIVE_UP)), win=False)
    (failed,) = parsed(record)
    assert [step.output for step in failed.steps] == ["a", "b"]
    assert [len(step.tool_calls) for step in failed.steps] == [0, 1]


@pytest.mark.parametrize(
    ("record", "reason", "words"),
    [
        (tree(), "no_steps", "no node below its root"),
        (tree("a"), "unexpected_tree", "Node 0 is no object"),
        (tree(node("Plan", "a")), "unexpected_turn", "node type 'Plan'"),
        (tree(node("Action Input", "a")), "unexpected_turn", "node type 'Action Input'"),
        (tree({"node_type": "Thought"}), "unexpected_turn", "description that is null"),
        ({"answer_generation": {}, "tree": {}}, "unknown_format", "`tree.tree` is no node"),
    ],
)
def test_trees_that_are_not_understood_say_where(record: Any, reason: str, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parsed(record)
    assert refused.value.reason == reason
    assert words in refused.value.detail


def message(role: str, said: Any, *after: Any) -> dict[str, Any]:
    return {"role": role, "message": said, "next": list(after)}


USED = {"name": "track", "arguments": "{}", "response": "in Lyon"}


@pytest.mark.parametrize("used", [USED, json.dumps(USED), str(USED)])
def test_answer_details_are_a_run(used: Any) -> None:
    details = [
        message(
            "system",
            "",
            message("user", "Where?", message("assistant", "I look.", message("tool", used))),
        )
    ]
    record = {
        "query": "Where?",
        "available_tools": [{"name": "track"}],
        "answer": {"method": "CoT", "final_answer": "Lyon", "answer_details": details},
    }
    (trajectory,) = parsed(record)
    (step,) = trajectory.steps
    assert (step.input, step.output) == ("Where?", "I look.")
    assert step.tool_calls == [(None, "track", "{}")]
    assert step.observations == [("environment", "track", None, "in Lyon")]
    assert trajectory.other_information["answer"] == {"method": "CoT", "final_answer": "Lyon"}
    assert (trajectory.tools, trajectory.score) == ('[{"name":"track"}]', None)
    assert detect(record)[0].to_source(trajectory) == [
        {"role": "system", "message": ""},
        {"role": "user", "message": "Where?"},
        {"role": "assistant", "message": "I look."},
        {"role": "tool", "message": used},
    ]


def test_a_printed_call_that_is_cut_keeps_its_name_and_its_text() -> None:
    whole = str({"name": "track", "arguments": '{"n": "it\'s 17"}', "response": "in Lyon " * 40})
    cut = str({"name": "Finish", "arguments": "x" * 200, "response": ""})[:100]
    run = message("user", "Where?", message("tool", whole[:100], message("tool", cut)))
    (trajectory,) = parsed({"query": "Where?", "answer": {"answer_details": [run]}})
    first, last = trajectory.steps
    assert first.tool_calls == [(None, "track", '{"n": "it\'s 17"}')]
    assert first.observations == [("environment", "track", None, whole[:100])]
    assert last.tool_calls == [(None, "Finish", None)]
    source = detect({"answer": {"answer_details": [run]}})[0].to_source(trajectory)
    assert [node["message"] for node in source] == ["Where?", whole[:100], cut]


def test_answer_details_with_two_ends_are_two_runs() -> None:
    details = [
        message(
            "user",
            "Where?",
            message("tool", USED, message("assistant", "a")),
            message("tool", USED),
        )
    ]
    one, other = parsed({"query": "Where?", "answer": {"answer_details": details}})
    assert other.other_information["branch"]["parent"] == "0.0.0"
    assert other.other_information["branch"]["shared_steps"] == 1
    assert content_sha256(one) != content_sha256(other)


SOLUTION = (
    '1. Function: track\nParameters: {"n": 17}\nRetruns: Two:\n1. a\n2. b\n'
    "2. Final Response: In Lyon.\n3. Function: is text here"
)
PROMPT = (
    "Judge it.\n## Analysis\n\n## Documentation\ntrack: finds\nParameters: {}\n\n\n"
    "## Task Instruction\nWhere is it?\n\n## Standard Answer\n1. Function: track\n\n\n"
    f"## AI Assistant's Solution\n{SOLUTION}\n\n## Analysis"
)


def judged(content: str = PROMPT, **more: Any) -> dict[str, Any]:
    return {
        "id": 3,
        "input": [{"role": "user", "content": content}],
        "output": "Right.",
        "process_correctness": "Yes",
        "final_response_correctness": "No",
        **more,
    }


def test_judged_run_and_verdict_are_both_kept() -> None:
    record = judged()
    (trajectory,) = parsed(record)
    first, second = trajectory.steps
    assert (trajectory.user_query, first.input) == ("Where is it?", "Where is it?")
    assert (first.output, first.tool_calls) == (None, [(None, "track", '{"n": 17}')])
    assert first.observations == [("environment", "track", None, "Two:\n1. a\n2. b")]
    assert second.output == "In Lyon.\n3. Function: is text here"
    assert (trajectory.task_id, trajectory.score) == ("3", None)
    kept = trajectory.other_information
    assert (kept["process_correctness"], kept["final_response_correctness"]) == ("Yes", "No")
    assert kept["output"] == "Right."
    assert kept["documentation"].startswith("track: finds")
    assert kept["standard_answer"] == "1. Function: track\n\n"
    assert detect(record)[0].to_source(trajectory) == record["input"]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (judged(PROMPT.replace("1. Function", "7. Function")), "has to begin"),
        (judged(PROMPT.replace("Retruns", "Returns")), "Function 1 of the solution"),
        (judged(PROMPT.replace("## Task Instruction", "")), "Task Instruction"),
        ({"id": 8, "input": "", "output": ""}, "neither a run nor a verdict"),
        ({"num": 1, "process": {}, "response": {}, "both": 1}, "counts the verdicts"),
    ],
)
def test_judged_records_without_a_run_say_why(record: Any, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parsed(record)
    assert words in refused.value.detail
