"""`chat` and `messages_display`: turns become steps, and the row gives the turns back exactly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import Options, Trajectory, chat, detect, messages_display, to_messages
from udfs.formats.trajectory import content_sha256

SYSTEM = {"role": "system", "content": "Be brief."}
ASK = {"role": "user", "content": "Where is it?"}
MORE = {"role": "user", "content": "I mean the parcel."}
SAY = {"role": "assistant", "content": "In Lyon."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "c1", "type": "function", "function": {"name": "track", "arguments": '{"n": 17}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "Lyon"}


def parse(turns: list[Any], **fields: Any) -> Trajectory:
    (trajectory,) = chat.FORMAT.parse({"messages": turns, **fields}, None, Options())
    return trajectory


def call(call_id: str | None, name: str = "f", arguments: Any = "{}") -> dict[str, Any]:
    made: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    return made if call_id is None else {"id": call_id, **made}


def calling(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def result(call_id: str, content: str | None = "ok") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


CONVERSATIONS: dict[str, list[Any]] = {
    "plain": [ASK, SAY, MORE, SAY],
    "system prompt": [SYSTEM, ASK, SAY],
    "empty system prompt": [{"role": "system", "content": ""}, ASK, SAY],
    "null system prompt": [{"role": "system", "content": None}, ASK, SAY],
    "two system turns": [SYSTEM, {"role": "system", "content": "Be kind."}, ASK, SAY],
    "system turn in the middle": [SYSTEM, ASK, SAY, SYSTEM, MORE, SAY],
    "system turn at the end": [ASK, SAY, SYSTEM],
    "system turn after the user's": [ASK, SYSTEM, SAY],
    "consecutive user turns": [ASK, MORE, SAY, MORE, MORE, ASK, SAY],
    "consecutive user turns, one empty": [ASK, {"role": "user", "content": ""}, SAY],
    "consecutive user turns, null": [{"role": "user", "content": None}] * 2 + [SAY],
    "user turn of null": [{"role": "user", "content": None}, SAY],
    "user turn of nothing": [{"role": "user", "content": ""}, SAY],
    "text with empty lines inside": [ASK, {"role": "user", "content": "a\n\nb"}, SAY],
    "trailing user turns": [ASK, SAY, MORE, MORE],
    "assistant first": [SAY, ASK, SAY],
    "consecutive assistant turns": [ASK, SAY, SAY, CALL, RESULT, SAY],
    "assistant null and empty": [
        ASK,
        {"role": "assistant", "content": None},
        ASK,
        {"role": "assistant", "content": ""},
    ],
    "tool call": [SYSTEM, ASK, CALL, RESULT, SAY],
    "several calls in a turn": [ASK, calling(call("a"), call("b")), result("a"), result("b"), SAY],
    "text beside calls": [ASK, calling(call("a"), content="I look."), result("a"), SAY],
    "results out of order": [ASK, calling(call("a"), call("b")), result("b"), result("a"), SAY],
    "repeated call ids": [
        ASK,
        calling(call("x", arguments="1")),
        result("x", "1"),
        calling(call("x", arguments="2")),
        result("x", "2"),
        SAY,
    ],
    "dangling result": [ASK, SAY, result("nowhere"), SAY],
    "missing result": [ASK, calling(call("a"), call("b")), result("a"), SAY],
    "result of null": [ASK, CALL, result("c1", None), SAY],
    "late result": [ASK, CALL, MORE, RESULT, SAY],
    "result after the next output": [ASK, CALL, SAY, RESULT, SAY],
    "result first": [RESULT, ASK, SAY],
    "call without id": [ASK, calling(call(None)), {"role": "tool", "content": "ok"}, SAY],
    "two calls without id": [ASK, calling(call(None), call(None)), SAY],
    "arguments as an object": [ASK, calling(call("a", arguments={"n": [1, {"m": None}]})), SAY],
    "arguments that are no JSON": [ASK, calling(call("a", arguments='{"n": ')), SAY],
    "arguments missing": [ASK, calling({"id": "a", "function": {"name": "f"}}), SAY],
    "flat call": [ASK, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]}, SAY],
    "legacy function call": [
        ASK,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "ok"},
        SAY,
    ],
    "no content key": [ASK, {k: v for k, v in CALL.items() if k != "content"}, RESULT, SAY],
    "empty list of calls": [ASK, {**SAY, "tool_calls": []}],
    "legacy nulls": [
        {**turn, "function_call": None, "name": None}
        | {key: turn.get(key) for key in ("tool_calls", "tool_call_id")}
        for turn in (SYSTEM, ASK, CALL, RESULT, SAY)
    ],
    "index in a call": [ASK, calling({**call("a"), "index": None}), result("a"), SAY],
    "named user": [{**ASK, "name": "desk-3"}, SAY],
    "further fields": [
        {**ASK, "time": 3.5},
        {**SAY, "extra": {"a": [1, None, {"b": {}}], "c": []}},
    ],
    "name that is no text": [ASK, CALL, {**RESULT, "name": 7, "tool_call_id": 8}, SAY],
    "other names of roles": [
        {"role": "developer", "content": "Be brief."},
        {"role": "human", "content": "a"},
        {"role": "gpt", "content": "b"},
        {"role": "observation", "content": "c"},
        {"role": "model", "content": "d"},
    ],
    "content in parts": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "c", "cache": {"x": 1}}]},
    ],
    "images": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "bike.png", "detail": "low"}},
            ],
        },
        SAY,
    ],
    "reasoning apart": [ASK, {**SAY, "reasoning_content": "I look it up."}, MORE, SAY],
    "reasoning before a call": [
        ASK,
        {**CALL, "reasoning_content": "I call."},
        RESULT,
        {"role": "assistant", "content": "", "reasoning_content": "Done."},
    ],
    "labelled observations": [
        SYSTEM,
        ASK,
        {**SAY, "content": "<execute>ls</execute>"},
        {"role": "user", "content": "Observation:\nOut[1]: a"},
        SAY,
        {"role": "user", "content": "Observation: other label"},
        MORE,
    ],
    "environment answers actions": [
        ASK,
        {**SAY, "content": "OK."},
        MORE,
        {**SAY, "content": "THOUGHT: a\nACTION: go"},
        {"role": "user", "content": "You are there."},
        {**SAY, "content": "ACTION: take"},
    ],
    "masked answer": [ASK, {**SAY, "weight": 0}, MORE, {**SAY, "weight": 1}],
    "unicode": [
        {"role": "user", "content": "🚲\u0000\u2028"},
        {"role": "assistant", "content": "é"},
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_every_turn_comes_back_exactly(name: str) -> None:
    turns = CONVERSATIONS[name]
    trajectory = parse(turns)
    assert len(trajectory.steps) == sum(
        turn["role"] in ("assistant", "gpt", "model") for turn in turns
    )
    # As from a row: `other_information` has been JSON text in between.
    kept = json.loads(json.dumps(trajectory.other_information))
    assert chat.FORMAT.to_source(trajectory._replace(other_information=kept)) == turns


def test_plain_conversation_needs_no_layout() -> None:
    for name in (
        "plain",
        "system prompt",
        "tool call",
        "several calls in a turn",
        "trailing user turns",
    ):
        assert parse(CONVERSATIONS[name]).other_information == {}, name


def test_steps_hold_what_the_model_saw_and_did() -> None:
    trajectory = parse([SYSTEM, ASK, CALL, RESULT, SAY, MORE])
    assert trajectory.system_prompt == "Be brief."
    assert trajectory.user_query == "Where is it?"
    first, second = trajectory.steps
    assert (first.input, first.output, second.input, second.output) == (
        "Where is it?",
        None,
        None,
        "In Lyon.",
    )
    assert first.tool_calls == [("c1", "track", '{"n": 17}')]
    assert first.observations == [("environment", None, "c1", "Lyon")]
    assert second.observations == [("user", None, None, "I mean the parcel.")]


def test_image_is_a_line_and_its_reference_is_kept() -> None:
    trajectory = parse(CONVERSATIONS["images"])
    assert trajectory.steps[0].input == "What is it?\n<image>"
    assert "bike.png" in json.dumps(trajectory.layout)


def test_reasoning_apart_stands_before_the_answer() -> None:
    step = parse(CONVERSATIONS["reasoning apart"]).steps[0]
    assert (step.thought, step.output) == ("I look it up.", "I look it up.\n\nIn Lyon.")


def test_environment_is_told_from_the_user_by_label_or_by_the_action_before() -> None:
    first, second = parse(CONVERSATIONS["labelled observations"]).steps
    assert first.observations == [("environment", None, None, "Out[1]: a")]
    assert [seen.source for seen in second.observations] == ["user", "user"]

    first, second, third = parse(CONVERSATIONS["environment answers actions"]).steps
    assert (first.observations, second.input) == ([], "I mean the parcel.")
    assert second.observations == [("environment", None, None, "You are there.")]
    assert third.input is None


@pytest.mark.parametrize("answer", ["Act: answer(3)", "Act: finish", "Think.\nAction: Answer\n3"])
def test_what_a_user_says_after_the_answer_is_no_observation(answer: str) -> None:
    asked = {"role": "user", "content": "Now, another problem: how many folders?"}
    first, second = parse([ASK, {"role": "assistant", "content": answer}, asked, SAY]).steps
    assert (first.observations, second.input) == ([], asked["content"])


def test_a_result_names_its_call_in_a_list_of_one() -> None:
    result = {"role": "tool", "content": "a", "tool_call_ids": ["call_1"]}
    trajectory = parse([ASK, SAY, result])
    assert trajectory.steps[0].observations[0].call_id == "call_1"
    assert chat.FORMAT.to_source(trajectory) == [ASK, SAY, result]


def test_system_prompt_beside_the_turns_is_one() -> None:
    trajectory = parse([ASK, SAY], system="Be brief.")
    assert trajectory.system_prompt == "Be brief."
    assert chat.FORMAT.to_source(trajectory) == [ASK, SAY]
    trajectory = parse([SYSTEM, ASK, SAY], system="Be kind.")
    assert (trajectory.system_prompt, trajectory.other_information["system"]) == (
        "Be brief.",
        "Be kind.",
    )


def test_consecutive_user_turns_are_one_input() -> None:
    trajectory = parse([ASK, MORE, SAY])
    assert trajectory.steps[0].input == "Where is it?\n\nI mean the parcel."


def test_results_stand_with_the_step_they_follow_and_name_their_call() -> None:
    trajectory = parse(CONVERSATIONS["repeated call ids"])
    for step in trajectory.steps[:2]:
        (made,), (seen,) = step.tool_calls, step.observations
        assert (made.call_id, made.arguments) == (seen.call_id, seen.content)

    trajectory = parse(CONVERSATIONS["results out of order"])
    assert [seen.call_id for seen in trajectory.steps[0].observations] == ["b", "a"]

    # The model had spoken again before it saw the result: it is not moved before that.
    trajectory = parse(CONVERSATIONS["result after the next output"])
    assert [len(step.observations) for step in trajectory.steps] == [0, 1, 0]


def test_legacy_call_and_object_arguments_become_tool_calls() -> None:
    assert parse(CONVERSATIONS["legacy function call"]).steps[0].tool_calls == [(None, "f", "{}")]
    (made,) = parse(CONVERSATIONS["arguments as an object"]).steps[0].tool_calls
    assert json.loads(made.arguments or "") == {"n": [1, {"m": None}]}


def test_weight_zero_is_not_trained_on() -> None:
    trajectory = parse(CONVERSATIONS["masked answer"])
    assert [step.is_trainable for step in trajectory.steps] == [False, True]


def test_fields_become_columns_or_other_information() -> None:
    trajectory = parse(
        [ASK, SAY],
        instance_id="task-9",
        id=4,
        model="m",
        resolved=True,
        tools=[{"name": "track"}],
        note={"deep": [1]},
    )
    assert (trajectory.task_id, trajectory.model_name, trajectory.score) == ("task-9", "m", 1.0)
    assert json.loads(trajectory.tools or "") == [{"name": "track"}]
    assert trajectory.other_information == {"id": 4, "note": {"deep": [1]}}


@pytest.mark.parametrize("value", ["1.0", None, float("nan"), 10**400, [1]])
def test_a_reward_that_is_no_number_is_kept_and_no_score(value: Any) -> None:
    trajectory = parse([ASK, SAY], reward=value)
    assert trajectory.score is None
    assert "reward" in trajectory.other_information


def test_a_list_of_turns_is_a_record() -> None:
    (trajectory,) = chat.FORMAT.parse([ASK, SAY], "k7", Options())
    assert trajectory.task_id == "k7"
    assert chat.FORMAT.to_source(trajectory) == [ASK, SAY]


@pytest.mark.parametrize("field", ["messages", "conversations", "traj"])
def test_turns_may_be_json_text(field: str) -> None:
    turns = [SYSTEM, ASK, CALL, RESULT, SAY]
    record = {field: json.dumps(turns), "instance_id": "i1"}
    found, _ = detect(record)
    (trajectory,) = found.parse(record, None, Options())
    assert found.name == "chat"
    assert content_sha256(trajectory) == content_sha256(parse(turns))
    assert chat.FORMAT.to_source(trajectory) == turns
    assert field not in trajectory.other_information


def test_record_key_and_a_field_named_like_the_layout_are_kept() -> None:
    (trajectory,) = chat.FORMAT.parse({"talk": [ASK, SAY], "id": "x", "_layout": 5}, "k", Options())
    assert trajectory.task_id == "x"
    assert trajectory.layout == {"field": "talk", "raw_key": "k", "field_of_this_name": 5}


@pytest.mark.parametrize(
    ("turns", "reason", "words"),
    [
        ([ASK, 3], "unexpected_turn", "Turn 2 is a number"),
        ([ASK, {"role": "narrator", "content": ""}], "unexpected_turn", "narrator"),
        ([ASK, {"role": "assistant", "text": "a"}], "unexpected_turn", "role, text"),
        ([ASK, {"role": "assistant", "content": {"a": 1}}], "unexpected_turn", "an object"),
        (
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}, SAY],
            "unexpected_turn",
            "input_audio",
        ),
        ([ASK, {**SAY, "tool_calls": {"id": 1}}], "unexpected_turn", "not a list"),
        ([ASK, {**SAY, "tool_calls": ["f()"]}], "unexpected_turn", "f()"),
        ([ASK, MORE], "no_steps", "assistant"),
        ([], "no_turns", "role"),
    ],
)
def test_refusals_say_what_is_wrong(turns: list[Any], reason: str, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        parse(turns)
    assert refused.value.reason == reason
    assert words in refused.value.detail


DISPLAYED = (
    "user: Where?\nassistant: None\ntool: Error: none\nassistant: Two ways:\n\n1. a\n2. user: no\n"
    "user: ok"
)


def test_displayed_messages_become_steps() -> None:
    (trajectory,) = messages_display.FORMAT.parse({"messages_display": DISPLAYED}, None, Options())
    first, second = trajectory.steps
    assert (first.input, first.output, first.tool_calls) == ("Where?", None, [])
    assert first.observations == [("environment", None, None, "Error: none")]
    assert second.output == "Two ways:\n\n1. a\n2. user: no"
    assert second.observations == [("user", None, None, "ok")]


@pytest.mark.parametrize(
    "text",
    [
        DISPLAYED,
        "assistant: None",
        "user: \nassistant: \n",
        "user: a\nuser: b\nassistant: c\n\n\nuser: None\ntool: None\nassistant: None\n",
        "system: s\nuser: a\nassistant:b\nassistant: c\r\nUser: d",
    ],
)
def test_displayed_text_comes_back_exactly(text: str) -> None:
    (trajectory,) = messages_display.FORMAT.parse({"messages_display": text}, None, Options())
    assert messages_display.FORMAT.to_source(trajectory) == text


@pytest.mark.parametrize("text", ["", "Hello\nuser: a", "user:a", None, ["user: a"]])
def test_displayed_text_without_a_first_label_is_refused(text: Any) -> None:
    with pytest.raises(RefusedRecord) as refused:
        messages_display.FORMAT.parse({"messages_display": text}, None, Options())
    assert refused.value.reason == "no_turns"


def test_same_conversation_has_the_same_hash_in_any_format() -> None:
    (displayed,) = messages_display.FORMAT.parse({"messages_display": DISPLAYED}, None, Options())
    turns = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": ""},
        {"role": "tool", "content": "Error: none", "tool_call_id": "z", "name": "find"},
        {"role": "assistant", "content": "Two ways:\n\n1. a\n2. user: no"},
        {"role": "user", "content": "ok"},
    ]
    same = parse(turns, model="other", id="other", reward=0.5)
    assert content_sha256(same) == content_sha256(displayed)

    spaced = parse([ASK, calling(call("a", arguments='{ "b":1, "a" : 2 }')), SAY])
    compact = parse([ASK, calling(call("q", arguments={"a": 2, "b": 1})), SAY])
    assert content_sha256(spaced) == content_sha256(compact)


@pytest.mark.parametrize(
    "turns",
    [
        [ASK, {**SAY, "content": "In Lyon"}],
        [MORE, SAY],
        [SYSTEM, ASK, SAY],
        [ASK, SAY, MORE],
        [ASK, calling(call("a"), content="In Lyon.")],
    ],
)
def test_another_conversation_has_another_hash(turns: list[Any]) -> None:
    assert content_sha256(parse(turns)) != content_sha256(parse([ASK, SAY]))


def test_long_integers_in_arguments_are_told_apart() -> None:
    one, other = (
        parse([ASK, calling(call("a", arguments=f'{{"n": {10**20 + n}}}'))]) for n in (1, 2)
    )
    assert content_sha256(one) != content_sha256(other)


def test_to_messages_is_for_formats_of_turns() -> None:
    with pytest.raises(ConfigError, match=r"no format 'chatt'.*react_text, react_chat"):
        to_messages("chatt", {})
