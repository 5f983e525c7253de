"""`parse_records`: batches of raw bytes to Arrow, whatever the bytes are."""

from __future__ import annotations

import json
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udfs.errors import ConfigError
from udfs.formats import FORMATS, arrow, chat, to_source
from udfs.formats.arrow import parse_records, parser_versions
from udfs.schema import PARSED_RECORD

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def parse(
    *raw: bytes | None,
    key: str | None = None,
    declared: str | None = None,
    options: str | None = None,
) -> list[dict[str, Any]]:
    def same(value: str | None) -> pa.Array:
        return pa.array([value] * len(raw), pa.string())

    out = parse_records(pa.array(raw, pa.binary()), same(key), same(declared), same(options))
    out.validate(full=True)
    assert out.type == PARSED_RECORD
    assert len(out) == len(raw)
    rows: list[dict[str, Any]] = out.to_pylist()
    for row in rows:
        assert (row["trajectories"] is None) != (row["refusal"] is None)
    return rows


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def test_a_record_becomes_a_row_of_the_schema() -> None:
    (row,) = parse(dumped(GOOD | {"id": 7}), key="k")
    (trajectory,) = row["trajectories"]
    assert (row["format"], row["format_confidence"], row["parser_version"]) == ("chat", 0.75, "3")
    assert trajectory["task_id"] == "7"
    assert json.loads(trajectory["other_information"]) == {"_layout": {"raw_key": "k"}}
    assert len(trajectory["content_sha256"]) == 64
    assert trajectory["steps"] == [
        {
            "step_id": 1,
            "input": "a",
            "thought": None,
            "output": "b",
            "tool_calls": [],
            "observations": [],
            "next_observation": None,
            "is_trainable": True,
        }
    ]


def test_steps_are_numbered_and_observations_joined() -> None:
    turns = [{"role": "assistant", "content": "x"}, {"role": "tool", "content": "1"}]
    turns += [{"role": "tool", "content": None}, {"role": "tool", "content": "2"}]
    (row,) = parse(dumped({"messages": turns * 2}))
    steps = row["trajectories"][0]["steps"]
    assert [step["step_id"] for step in steps] == [1, 2]
    assert [step["next_observation"] for step in steps] == ["1\n2", "1\n2"]


def test_no_records_is_no_rows() -> None:
    assert parse() == []


@pytest.mark.parametrize(
    ("raw", "reason", "words"),
    [
        (None, "empty_record", "white space"),
        (b"", "empty_record", "white space"),
        (b" \n\t", "empty_record", "white space"),
        (b'{"messages": [', "invalid_json", "character 15 of 14"),
        (b'{"a": 1} {"b": 2}', "invalid_json", "Extra data: character 10"),
        (b"{'a': 1}", "invalid_json", "character 2"),
        (b'{"a": "caf\xe9"}', "invalid_utf8", "Byte 11 of 13 (0xe9)"),
        (b"[" * 5_000 + b"]" * 5_000, "too_deep", "nested"),
        (b"[]", "unknown_format", "a list of 0"),
        (b'{"messages": [{"role": "user"}]}', "unexpected_turn", "Turn 1"),
    ],
)
def test_bad_record_says_why_and_leaves_its_neighbours_alone(
    raw: bytes | None, reason: str, words: str
) -> None:
    alone = parse(dumped(GOOD))[0]
    before, bad, after = parse(dumped(GOOD), raw, dumped(GOOD))
    assert before == after == alone
    assert bad["refusal"]["reason"] == reason
    assert words in bad["refusal"]["detail"]


def test_refusal_names_the_format_where_it_was_recognised() -> None:
    (row,) = parse(b'{"messages": [{"role": "user"}]}')
    assert (row["format"], row["format_confidence"]) == ("chat", 0.75)


def test_unforeseen_shape_costs_only_its_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net below the parsers; a parser is broken on purpose, since none is known to fail."""
    broken = chat.FORMAT.__class__(**(vars(chat.FORMAT) | {"parse": lambda *_: 1 // 0}))
    monkeypatch.setattr(arrow, "detect", lambda record: (broken, 1.0))
    (row,) = parse(dumped(GOOD))
    assert row["refusal"]["reason"] == "parser_error"
    assert "chat failed with ZeroDivisionError" in row["refusal"]["detail"]


def test_what_fast_readers_lose_is_kept() -> None:
    raw = (
        b'\xef\xbb\xbf{"big": 123456789012345678901234567890, "nan": NaN, "huge": 1e999,'
        b'"half": "\\ud83d!", "minus": -Infinity, "messages": ['
        b'{"role": "user", "content": "\\ude00"}, {"role": "assistant", "content": "\\u0000"}]}'
    )
    (row,) = parse(raw)
    (trajectory,) = row["trajectories"]
    assert json.loads(trajectory["other_information"]) == {
        "big": 123456789012345678901234567890,
        "nan": "NaN",
        "huge": "1e999",
        "half": "\\ud83d!",
        "minus": "-Infinity",
    }
    assert trajectory["steps"][0]["input"] == "\\ude00"
    assert trajectory["steps"][0]["output"] == "\x00"


def test_reward_of_nan_is_no_score() -> None:
    (row,) = parse(dumped(GOOD)[:-1] + b', "reward": NaN}')
    (trajectory,) = row["trajectories"]
    assert trajectory["score"] is None
    assert json.loads(trajectory["other_information"]) == {"reward": "NaN"}


@pytest.mark.parametrize("number", [2**63, 2**64, -(2**70), 10**25 + 1])
def test_integers_beyond_64_bits_keep_their_digits(number: int) -> None:
    (row,) = parse(dumped(GOOD | {"n": number, "more": [number]}))
    kept = json.loads(row["trajectories"][0]["other_information"])
    assert kept == {"n": number, "more": [number]}


def test_an_integer_of_any_length_is_read() -> None:
    (row,) = parse(dumped(GOOD)[:-1] + b', "n": ' + b"9" * 10_000 + b"}")
    assert len(str(json.loads(row["trajectories"][0]["other_information"])["n"])) == 10_000


def test_nesting_that_the_fast_writer_refuses_is_kept() -> None:
    deep: Any = "bottom"
    for _ in range(400):
        deep = [deep]
    (row,) = parse(dumped(GOOD | {"deep": deep}))
    assert json.loads(row["trajectories"][0]["other_information"]) == {"deep": deep}


def test_declared_format_is_used_and_refuses_what_it_is_not() -> None:
    other, good = parse(dumped({"text": "x"}), dumped(GOOD), declared="chat")
    assert other["refusal"]["reason"] == "no_turns"
    assert (other["format"], good["format_confidence"]) == ("chat", 1.0)


def test_options_reach_the_parser() -> None:
    text = dumped({"t": "Thought: a\nAction: b\nObservation: c"})
    assert len(parse(text)[0]["trajectories"][0]["steps"]) == 1
    (row,) = parse(text, options='{"thought_as_step": true}')
    assert len(row["trajectories"][0]["steps"]) == 2


@pytest.mark.parametrize("options", ["[1]", '{"thought": true}', "{"])
def test_wrong_options_stop_at_once(options: str) -> None:
    with pytest.raises(ConfigError, match="Options of a parser"):
        parse(dumped(GOOD), options=options)


def test_unknown_declared_format_stops_at_once() -> None:
    with pytest.raises(ConfigError, match="There is no format 'chatty'"):
        parse(dumped(GOOD), declared="chatty")


def test_chunked_arrays_are_taken_as_arrays_are() -> None:
    raw = pa.chunked_array([[dumped(GOOD)], [b"x", dumped(GOOD)]], pa.binary())
    nothing = pa.chunked_array([pa.array([None] * 3, pa.string())])
    rows = parse_records(raw, nothing, nothing, nothing).to_pylist()
    assert [row["format"] for row in rows] == ["chat", None, "chat"]


def test_versions_name_every_parser() -> None:
    assert all(f"{each.name}={each.version}" in parser_versions() for each in FORMATS)


text = st.text(max_size=12) | st.sampled_from(
    ["Thought: a\nAction: b", "Observation: c", "user: a\nassistant: None", "USER: q", "\ud800"]
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | text
keys = st.text(max_size=4) | st.sampled_from(
    [
        *("messages", "conversations", "role", "content", "tool_calls", "function_call"),
        *("function", "id", "name", "arguments", "tool_call_id", "traj", "prompt", "output"),
        *("messages_display", "type", "text", "question", "reward", "tools", "model", "from"),
        *("value", "_layout", "weight"),
    ]
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=25,
)
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "human", "gpt"])},
    optional={
        "content": st.none() | text,
        "name": st.none() | text,
        "tool_call_id": st.none() | st.sampled_from(["a", "b"]),
        "function_call": st.none() | st.fixed_dictionaries({"name": text, "arguments": values}),
        "tool_calls": st.none()
        | st.lists(
            st.fixed_dictionaries(
                {"function": st.fixed_dictionaries({"name": text}, optional={"arguments": values})},
                optional={"id": st.none() | text, "type": text, "index": values},
            ),
            max_size=3,
        ),
        "weight": st.integers(0, 1),
        "extra": values,
    },
)
conversations = st.lists(turns, min_size=1, max_size=8)
records = (
    values
    | conversations
    | st.builds(
        lambda found, more: more | {"messages": found},
        conversations,
        st.dictionaries(keys, values, max_size=4),
    )
    | st.tuples(st.lists(text, max_size=5), st.lists(st.booleans(), max_size=5)).map(list)
)


labels = st.sampled_from(["user", "assistant", "tool", "Thought", "Action", "Observation"])


@settings(max_examples=150, deadline=None)
@given(st.lists(records, max_size=4))
def test_any_json_gives_a_row_each_and_none_changes_another(found: list[Any]) -> None:
    raw = [dumped(record) for record in found]
    together = parse(*raw)
    assert together == [parse(each)[0] for each in raw]
    for row in together:
        assert row["refusal"] is None or row["refusal"]["reason"] != "parser_error", row["refusal"]


@settings(max_examples=150, deadline=None)
@given(conversations, st.sampled_from(["chat", "react_chat"]))
def test_any_conversation_comes_back_turn_by_turn(found: list[Any], name: str) -> None:
    (row,) = parse(dumped(found), declared=name)
    if row["refusal"] is None:
        (trajectory,) = row["trajectories"]
        # What cannot be stored as it is (NaN, half characters) is in the form it is read in.
        assert to_source(name, trajectory) == storable(found)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", "Thought", "Action"]), text))
)
def test_any_displayed_text_comes_back(parts: list[tuple[str, str]]) -> None:
    shown = "user: " + "\n".join(f"{role}: {content}" for role, content in parts)
    for name, field in (("messages_display", "messages_display"), ("react_text", "t")):
        (row,) = parse(dumped({field: shown}), declared=name)
        if row["refusal"] is None:
            assert to_source(name, row["trajectories"][0]) == storable(shown)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_give_a_row_each(raw: list[bytes]) -> None:
    parse(*raw)


def test_a_record_cut_at_every_byte_is_refused_or_whole() -> None:
    raw = dumped(GOOD | {"name": "é 🚲"})
    rows = parse(*[raw[:end] for end in range(len(raw) + 1)])
    assert [row["trajectories"] is None for row in rows] == [True] * len(raw) + [False]


def storable(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case list():
            return [storable(item) for item in value]
        case dict():
            return {storable(key): storable(item) for key, item in value.items()}
        case _:
            return value
