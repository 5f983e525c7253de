"""Which format a record has is told from the record alone, and what is unknown says why."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import FORMATS, Options, detect, format_named

ASK = {"role": "user", "content": "Where?"}
SAY = {"role": "assistant", "content": "In Lyon."}
REACT = "Thought: a\nAction: b[c]"
OBSERVED = {"role": "user", "content": "Observation: d"}
TOOL_RESULT = {"type": "tool_result", "tool_use_id": "1", "content": "a"}
CALLING = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "function": {"name": "f"}}],
}


@pytest.mark.parametrize(
    ("record", "name", "confidence"),
    [
        ({"messages": [ASK, SAY]}, "chat", 0.75),
        ({"dialogue": [ASK, SAY], "prompt": "x"}, "chat", 0.75),
        ([ASK, SAY], "chat", 0.75),
        ({"messages": [ASK, CALLING]}, "chat", 0.9),
        ({"messages": [ASK, SAY, {"role": "tool", "content": "x"}]}, "chat", 0.9),
        # Several fields hold turns; `messages` is the run.
        ({"messages": [ASK, SAY], "examples": [ASK, SAY]}, "chat", 0.75),
        ({"traj": [ASK, {**SAY, "content": REACT}, OBSERVED]}, "react_chat", 0.9),
        # Labels alone, or observations alone, are not enough.
        ({"traj": [ASK, {**SAY, "content": REACT}]}, "chat", 0.75),
        ({"traj": [ASK, SAY, OBSERVED]}, "chat", 0.75),
        ({"text": f"Do it.\n{REACT}\nObservation: d"}, "react_text", 0.9),
        ({"text": "Question: q\nModel Action 1: b\nEnv Observation 1: c"}, "react_text", 1.0),
        ([["USER: a", "ASSISTANT Response: b"], [False, True]], "toolalpaca", 1.0),
        ({"conversations": [{"from": "human", "value": "a"}]}, "sharegpt", 0.75),
        ({"a": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}]}, "sharegpt", 0.9),
        ({"messages": [ASK, {"role": "user", "content": [TOOL_RESULT]}]}, "anthropic", 1.0),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
            "chat",
            0.75,
        ),
        ({"messages_display": "user: a\nassistant: b"}, "messages_display", 1.0),
    ],
)
def test_format_is_recognised(record: Any, name: str, confidence: float) -> None:
    found, how_sure = detect(record)
    assert (found.name, how_sure) == (name, confidence)


def step_row(output: str) -> dict[str, Any]:
    """A row of a data set of single steps: the prompt, the answer, and both as turns."""
    return {"task_name": "t", "prompt": "<user>Where?", "output": output, "messages": [ASK, SAY]}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"alpha": 1, "beta": [2]}, "keys alpha, beta. None of the formats is near"),
        (
            {"conversations": [{"from": "human", "text": "a"}]},
            "sharegpt, but the first turn has no",
        ),
        (step_row("In Lyon.<end>") | {"task_name": None}, "one step of a longer run"),
        ({"chosen": [ASK, SAY], "rejected": [ASK, SAY]}, "chosen, rejected each hold"),
        ({"trajectory": [{"url": "u", "axtree": "t"}]}, "they have url, axtree"),
        ([{"id": 0, "input": [ASK]}], "a list of 1; the first item is an object"),
        ({"a": REACT}, "react_text, but `a` has thoughts or actions, but no observation"),
        ({"a": f"{REACT}\nObservation: d", "b": f"{REACT}\nObservation: d"}, "several fields"),
        ([["USER: a", "ASSISTANT b"], [True]], "toolalpaca, but it has 2 texts, but 1 flags"),
        ({"messages_display": "Hello"}, "messages_display, but"),
        ({f"key{n}": n for n in range(100)}, "and 80 more"),
        ({}, "the keys (none)"),
        ([], "a list of 0"),
        ("Thought: a", "a text that begins 'Thought: a'"),
        (None, "the bare value None"),
        (1.5, "the bare value 1.5"),
    ],
)
def test_unknown_record_names_its_keys_and_the_nearest_format(record: Any, words: str) -> None:
    with pytest.raises(RefusedRecord) as refused:
        detect(record)
    assert refused.value.reason == "unknown_format"
    assert words in refused.value.detail


def test_a_prompt_beside_a_whole_run_does_not_make_it_a_step() -> None:
    assert detect(step_row("something else"))[0].name == "chat"
    longer = step_row("In Lyon.") | {"messages": [ASK, SAY, ASK, SAY]}
    assert detect(longer)[0].name == "chat"


def test_record_of_two_formats_is_ambiguous() -> None:
    with pytest.raises(RefusedRecord) as refused:
        detect({"messages": [ASK, SAY], "text": f"{REACT}\nObservation: d"})
    assert refused.value.reason == "ambiguous_format"
    assert "react_text (0.9) and chat (0.75)" in refused.value.detail


def test_only_the_keys_of_a_huge_record_are_shown() -> None:
    with pytest.raises(RefusedRecord) as refused:
        detect({"k" * 5_000: "v" * 5_000})
    assert len(refused.value.detail) < 700


def test_formats_have_distinct_names_and_an_example_in_their_documentation() -> None:
    assert len({each.name for each in FORMATS}) == len(FORMATS)
    for each in FORMATS:
        documentation = sys.modules[each.matches.__module__].__doc__ or ""
        assert documentation.startswith(f"`{each.name}`: ")
        assert "Source: " in documentation, each.name


def test_unknown_name_lists_the_formats() -> None:
    with pytest.raises(ConfigError) as error:
        format_named("openai")
    assert all(each.name in str(error.value) for each in FORMATS)


def test_detection_leaves_the_record_as_it_is() -> None:
    record = {"messages": [ASK, CALLING], "_layout": 1, "question": "q"}
    before = json.dumps(record)
    detect(record)[0].parse(record, "k", Options())
    assert json.dumps(record) == before
