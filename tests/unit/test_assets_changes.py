"""What the sensor takes for a change below the raw folder: once each, and never half-copied."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestration.assets.changes import Look, Source, look, sources
from udfs.landing.files import list_files


def seen(**fingerprints: str) -> dict[str, Source]:
    return {name: Source(1, 10, value) for name, value in fingerprints.items()}


def after(*states: dict[str, Source]) -> Look:
    """The last of several looks, one after another."""
    cursor = None
    for state in states:
        found = look(state, cursor)
        cursor = found.cursor
    return found


def test_a_new_file_is_told_once_after_it_has_lain_still() -> None:
    first = look(seen(a="1"), None)
    second = look(seen(a="1"), first.cursor)
    third = look(seen(a="1"), second.cursor)

    assert (first.key, first.waits) == (None, True)
    assert second.key is not None and second.changed == ("a",)
    assert (third.key, third.changed, third.waits) == (None, (), False)


def test_a_file_that_grows_is_waited_for() -> None:
    growing = [seen(a=str(size)) for size in range(4)]

    assert after(*growing).waits
    assert after(*growing).key is None
    assert after(*growing, growing[-1]).key is not None


def test_only_what_changed_is_named() -> None:
    built = [seen(a="1", b="1")] * 2

    assert after(*built, *[seen(a="1", b="2", c="1")] * 2).changed == ("b", "c")


def test_a_source_that_went_needs_no_build() -> None:
    gone = after(*[seen(a="1", b="1")] * 2, *[seen(a="1")] * 2)

    assert (gone.key, gone.waits) == (None, False)
    # It is new where it comes again.
    assert after(*[seen(a="1", b="1")] * 2, seen(a="1"), *[seen(a="1", b="1")] * 2).key


def test_the_same_change_a_second_time_has_another_key() -> None:
    one, other = seen(a="1"), seen(a="2")

    assert after(one, one).key != after(one, one, other, other, one, one).key


def test_a_look_that_is_repeated_has_the_same_key() -> None:
    """Where the sensor is stopped between asking for a run and keeping its cursor."""
    cursor = look(seen(a="1"), None).cursor

    assert look(seen(a="1"), cursor) == look(seen(a="1"), cursor)


def test_nothing_there_is_nothing_new() -> None:
    assert after({}, {}) == Look(after({}, {}).cursor, None, (), False)


@pytest.mark.parametrize("change", ["content", "time", "name", "another"])
def test_names_sizes_and_times_are_looked_at(tmp_path: Path, change: str) -> None:
    file = tmp_path / "mine" / "a.jsonl"
    file.parent.mkdir()
    file.write_text("1\n")
    (tmp_path / "other.jsonl").write_text("1\n")
    before = sources(list_files(tmp_path))
    match change:
        case "content":
            file.write_text("1\n2\n")
        case "time":
            os.utime(file, ns=(0, 0))
        case "name":
            file.rename(file.with_name("b.jsonl"))
        case "another":
            (file.parent / "b.jsonl").write_text("2\n")

    now = sources(list_files(tmp_path))

    assert now["mine"].fingerprint != before["mine"].fingerprint
    assert now["other"] == before["other"]
    assert before["mine"] == Source(1, 2, before["mine"].fingerprint)


def test_the_cursor_does_not_grow_with_files() -> None:
    found = look({"a": Source(1_000_000, 10**12, "f" * 16)}, None)

    assert len(found.cursor) < 200
    assert json.loads(found.cursor)["seen"] == {"a": "f" * 16}
