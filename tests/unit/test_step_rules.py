"""Each step rule on short runs: what it flags, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from udfs.curation.step_rules import (
    STEP_FLAGS,
    Run,
    empty_outputs,
    error_observations,
    flag_steps,
    flags_of,
    how_it_ended,
    invalid_actions,
    loops,
    malformed_calls,
    repeated_actions,
    says_something,
    schema_violations,
    unfinished,
    unknown_tools,
)
from udfs.rater.verification import FAILURE, OBSERVED_ERROR, verify
from udfs.schema import STEP

ADD = (
    '[{"name": "add", "parameters": {"type": "object", "required": ["a"], '
    '"properties": {"a": {"type": "number"}, "b": {"type": "number"}}}}]'
)


def step(
    output: str | None = None,
    *seen: str,
    call: tuple[str | None, str] | None = None,
    given: str | None = None,
    source: str = "environment",
    call_id: str | None = None,
    is_trainable: bool | None = True,
) -> dict[str, Any]:
    """One step: the agent's text, then what was observed."""
    return {
        "input": given,
        "thought": None,
        "output": output,
        "tool_calls": [{"call_id": call_id, "name": call[0], "arguments": call[1]}] if call else [],
        "observations": [
            {"source": source, "name": None, "call_id": call_id, "content": content}
            for content in seen
        ],
        "next_observation": "\n".join(seen) or None,
        "is_trainable": is_trainable,
    }


def run(*steps: dict[str, Any], tools: str | None = None, score: float | None = None) -> Run:
    """A run with what verification finds in it."""
    numbered = [{"step_id": i, **each} for i, each in enumerate(steps, start=1)]
    found = verify(tools, numbered)
    return Run(numbered, found["failures"], found["errors"], score)


def steps_of(flags: Any) -> list[int]:
    return [flag.step_id for flag in flags]


def named(some: Run) -> list[tuple[int, str]]:
    return [(flag["step_id"], flag["flag"]) for flag in flags_of(some)["flags"]]


SEARCH = step("Thought: I look.\nAction: search[kite]", "A kite is a toy.")
AGAIN = step("Thought: I look once more.\nAction: search[kite]", "A kite is a toy.")
OTHER = step("Action: search[toy]", "A toy is to play with.")
FINISH = step("Action: finish[toy]", "Episode finished, reward = True")


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("Action: open[kite]", "Invalid action. Valid actions are search[query], finish[answer]."),
        ("Action: fly[kite]", "Error: there is no tool named 'fly'"),
        ("take mug from desk 9", "Nothing happens."),
        ("Thought: what now?\nAction:", "Go on."),
        ("Action: click[Red]", "A page"),  # the page before has no such button
    ],
)
def test_an_action_that_is_none(said: str, seen: str) -> None:
    page = step("Action: search[mug]", "Back to Search [SEP] Blue [SEP] Buy Now")
    assert steps_of(invalid_actions(run(page, step(said, seen)))) == [2]


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("Action: click[blue]", "A page"),
        ("Thought: I think before I act.", ""),
        ("Hello, how can I help?", "I got the message: invalid action."),
        ("Action: search[errors]", "People say 'Invalid action' when a button is missing."),
        ("Action: search[x]", "Error: the search service timed out."),
    ],
)
def test_an_action_like_any_other(said: str, seen: str) -> None:
    page = step("Action: search[mug]", "Back to Search [SEP] Blue [SEP] Buy Now")
    assert steps_of(invalid_actions(run(page, step(said, seen)))) == []


def test_an_empty_output_has_neither_text_nor_call() -> None:
    assert steps_of(empty_outputs(run(step(None), step(" \n"), SEARCH))) == [1, 2]


def test_a_call_a_closing_response_or_a_call_left_out_of_the_log_is_not_empty() -> None:
    calls = step(None, call=("add", "{}"))
    closes = step(None, "Done.", source="agent")
    left_out = step(None, '{"order": 7}')
    assert steps_of(empty_outputs(run(calls, closes, left_out))) == []


def test_the_same_action_with_nothing_new_is_repeated() -> None:
    assert steps_of(repeated_actions(run(SEARCH, AGAIN, FINISH))) == [2]
    # What was tried in between brought the same once more.
    page = step("Action: search[toy kite]", "A kite is a toy.")
    assert steps_of(repeated_actions(run(SEARCH, page, AGAIN))) == [3]
    # Two actions in turn: the second round of the second one.
    assert steps_of(repeated_actions(run(SEARCH, OTHER, SEARCH, OTHER))) == [4]


@pytest.mark.parametrize(
    "steps",
    [
        [SEARCH, OTHER, AGAIN],  # something new was seen in between
        [step("Action: scroll[down]", "Page 1"), step("Action: scroll[down]", "Page 2")],
        [SEARCH, step("Action: search[kite]", "A kite is a toy.", given="Look again, please.")],
        [step(None, "Error: no such user"), step(None, "Error: no such user")],  # calls left out
        [step("Action: search[kite]"), step("Action: search[kite]")],  # and so are the replies
        [step("Shall I?", "Yes.", source="user"), step("Shall I?", "Yes.", source="user")],
        # A test that fails as before, after an edit of another kind.
        [
            step("Action: run[test]", "1 failed"),
            step("Action: edit[a.py]", "The file is saved."),
            step("Action: run[test]", "1 failed"),
            step("Action: edit[b.py]", "The file is saved."),
            step("Action: run[test]", "1 failed"),
        ],
        # One may try once more what failed for now.
        [
            step("Action: get[x]", "Request timed out."),
            step("Action: get[x]", "Request timed out."),
        ],
    ],
)
def test_an_action_may_come_again_where_something_is_new(steps: list[dict[str, Any]]) -> None:
    assert steps_of(repeated_actions(run(*steps))) == []


def test_a_cycle_gone_through_three_times_is_a_loop_from_its_second_time_on() -> None:
    assert steps_of(loops(run(SEARCH, AGAIN, SEARCH, AGAIN))) == [2, 3, 4]
    assert steps_of(loops(run(FINISH, *[SEARCH, OTHER] * 3, FINISH))) == [4, 5, 6, 7]
    four = [step(f"Action: go[{room}]", f"You are in the {room}.") for room in "abcd"]
    assert steps_of(loops(run(*four * 3))) == [5, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize(
    "steps",
    [
        [SEARCH, AGAIN, OTHER],
        [SEARCH, OTHER, SEARCH, OTHER],
        [step("Action: scroll[down]", f"Page {n}") for n in range(5)],
        [step("Action: wait[]", "Not yet.", given="Go on.")] * 4,
        [step(None, "Error: order not found")] * 4,
    ],
)
def test_what_is_no_loop(steps: list[dict[str, Any]]) -> None:
    assert steps_of(loops(run(*steps))) == []


def test_calls_that_do_not_parse_are_malformed_with_tools_and_without() -> None:
    broken = step(None, "?", call=("add", '{"a": 1'))
    for tools in (ADD, None):
        assert steps_of(malformed_calls(run(broken, tools=tools))) == [1]
    assert steps_of(malformed_calls(run(step(None, "?", call=("add", "[1]")), tools=ADD))) == [1]
    assert steps_of(malformed_calls(run(step(None, "?", call=(None, "{}"))))) == [1]


@pytest.mark.parametrize("arguments", ['{"a": 1}', "", "{}", '{"a": NaN}', "{a: 1}", "x=1"])
def test_what_is_an_object_or_was_never_meant_as_json_is_well_formed(arguments: str) -> None:
    assert steps_of(malformed_calls(run(step(None, "1", call=("add", arguments))))) == []


def test_a_tool_is_unknown_only_where_the_tools_are_known() -> None:
    call = step(None, "1", call=("subtract", "{}"))
    assert steps_of(unknown_tools(run(call, tools=ADD))) == [1]
    assert steps_of(unknown_tools(run(call))) == []
    assert steps_of(unknown_tools(run(step(None, call=("finish", "{}")), tools=ADD))) == []


@pytest.mark.parametrize("arguments", ["{}", '{"a": "one"}', '{"a": 1, "c": 2}'])
def test_arguments_that_break_the_schema(arguments: str) -> None:
    call = step(None, "1", call=("add", arguments))
    assert steps_of(schema_violations(run(call, tools=ADD))) == [1]
    assert steps_of(schema_violations(run(call))) == []


@pytest.mark.parametrize(
    ("seen", "error_class", "masks"),
    [
        ("Error: invalid parameter: city", "invalid_arguments", True),
        ("Error: unknown tool", "unknown_tool", True),
        ("Invalid action.", "invalid_action", True),
        ("Request timed out.", "timeout", False),
        ("HTTP 429 Too Many Requests", "rate_limit", False),
        ("HTTP 403 Forbidden", "permission", False),
        ("HTTP 503 Service Unavailable", "http_error", False),
        ("Error: user not found", "not_found", False),
        ("Traceback (most recent call last):\n  File", "program_error", False),
        ("Error: division by zero", "other", False),
    ],
)
def test_an_error_masks_where_it_is_the_agents_own(
    seen: str, error_class: str, masks: bool
) -> None:
    (flag,) = error_observations(run(step("Action: get[x]", seen)))
    assert (flag.detail.split(":")[0], flag.masks) == (error_class, masks)


def test_of_several_errors_the_agents_own_comes_first() -> None:
    both = run(step(None, "Request timed out.", "Error: unknown tool", call=("add", "{}")))
    found = flags_of(both)
    errors = [f["detail"] for f in found["flags"] if f["flag"] == "error_observation"]
    assert [detail.split(":")[0] for detail in errors] == ["unknown_tool", "timeout"]


def test_an_empty_result_is_no_error() -> None:
    assert list(error_observations(run(step("Action: search[x]", "Could not find [x].")))) == []


GIVES_UP = step(None, call=("Finish", '{"return_type": "give_up_and_restart"}'))
ANSWERED = step(None, "2", call=("add", '{"a": 1}'), call_id="1")


@pytest.mark.parametrize(
    ("steps", "score", "is_finished"),
    [
        ([SEARCH, step("It is a toy.")], None, True),  # a chat ends with the agent's words
        ([step("It is a toy.", "Thank you!", source="user")], None, True),
        ([SEARCH, FINISH], 0.0, True),
        ([step("Thought: I know.", "It is a toy.", source="agent")], None, True),
        ([SEARCH], 1.0, True),
        ([SEARCH], 0.0, False),  # nothing was made of the last observation
        ([SEARCH, step(None, given="And a toy?")], None, False),  # nor an answer given
        ([SEARCH, GIVES_UP], 0.0, False),
        ([SEARCH, step("Thought: now I only have to")], None, False),
        ([SEARCH, step("Thought: I know.\nFinal Answer: a toy")], None, True),
        ([ANSWERED, step(None, call=("add", '{"a": 2}'), call_id="2")], None, False),
        ([step("Action: finish[toy]", "Error: invalid action")], None, False),
        # The log does not tell: actions that need no reply, and samples of one call.
        ([SEARCH, step("Action: click[Buy Now]")], None, None),
        ([step(None, call=("add", '{"a": 1}'))], None, None),
        ([], None, None),
    ],
)
def test_whether_a_run_is_finished(
    steps: list[dict[str, Any]], score: float | None, is_finished: bool | None
) -> None:
    some = run(*steps, score=score)
    assert how_it_ended(some).is_finished is is_finished
    assert steps_of(unfinished(some)) == ([len(steps)] if is_finished is False else [])


WRONG = step(None, "Error: invalid argument: a", call=("add", '{"a": "one"}'))
RIGHT = step(None, "1", call=("add", '{"a": 1}'))


def test_another_action_after_an_error_of_the_agents_own_is_a_self_correction() -> None:
    found = flags_of(run(WRONG, RIGHT, step("It is 1.")))
    assert [f["step_id"] for f in found["flags"] if f["flag"] == "self_correction"] == [2]
    assert (found["first_error_step"], found["trainable_steps"]) == (1, [2, 3])
    assert found["sound_steps"] == []
    assert found["flagged_step_count"] == 1  # a correction is no fault

    unknown = step("Action: open[kite]", "Invalid action. Valid actions are search[query].")
    assert (2, "self_correction") in named(run(unknown, SEARCH, FINISH))


def test_it_may_take_several_tries() -> None:
    worse = step(None, "Error: invalid argument: a", call=("add", '{"a": "1"}'))
    assert (3, "self_correction") in named(run(WRONG, worse, RIGHT))
    assert (2, "self_correction") not in named(run(WRONG, worse, RIGHT))


def test_after_an_error_of_the_environment_only_the_same_tool_is_a_correction() -> None:
    failed = step(None, "Error: user not found", call=("find", '{"mail": "x"}'))
    same = step(None, "User 7", call=("find", '{"name": "X"}'))
    assert (2, "self_correction") in named(run(failed, same))
    assert (2, "self_correction") not in named(run(failed, RIGHT))


@pytest.mark.parametrize(
    "steps",
    [
        [WRONG, step("I am sorry, I cannot add that.")],
        [WRONG, step("Action: finish[1]", "Episode finished, reward = False")],
        [WRONG, step(None, "1", call=("add", '{"a": 1}'), given="Take the number 1.")],
        [WRONG, step("Action: search[one]", "Could not find [one].")],
        [RIGHT, WRONG, RIGHT],  # back to what was done before
        [step(None, "Request timed out.", call=("add", '{"a": 1}')), RIGHT],  # tried once more
        [RIGHT, step(None, "2", call=("add", '{"a": 2}'))],
    ],
)
def test_what_is_no_self_correction(steps: list[dict[str, Any]]) -> None:
    assert "self_correction" not in flags_of(run(*steps))["flag_names"]


def test_steps_are_masked_by_the_source_by_silence_or_by_a_rule() -> None:
    found = flags_of(
        run(
            step("Action: search[a]", "A.", is_trainable=False),
            step("Action: search[b]", "B."),
            step(None, "C."),
            step("Action: open[b]", "Invalid action."),
            step("Action: search[d]", "D.", is_trainable=None),
            step("It is B."),
        )
    )
    assert found["unmasked_steps"] == [2, 4, 6]
    assert found["trainable_steps"] == [2, 6]
    assert found["first_error_step"] == 4
    assert found["sound_steps"] == [2]


def test_a_tidy_run_has_no_flags_and_all_its_steps() -> None:
    found = flags_of(run(SEARCH, OTHER, FINISH, score=1.0))
    assert found == {
        "step_count": 3,
        "unmasked_steps": [1, 2, 3],
        "trainable_steps": [1, 2, 3],
        "sound_steps": [1, 2, 3],
        "flags": [],
        "flag_names": [],
        "flagged_step_count": 0,
        "first_error_step": None,
        "repeated_step_count": 0,
        "self_correction_count": 0,
        "has_loop": False,
        "is_finished": True,
    }


def test_counts_are_of_steps() -> None:
    found = flags_of(run(SEARCH, AGAIN, SEARCH, AGAIN, score=0.0))
    assert found["flag_names"] == ["loop", "repeated_action", "unfinished"]
    assert (found["flagged_step_count"], found["repeated_step_count"]) == (3, 3)
    assert (found["has_loop"], found["is_finished"]) == (True, False)


@pytest.mark.parametrize(
    ("some", "says"),
    [
        (step(" \t\r\n\f"), False),
        (step("\u00a0"), True),  # RE2's \s is ASCII, and so is this
        (step(None, call=("add", "{}")), True),
        (step(None, "", source="agent"), True),  # becomes "Response: "
        (step(None, "", source="user"), False),
    ],
)
def test_what_the_agent_says_is_what_its_message_has(some: dict[str, Any], says: bool) -> None:
    assert says_something(some) is says


def test_arrow_in_and_out_with_nulls() -> None:
    some = run(WRONG, RIGHT)
    steps = pa.array([list(some.steps), None], pa.list_(STEP))
    failures = pa.array([list(some.failures), None], pa.list_(FAILURE))
    errors = pa.array([list(some.errors), None], pa.list_(OBSERVED_ERROR))
    flagged = flag_steps(steps, failures, errors, pa.array([None, 1.0], pa.float64()))

    assert flagged.type == STEP_FLAGS
    first, second = flagged.to_pylist()
    assert first == flags_of(some)
    assert (second["step_count"], second["flags"], second["is_finished"]) == (0, [], None)
