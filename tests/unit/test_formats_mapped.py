"""`mapped`: records read as a mapping says, and back; `model_read`: what a model told of one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unknown_formats import (
    COURIER,
    GREENHOUSE,
    SWITCHBOARD,
    barometer,
    courier,
    greenhouse,
    switchboard,
)

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats import FORMATS, detect, to_source
from udfs.formats.arrow import parse_records
from udfs.formats.jsontext import to_json
from udfs.formats.mapped import check_mapping, fields_read, mapping_id, pieces
from udfs.formats.model_read import checked


def read(record: Any, mapping: Any = None, **options: Any) -> dict[str, Any]:
    """What the standardizer makes of a record with a mapping (or an answer)."""
    if mapping is not None:
        options["mapping"] = mapping
    name = "model_read" if "answer" in options else "mapped"
    arguments = [json.dumps(record).encode(), None, name, json.dumps(options)]
    kinds = (pa.binary(), pa.string(), pa.string(), pa.string())
    columns = [pa.array([a], kind) for a, kind in zip(arguments, kinds, strict=True)]
    (row,) = parse_records(*columns).to_pylist()
    return dict(row)


def only(record: Any, mapping: Any = None, **options: Any) -> dict[str, Any]:
    row = read(record, mapping, **options)
    assert row["refusal"] is None, row["refusal"]
    (trajectory,) = row["trajectories"]
    return dict(trajectory)


def turns(trajectory: dict[str, Any]) -> list[tuple[str | None, ...]]:
    return [(s["input"], s["output"], s["next_observation"]) for s in trajectory["steps"]]


@pytest.mark.parametrize("record", [courier(1), switchboard(1), greenhouse(1), barometer(1)])
def test_the_records_of_these_tests_have_none_of_the_formats(record: Any) -> None:
    assert all(each.matches(record) == 0 for each in FORMATS)
    with pytest.raises(RefusedRecord, match="unknown_format"):
        detect(record)


def test_events_of_several_kinds_become_steps() -> None:
    row = only(courier(7), COURIER)
    assert turns(row) == [
        (
            "Bring parcel 7 to the harbour office before noon.",
            "Parcel 7 may be in depot 1.\n\nI look it up.",
            "Parcel 7 is in depot 1, shelf 7.",
        ),
        (None, "Drive to depot 1 and on to 14 Quay.", None),
        ("Can you be here at eleven?", "Yes, by a quarter to eleven.", None),
    ]
    assert row["steps"][0]["thought"] == "Parcel 7 may be in depot 1."
    assert row["steps"][0]["tool_calls"] == [
        {"call_id": None, "name": "locate", "arguments": '{"parcel":7}'}
    ]
    assert row["steps"][0]["observations"][0]["name"] == "locate"
    assert (row["task_id"], row["score"]) == ("run-7", 2.0)
    assert row["system_prompt"] == courier(7)["rules"]
    information = json.loads(row["other_information"])
    assert information["verdict"] == {"stars": 2}
    assert information["_layout"]["mapping"] == mapping_id(COURIER)
    # Longer texts are in the row once, and the way back fills them in.
    assert courier(7)["rules"] not in row["other_information"]
    assert to_source("mapped", row) == {name: courier(7)[name] for name in ("goal", "rules", "log")}


def test_a_text_with_labelled_lines_becomes_turns() -> None:
    row = only(switchboard(3), SWITCHBOARD)
    assert turns(row) == [
        (
            "My line 3 has been dead since Monday.\nIt crackles as well.",
            "I test the line.",
            "line 3: no dial tone",
        ),
        (None, "Line 3 is broken at the box. A fitter comes tomorrow.", None),
    ]
    assert (row["task_id"], row["model_name"]) == ("3", "switch-7b")
    assert to_source("mapped", row) == {"tape": switchboard(3)["tape"]}


def test_parallel_lists_are_read_side_by_side() -> None:
    assert turns(only(greenhouse(2), GREENHOUSE)) == [
        (
            "Keep bed 2 between 18 and 22 degrees.\n\nbed 2: 25 degrees, vents shut",
            "Too warm, so air first.\n\nopen_vents(left)",
            "bed 2: 21 degrees",
        ),
        (None, "Good now.\n\nwait(ten minutes)", None),
    ]


def test_json_text_is_looked_into_and_parts_of_content_are_joined() -> None:
    log = [
        ["ask", {"parts": [{"t": "Which way"}, {"img": 1}, {"t": "to the mill?"}]}],
        ["say", {"parts": [{"t": "Left."}]}],
    ]
    mapping = {
        "read": [
            {
                "list": "$.payload",
                "kind": "$[0]",
                "read": {
                    "ask": [{"as": "user", "text": "$[1].parts[*].t"}],
                    "say": [{"as": "agent", "text": "$[1].parts[*].t"}],
                },
            }
        ]
    }
    row = only({"payload": json.dumps(log)}, mapping)
    assert turns(row) == [("Which way\nto the mill?", "Left.", None)]
    assert to_source("mapped", row) == {"payload": json.dumps(log)}


def test_a_record_may_be_the_list_itself_and_an_object_s_values_a_list() -> None:
    mapping = {"read": [{"list": "$", "read": [{"as": "agent", "text": "$.x"}]}]}
    for record in ([{"x": "a"}, {"x": "b"}], {"1": {"x": "a"}, "2": {"x": "b"}}):
        row = only(record, mapping)
        assert [step["output"] for step in row["steps"]] == ["a", "b"]
        assert to_source("mapped", row) == record


def test_several_calls_of_a_turn_have_ids_and_results_name_them() -> None:
    record = {
        "acts": [
            {"do": [{"fn": "a", "in": "1", "no": "c1"}, {"fn": "b", "in": {"x": 2}, "no": "c2"}]},
            {"got": [{"no": "c1", "out": {"y": 1}}, {"no": "c2", "out": None}]},
        ]
    }
    calls = {"at": "$.do", "name": "$.fn", "arguments": "$.in", "id": "$.no"}
    mapping = {
        "read": [
            {
                "list": "$.acts",
                "read": [
                    {"as": "agent", "calls": calls | {"at": "$.do?"}},
                    {
                        "list": "$.got?",
                        "read": [{"as": "environment", "text": "$.out", "id": "$.no"}],
                    },
                ],
            }
        ]
    }
    (step,) = only(record, mapping)["steps"]
    assert step["output"] is None
    assert [tuple(call.values()) for call in step["tool_calls"]] == [
        ("c1", "a", "1"),
        ("c2", "b", '{"x":2}'),
    ]
    assert [(seen["call_id"], seen["content"]) for seen in step["observations"]] == [
        ("c1", '{"y":1}')
    ]


@pytest.mark.parametrize(
    ("change", "reason", "says"),
    [
        (
            lambda r: r["log"].append({"actor": "auditor", "body": "?"}),
            "unexpected_turn",
            "'auditor'",
        ),
        (lambda r: r["log"].append({"actor": 7}), "unexpected_turn", "'7'"),
        (lambda r: r["log"][3].pop("body"), "missing_field", "$.body"),
        (lambda r: r.pop("log"), "missing_field", "$.log"),
        (lambda r: r.update(log="none"), "unexpected_value", "$.log is no list"),
        (lambda r: r.update(log=[]), "no_steps", "never speaks"),
        (lambda r: r.update(verdict={"stars": "many"}), "unexpected_value", "'many'"),
    ],
)
def test_a_record_that_the_mapping_does_not_fit_is_refused(
    change: Any, reason: str, says: str
) -> None:
    record = courier(1)
    change(record)
    refusal = read(record, COURIER)["refusal"]
    assert (refusal["reason"], says in refusal["detail"]) == (reason, True), refusal


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ([], "has to be an object"),
        ({"reed": []}, "unknown key 'reed'. Keys: read, fields"),
        ({"read": {}}, "read is {} and has to be a list of parts"),
        ({"read": [{"as": "robot"}]}, "`as` one of system, user, agent, environment"),
        ({"read": [{"as": ["agent"]}]}, "`as` one of"),
        ({"read": [{"as": "agent"}]}, "read[0] says nothing. Give text or thought or calls"),
        ({"read": [{"as": "user", "text": "$.a", "thought": "$.b"}]}, "unknown key 'thought'"),
        ({"read": [{"as": "agent", "text": "$."}]}, "read[0].text is '$.'"),
        ({"read": [{"as": "agent", "text": "$.a[b"}]}, "begins neither a name nor [0]"),
        ({"read": [{"as": "agent", "text": 7}]}, "it is no text"),
        ({"read": [{"as": "agent", "calls": {"at": "$"}}]}, "calls needs `at` and `name`"),
        (
            {"read": [{"list": "$.a", "kind": "$.k", "read": []}]},
            "with `kind` it has to be an object",
        ),
        ({"read": [{"list": ["$.a"], "labels": ["x"], "read": []}]}, "`labels` cut one text"),
        ({"read": [{"list": "$.a", "labels": [""], "read": []}]}, "has to be a list of texts"),
        ({"read": [{"as": "user", "text": "$.a"}]}, "no part is `as: agent`"),
        ({"read": [{"as": "agent", "text": "$.a"}], "fields": {"goal": "$.b"}}, "unknown field"),
        ({"read": [{"as": "agent", "text": "$.a"}], "fields": {"group_key": "$.b"}}, "no column"),
        ({"read": [{"as": "agent", "text": "$.a"}] * 101}, "100 are the most"),
    ],
)
def test_a_wrong_mapping_is_named_with_its_place(mapping: Any, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_mapping(mapping, "here")
    assert str(error.value).startswith("here")
    assert says in str(error.value)


def test_labels_cut_only_where_lines_begin() -> None:
    text = "Preface.\nA: one A: two\n B: no\nAB: three\nA:\n"
    assert pieces(text, ["A:", "AB:", "B:"]) == [
        {"label": "", "text": "Preface."},
        {"label": "A:", "text": "one A: two\n B: no"},
        {"label": "AB:", "text": "three"},
        {"label": "A:", "text": ""},
    ]


def leaves(value: Any) -> Counter[str]:
    match value:
        case str():
            return Counter([value])
        case list():
            return sum((leaves(item) for item in value), Counter())
        case dict():
            return sum((leaves(item) for item in value.values()), Counter())
        case _:
            return Counter()


# What JSON holds; lone surrogates cannot be written as UTF-8 and are tested elsewhere.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
EVENT = st.fixed_dictionaries(
    {"actor": st.sampled_from(["planner", "result", "customer", "ping"]), "body": JSON},
    optional={"why": JSON, "tool": JSON, "extra": JSON, "_ref": JSON},
)
EVENTS = st.lists(EVENT, max_size=6)
MAPPINGS = {
    "events": COURIER["read"][2],
    "all in one": {
        "list": "$.log",
        "read": [
            {"as": "agent", "text": "$.body", "thought": "$.why?"},
            {"as": "environment", "text": "$.extra?", "name": "$.tool?"},
        ],
    },
    "the whole record": {"list": "$", "read": [{"as": "agent", "text": "$"}]},
}


@given(
    log=EVENTS, more=st.dictionaries(TEXT, JSON, max_size=3), how=st.sampled_from(list(MAPPINGS))
)
@settings(max_examples=300, deadline=None)
def test_every_text_of_a_record_is_in_its_row_and_comes_back(
    log: list[Any], more: dict[str, Any], how: str
) -> None:
    record = more | {"log": log}
    mapping = {"read": [{"as": "user", "text": "$.goal?"}, MAPPINGS[how]]}
    row = read(record, mapping)
    if row["refusal"]:
        assert row["refusal"]["reason"] != "parser_error", row["refusal"]
        return
    (trajectory,) = row["trajectories"]
    names = fields_read(record, mapping)
    source = record if names is None else {name: record[name] for name in names}
    assert to_source("mapped", trajectory) == source
    there = leaves(to_source("mapped", trajectory))
    there += leaves(json.loads(trajectory["other_information"]))
    there += leaves([trajectory[name] for name in ("user_query", "task_id", "model_name", "tools")])
    there += leaves(json.loads(trajectory["tools"] or "[]"))
    assert not leaves(record) - there
    # And a turn holds nothing but a value of the record.
    held = {value if isinstance(value, str) else to_json(value) for value in values(record)}
    for step in trajectory["steps"]:
        assert {seen["content"] for seen in step["observations"]} <= held
        assert step["thought"] is None or step["thought"] in held


def values(value: Any) -> Iterator[Any]:
    yield value
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        yield from values(item)


@given(
    mapping=JSON | st.fixed_dictionaries({"read": JSON | st.lists(JSON, max_size=3)}), record=JSON
)
@settings(max_examples=300, deadline=None)
def test_no_mapping_and_no_record_is_a_surprise(mapping: Any, record: Any) -> None:
    try:
        check_mapping(mapping, "here")
    except ConfigError:
        return
    row = read(record, mapping)
    assert row["refusal"] is None or row["refusal"]["reason"] != "parser_error"


@given(record=JSON)
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("mapping", [COURIER, SWITCHBOARD, GREENHOUSE])
def test_records_of_any_shape_are_refused_for_a_reason(mapping: Any, record: Any) -> None:
    row = read(record, mapping)
    assert row["refusal"] is not None
    assert row["refusal"]["reason"] != "parser_error"


def told(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The turns of a greenhouse's record, as a careful model tells them."""
    found: list[dict[str, Any]] = [{"as": "user", "text": record["wish"]}]
    for seen, thought, move in zip(
        record["readings"], record["musings"], record["moves"], strict=True
    ):
        found.append({"as": "environment", "text": seen})
        found.append({"as": "agent", "thought": thought, "text": move})
    return found


def test_what_a_model_told_becomes_a_row_and_the_rest_stays() -> None:
    record = greenhouse(5)
    answer = {"turns": told(record), "fields": {"task_id": "$.house.id"}}
    row = only(record, answer=answer)
    assert turns(row) == turns(only(record, GREENHOUSE))
    assert row["task_id"] == "5"
    assert json.loads(row["other_information"])["house"] == {"id": 5}
    assert to_source("model_read", row) == {key: record[key] for key in record if key != "house"}


def test_pieces_of_one_text_may_be_told() -> None:
    record = switchboard(1)
    lines = [line.split("> ")[-1] for line in record["tape"].strip().split("\n")]
    sides = ["user", "agent", "environment", "agent"]
    texts = ["\n".join(lines[:2]), *lines[2:]]
    answer = {"turns": [{"as": s, "text": t} for s, t in zip(sides, texts, strict=True)]}
    row = only(record, answer=answer)
    assert [step["output"] for step in row["steps"]] == [lines[2], lines[4]]
    assert to_source("model_read", row) == {"tape": record["tape"]}


def changed(number: int, **values: Any) -> Any:
    def change(answer: dict[str, Any]) -> None:
        answer["turns"][number] |= values

    return change


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        (changed(1, text="bed 5: 19 degrees"), "not_verbatim", "The text of turn 2"),
        (changed(2, thought="Too hot."), "not_verbatim", "The thought of turn 3"),
        (changed(0, text="Keep it warm."), "not_verbatim", "The text of turn 1"),
        (changed(1, name="thermometer"), "not_verbatim", "The name of turn 2"),
        (
            changed(2, calls=[{"name": "open_vents", "arguments": {"side": "left"}}]),
            "not_verbatim",
            "argument of turn 3",
        ),
        (lambda a: a["turns"].append(dict(a["turns"][-1])), "used_twice", "turn 6"),
        (
            lambda a: a["turns"].__setitem__(slice(1, 5), a["turns"][3:5] + a["turns"][1:3]),
            "out_of_order",
            "turn 4",
        ),
        (lambda a: a["turns"].__delitem__(slice(0, 4)), "not_carried", "of the"),
        (lambda a: a.update(turns=[a["turns"][0]]), "no_steps", "agent"),
        (lambda a: a.update(notes=1), "invalid_answer", "notes"),
        (changed(0, thought="x"), "invalid_answer", "Turn 1 has thought"),
        (changed(1, text=7), "invalid_answer", "no text"),
        (lambda a: a["turns"].append({"as": "agent"}), "invalid_answer", "Turn 6 is empty"),
        (lambda a: a.update(fields={"goal": "$.x"}), "invalid_answer", "unknown field"),
    ],
)
def test_an_answer_that_is_not_in_the_record_fails_a_check(
    change: Any, check: str, says: str
) -> None:
    record = greenhouse(5)
    answer = {"turns": told(record)}
    assert checked(record, answer) == ["wish", "readings", "moves", "musings"]
    change(answer)
    with pytest.raises(RefusedRecord) as refused:
        checked(record, answer)
    assert (refused.value.reason, says in refused.value.detail) == (check, True), refused.value


@given(record=JSON, answer=JSON | st.fixed_dictionaries({"turns": JSON | st.lists(JSON)}))
@settings(max_examples=300, deadline=None)
def test_no_answer_is_a_surprise(record: Any, answer: Any) -> None:
    with pytest.raises(RefusedRecord):
        checked(record, answer)
