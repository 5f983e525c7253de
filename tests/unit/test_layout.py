"""What fields records have."""

from __future__ import annotations

from orchestration.layout import FieldSeen, described_layout


def test_paths_types_and_how_often() -> None:
    records = [{"turns": [{"role": "user", "n": 1}, {"role": None}]}, {"turns": []}, ["x"]]
    assert described_layout(records) == [
        FieldSeen("[]", ("text",), 1),
        FieldSeen("turns", ("list",), 2),
        FieldSeen("turns[]", ("object",), 1),
        FieldSeen("turns[].role", ("null", "text"), 1),
        FieldSeen("turns[].n", ("number",), 1),
    ]


def test_many_keys_are_data_and_no_fields() -> None:
    found = described_layout([{"answers": {f"task_{n}": {"f1": 0.5} for n in range(41)}}])
    assert found == [
        FieldSeen("answers", ("object",), 1),
        FieldSeen("answers.*", ("object",), 1),
    ]


def test_a_record_nested_without_end_is_described_to_some_depth() -> None:
    record: list[object] = []
    for _ in range(900):
        record = [record]
    assert [field.path for field in described_layout([record])] == ["[]" * n for n in range(1, 9)]
