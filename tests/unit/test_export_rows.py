"""What the rows of an export's layouts look like: short conversations, in and out."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest

from orchestration.export import rows
from orchestration.export.layouts import LAYOUTS
from orchestration.export.redaction import redacted
from udfs.errors import ExportError
from udfs.formats import Options, detect
from udfs.formats.trajectory import content_sha256

CALL = pa.struct(
    [
        ("id", pa.string()),
        ("type", pa.string()),
        ("function", pa.struct([("name", pa.string()), ("arguments", pa.string())])),
    ]
)
MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("tool_calls", pa.list_(CALL)),
            ("tool_call_id", pa.string()),
            ("name", pa.string()),
        ]
    )
)
UNITS = pa.schema(
    [
        ("position", pa.int64()),
        ("epoch", pa.int32()),
        ("trajectory_id", pa.string()),
        ("source", pa.string()),
        ("messages", MESSAGES),
        ("tools", pa.string()),
        ("loss_flags", pa.list_(pa.bool_())),
        ("weight", pa.float64()),
        ("message_steps", pa.list_(pa.int32())),
    ]
)


def said(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    empty = {"tool_calls": None, "tool_call_id": None, "name": None}
    return empty | {"role": role, "content": content} | fields


def call(name: str, arguments: str | None, call_id: str | None = "c1") -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


SYSTEM = said("system", "Be brief.")
ASKED = said("user", "Where is it?")
CALLED = said("assistant", None, tool_calls=[call("track", '{"n": 17}')])
SEEN = said("tool", "Lyon", tool_call_id="c1", name="track")
ANSWERED = said("assistant", "In Lyon.")
THANKED = said("user", "Thanks.")
COURIER = [SYSTEM, ASKED, CALLED, SEEN, ANSWERED, THANKED]
TOOLS = '[{"name": "track", "parameters": {"type": "object"}}]'


def unit(
    messages: list[dict[str, Any]], masked: tuple[int, ...] = (), tools: str | None = None
) -> pa.Table:
    """One position of a plan; every output is learned from but those at the places in `masked`."""
    step, steps = 0, []
    for message in messages:
        step += message["role"] == "assistant"
        steps.append(None if message["role"] == "system" else max(step, 1))
    row = {
        "position": 0,
        "epoch": 1,
        "trajectory_id": "t",
        "source": "a",
        "messages": messages,
        "tools": tools,
        "loss_flags": [
            message["role"] == "assistant" and place not in masked
            for place, message in enumerate(messages)
        ],
        "weight": 0.5,
        "message_steps": steps,
    }
    return pa.Table.from_pylist([row], UNITS)


# --- OpenAI ---------------------------------------------------------------------------------------


def test_openai_answers_have_weights_and_results_answer_calls() -> None:
    (record,), noted = rows.openai(unit(COURIER, masked=(2,), tools=TOOLS))
    assert record == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Where is it?"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [call("track", '{"n": 17}')],
                "weight": 0,
            },
            {"role": "tool", "tool_call_id": "c1", "content": "Lyon"},
            {"role": "assistant", "content": "In Lyon.", "weight": 1},
            {"role": "user", "content": "Thanks."},
        ],
        "tools": [{"type": "function", "function": json.loads(TOOLS)[0]}],
    }
    assert noted == {}


def test_openai_calls_without_ids_get_some_and_stray_results_are_the_users() -> None:
    messages = [
        ASKED,
        said("assistant", None, tool_calls=[call("f", None, None), call("g", "{}", None)]),
        said("tool", "one"),
        said("tool", "two"),
        said("tool", "three"),
        ANSWERED,
    ]
    (record,), noted = rows.openai(unit(messages))
    _, called, first, second, third, _ = record["messages"]
    ids = [each["id"] for each in called["tool_calls"]]
    assert len(set(ids)) == 2 and None not in ids
    assert [first["tool_call_id"], second["tool_call_id"]] == ids
    assert third == {"role": "user", "content": "three"}
    assert noted == {"tool_turns_told_by_the_user": 1}
    assert "tools" not in record


def test_openai_records_are_read_back_as_what_they_were() -> None:
    (record,), _ = rows.openai(unit(COURIER, masked=(2,), tools=TOOLS))
    found, _ = detect(record)
    (trajectory,) = found.parse(record, None, Options())
    assert found.name == "chat"
    assert trajectory.system_prompt == "Be brief."
    assert [step.is_trainable for step in trajectory.steps] == [False, True]
    assert trajectory.steps[0].tool_calls == [("c1", "track", '{"n": 17}')]


# --- LLaMA-Factory --------------------------------------------------------------------------------


def test_sharegpt_turns_alternate_and_end_with_the_agents() -> None:
    (record,), noted = rows.sharegpt(unit(COURIER, masked=(2,), tools=TOOLS))
    assert record["system"] == "Be brief."
    assert json.loads(record["tools"]) == json.loads(TOOLS)
    assert record["conversations"] == [
        {"from": "human", "value": "Where is it?", "loss": False},
        {
            "from": "function_call",
            "value": '{"name":"track","arguments":{"n":17}}',
            "loss": False,
        },
        {"from": "observation", "value": "Lyon", "loss": False},
        {"from": "gpt", "value": "In Lyon.", "loss": True},
    ]
    assert noted == {"turns_after_the_last_output": 1}


def test_sharegpt_joins_what_stands_between_two_outputs() -> None:
    two = [call("f", "{}"), call("g", "no json")]
    results = [said("tool", "one"), said("tool", "two")]
    (record,), noted = rows.sharegpt(
        unit([ASKED, said("assistant", None, tool_calls=two), *results, ANSWERED])
    )
    assert [turn["value"] for turn in record["conversations"]] == [
        "Where is it?",
        '[{"name":"f","arguments":{}},{"name":"g","arguments":"no json"}]',
        "one\n\ntwo",
        "In Lyon.",
    ]
    assert record["conversations"][2]["from"] == "observation"
    assert (record["system"], record["tools"]) == ("", "")
    assert noted == {"joined_turns": 1}
    (record,), _ = rows.sharegpt(unit([ASKED, CALLED, SEEN, THANKED, ANSWERED]))
    assert record["conversations"][2] == {
        "from": "human",
        "value": "Lyon\n\nThanks.",
        "loss": False,
    }


def test_sharegpt_fills_in_where_outputs_follow_one_another() -> None:
    (record,), noted = rows.sharegpt(unit([SYSTEM, ANSWERED, ANSWERED]))
    assert [turn["from"] for turn in record["conversations"]] == [
        "human",
        "gpt",
        "observation",
        "gpt",
    ]
    assert [turn["value"] for turn in record["conversations"]][::2] == ["", ""]
    assert noted == {"empty_turns": 2}


def test_sharegpt_marks_calls_that_stand_beside_text() -> None:
    both = said("assistant", "I look.", tool_calls=[call("track", "{}")])
    (record,), noted = rows.sharegpt(unit([ASKED, both]))
    assert record["conversations"][1] == {
        "from": "function_call",
        "value": 'I look.<tool_call>{"name":"track","arguments":{}}</tool_call>',
        "loss": True,
    }
    assert noted == {"calls_beside_text": 1}


def test_sharegpt_records_are_read_back_with_their_masks() -> None:
    (record,), _ = rows.sharegpt(unit(COURIER[:-1], masked=(2,)))
    found, _ = detect(record)
    (back,) = found.parse(record, None, Options())
    assert found.name == "sharegpt"
    assert [step.is_trainable for step in back.steps] == [False, True]
    (record,), _ = rows.openai(unit(COURIER[:-1]))
    (same,) = detect(record)[0].parse(record, None, Options())
    assert content_sha256(back) == content_sha256(same)


def test_dataset_info_names_the_files_of_the_splits() -> None:
    files = LAYOUTS["sharegpt"].files("mine", {"train": ["data/t.jsonl"], "eval": ["data/e.jsonl"]})
    info = files["dataset_info.json"]
    assert info["mine"]["file_name"] == "data/t.jsonl"
    assert info["mine_eval"]["file_name"] == "data/e.jsonl"
    assert info["mine"]["formatting"] == "sharegpt"
    assert info["mine"]["columns"] == {
        "messages": "conversations",
        "system": "system",
        "tools": "tools",
    }
    assert info["mine"]["tags"]["function_tag"] == "function_call"


# --- axolotl --------------------------------------------------------------------------------------


def test_axolotl_messages_say_whether_they_are_learned_from() -> None:
    made, noted = rows.axolotl(unit(COURIER, masked=(2,), tools=TOOLS))
    (row,) = made.to_pylist()
    assert [message["train"] for message in row["messages"]] == [
        False,
        False,
        False,
        False,
        True,
        False,
    ]
    assert [dict(message, train=None) for message in row["messages"]] == [
        message | {"train": None} for message in COURIER
    ]
    assert (row["tools"], row["weight"], noted) == (TOOLS, 0.5, {})
    assert "loss_flags" not in row


def test_axolotl_arguments_are_json_even_where_the_agents_were_not() -> None:
    broken = said("assistant", None, tool_calls=[call("f", "{oops"), call("g", None)])
    made, noted = rows.axolotl(unit([ASKED, broken, CALLED]))
    _, first, second = made["messages"].to_pylist()[0]
    assert first["tool_calls"][0]["function"]["arguments"] == '"{oops"'
    assert first["tool_calls"][1]["function"]["arguments"] is None
    assert second["tool_calls"] == CALLED["tool_calls"]
    assert noted == {"arguments_that_are_no_json": 1}


# --- prompt and chosen ----------------------------------------------------------------------------


def test_every_output_that_is_learned_from_has_a_row_with_all_before_it() -> None:
    made, _ = rows.prompt_chosen(unit([*COURIER, ANSWERED], masked=(4,), tools=TOOLS))
    called = '[{"name":"track","arguments":{"n":17}}]'
    assert [(row["step_id"], row["prompt"], row["chosen"]) for row in made.to_pylist()] == [
        (1, "Be brief.\nWhere is it?", called),
        (
            3,
            f"Be brief.\nWhere is it?\nAction: {called}\nObservation: Lyon\nAction: In Lyon.\n"
            "Thanks.",
            "In Lyon.",
        ),
    ]
    assert set(made["tools"].to_pylist()) == {TOOLS}


def test_a_table_without_outputs_has_no_rows() -> None:
    made, _ = rows.prompt_chosen(unit([ASKED, ANSWERED], masked=(1,)))
    assert made.num_rows == 0 and "prompt" in made.column_names


# --- pairs ----------------------------------------------------------------------------------------

PAIRS = pa.schema(
    [
        ("position", pa.int64()),
        ("pair_id", pa.string()),
        ("level", pa.string()),
        ("task_key", pa.string()),
        ("source", pa.string()),
        ("chosen_id", pa.string()),
        ("rejected_id", pa.string()),
        ("margin_on", pa.string()),
        ("chosen_value", pa.float64()),
        ("rejected_value", pa.float64()),
        ("weight", pa.float64()),
        ("prefix_steps", pa.int32()),
        ("chosen_last_step", pa.int32()),
        ("rejected_last_step", pa.int32()),
        ("chosen_messages", MESSAGES),
        ("chosen_steps", pa.list_(pa.int32())),
        ("chosen_flags", pa.list_(pa.bool_())),
        ("rejected_messages", MESSAGES),
        ("rejected_steps", pa.list_(pa.int32())),
        ("rejected_flags", pa.list_(pa.bool_())),
        ("tools", pa.string()),
    ]
)
GOOD = [SYSTEM, ASKED, CALLED, SEEN, ANSWERED]
BAD = [SYSTEM, ASKED, CALLED, SEEN, said("assistant", "In Rome."), said("user", "No.")]


def pair(prefix: int = 0, last: int = 2, **fields: Any) -> dict[str, Any]:
    return (
        dict.fromkeys(PAIRS.names)
        | {
            "pair_id": "p",
            "prefix_steps": prefix,
            "chosen_last_step": last,
            "rejected_last_step": last,
            "chosen_messages": GOOD,
            "chosen_steps": [None, 1, 1, 1, 2],
            "chosen_flags": [False, False, True, False, True],
            "rejected_messages": BAD,
            "rejected_steps": [None, 1, 1, 1, 2, 2],
            "rejected_flags": [False, False, False, False, True, False],
            "tools": TOOLS,
        }
        | fields
    )


def test_a_pair_of_runs_has_the_question_as_prompt() -> None:
    made, noted = rows.dpo(pa.Table.from_pylist([pair()], PAIRS))
    (row,) = made.to_pylist()
    assert row["prompt"] == [SYSTEM, ASKED]
    assert (row["chosen"], row["rejected"]) == (GOOD[2:], BAD[2:5])
    assert row["chosen_loss_flags"] == [True, False, True]
    assert row["rejected_loss_flags"] == [False, False, True]
    assert (row["tools"], noted) == (TOOLS, {})


def test_a_pair_of_steps_has_the_common_steps_as_prompt_and_ends_with_the_last() -> None:
    longer = {
        "rejected_messages": [*BAD, ANSWERED],
        "rejected_steps": [None, 1, 1, 1, 2, 2, 3],
        "rejected_flags": [False] * 7,
    }
    made, _ = rows.dpo(pa.Table.from_pylist([pair(), pair(prefix=1, **longer)], PAIRS))
    row = made.to_pylist()[1]
    assert row["prompt"] == [SYSTEM, ASKED, CALLED, SEEN]
    assert (row["chosen"], row["rejected"]) == (GOOD[4:], BAD[4:5])


def test_prompts_that_differ_are_counted() -> None:
    other = {"rejected_messages": [said("system", "Be long."), *BAD[1:]]}
    _, noted = rows.dpo(pa.Table.from_pylist([pair(), pair(**other)], PAIRS))
    assert noted == {"pairs_whose_prompts_differ": 1}


def test_reward_rows_are_runs_up_to_their_last_output() -> None:
    made, _ = rows.reward(pa.Table.from_pylist([pair(prefix=1, chosen_value=1.0)], PAIRS))
    (row,) = made.to_pylist()
    # What came behind it says that the run was wrong.
    assert (row["chosen"], row["rejected"]) == (GOOD, BAD[:5])
    assert row["chosen_value"] == 1.0


def test_a_continuation_without_a_message_is_refused() -> None:
    with pytest.raises(ExportError, match="Pair p: its chosen continuation, steps 3 to 4"):
        rows.reward(pa.Table.from_pylist([pair(prefix=2, last=4)], PAIRS))


# --- interchange ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agentohana", "adp", "atif"])
def test_steps_that_are_not_learned_from_are_masked_in_the_record(name: str) -> None:
    step = {
        "input": None,
        "thought": None,
        "tool_calls": [],
        "observations": [
            {"source": "environment", "name": None, "call_id": None, "content": "Lyon"}
        ],
        "is_trainable": True,
    }
    steps = [
        step | {"step_id": 1, "input": "Where?", "output": "Action: look"},
        step | {"step_id": 2, "output": "Action: finish"},
        step | {"step_id": 3, "output": "", "observations": []},
    ]
    row = {
        "user_query": "Where?",
        "system_prompt": None,
        "tools": None,
        "task_id": "t",
        "model_name": None,
        "score": 1.0,
        "steps": steps,
        "other_information": "{}",
        "trained_steps": [2],
    }
    (record,), _ = rows.interchange(name, pa.Table.from_pylist([row]))
    found, _ = detect(json.loads(json.dumps(record)))
    (back,) = found.parse(record, None, Options())
    assert found.name == name
    assert [each.is_trainable for each in back.steps] == [False, True, True]
    assert [each.output for each in back.steps] == ["Action: look", "Action: finish", ""]


# --- redaction ------------------------------------------------------------------------------------


def test_redaction_takes_contents_and_arguments_and_leaves_the_rest() -> None:
    address = "ada@some-firm.io"
    messages = [
        said("user", f"Write to {address}."),
        said("assistant", None, tool_calls=[call("send", json.dumps({"to": address}), address)]),
        said("tool", "sent", tool_call_id=address, name=address),
    ]
    table = redacted(unit(messages))
    asked, called, sent = table["messages"].to_pylist()[0]
    assert asked["content"] == "Write to [EMAIL]."
    function = called["tool_calls"][0]["function"]
    assert json.loads(function["arguments"]) == {"to": "[EMAIL]"}
    assert called["tool_calls"][0]["id"] == sent["tool_call_id"] == sent["name"] == address
    assert table["loss_flags"].to_pylist() == [[False, True, False]]
    assert table.schema == UNITS


def test_redaction_of_a_slice_is_that_of_its_rows() -> None:
    table = pa.concat_tables([unit([said("user", f"a{i}@some-firm.io")]) for i in range(5)])
    table = table.combine_chunks()
    whole = redacted(table).slice(2, 2).to_pylist()
    assert whole[0]["messages"][0]["content"] == "[EMAIL]"
    assert redacted(table.slice(2, 2)).to_pylist() == whole
