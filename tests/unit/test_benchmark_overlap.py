"""When a benchmark's text counts as found in a trajectory: short literal texts."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from udfs.benchmarks.overlap import BenchmarkText, Index, overlap_settings, overlap_with
from udfs.errors import ConfigError
from udfs.schema import STEP

SHORT = "Who wrote the Kestle songs?"
MIDDLE = "Which mountain hut lies higher, Ansel Hut or Kite Refuge?"
LONG = (
    "How many rope bridges does the old drovers' path from Ansel Hut down to the mill at Orra "
    "cross before it meets the road?"
)


def matches(
    query: str | None,
    *items: str,
    share: float = 0.5,
    system_prompt: str | None = None,
    steps: list[dict[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """What is found in one trajectory, of items that are named by their number from 0."""
    texts = [BenchmarkText("quiz", str(number), text) for number, text in enumerate(items)]
    found = overlap_with(
        Index(texts),
        share,
        pa.array([query], pa.string()),
        pa.array([system_prompt], pa.string()),
        pa.array([steps], pa.list_(STEP)),
    )
    rows: list[dict[str, Any]] = found.to_pylist()[0]
    return rows


def kind(query: str, item: str, share: float = 0.5) -> str | None:
    found = matches(query, item, share=share)
    return found[0]["kind"] if found else None


@pytest.mark.parametrize(
    ("query", "item", "expected"),
    [
        (MIDDLE, MIDDLE, "exact"),
        (f"Please answer briefly. {MIDDLE} Think first.", MIDDLE, "exact"),
        (MIDDLE, f"  {MIDDLE}\n", "exact"),
        ("which mountain hut lies higher -- ansel hut, or kite refuge", MIDDLE, "normalised"),
        ("Which mountain hut\nlies higher,\tAnsel Hut or Kite Refuge?", MIDDLE, "normalised"),
        ("Ｗhich mountain hut lies higher, Ansel Hut or “Kite Refuge”?", MIDDLE, "normalised"),
        ("Which mountain hut lies higher, Ansel Hut or Kite Refugee?", MIDDLE, None),
        ("Which mountain hut lies lower, Ansel Hut or Kite Refuge?", MIDDLE, None),
        ("Ansel Hut or Kite Refuge: which mountain hut lies higher?", MIDDLE, None),
        ("哪座山上的小屋更高安塞尔", "哪座山上的小屋更高，安塞尔？", "normalised"),
        ("Ist die Hütte Übersee höher als der alte Turm?",
         "ist die HÜTTE „Übersee“ höher als der alte turm", "normalised"),
        ("", MIDDLE, None),
    ],
)  # fmt: skip
def test_a_text_is_found_whole(query: str, item: str, expected: str | None) -> None:
    assert kind(query, item) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (SHORT, "exact"),
        ("who wrote the kestle songs", "normalised"),
        (f"Answer in one word.\nQuestion 3: {SHORT}\nThought:", "exact"),
        (f"1) {SHORT}\n2) Another?", "exact"),
        (f"**User:** {SHORT}", "exact"),
        (f"I asked her: {SHORT} And she laughed.", None),
        (f"My grandmother always wanted to be told: {SHORT}", None),
        ("I know who wrote the Kestle songs, thank you", None),
    ],
)
def test_a_text_of_few_words_needs_a_line_to_itself(query: str, expected: str | None) -> None:
    assert kind(query, SHORT) == expected


EDITED_AT_THE_END = LONG.replace("it meets the road", "reaching the valley")
EDITED_IN_THE_MIDDLE = LONG.replace("down", "up")


@pytest.mark.parametrize(
    ("query", "share", "expected"),
    [
        (LONG, 0.5, ("exact", 1.0)),
        (LONG.lower(), 0.5, ("normalised", 1.0)),
        (EDITED_AT_THE_END, 0.5, ("ngram", 8 / 12)),
        (f"Take care. {EDITED_AT_THE_END.upper()}", 0.5, ("ngram", 8 / 12)),
        (EDITED_AT_THE_END, 0.7, None),
        (EDITED_IN_THE_MIDDLE, 0.01, None),
        (LONG.replace("How many", "What number of"), 0.5, ("ngram", 10 / 12)),
    ],
)
def test_a_long_text_is_found_by_the_share_of_its_13_grams(
    query: str, share: float, expected: tuple[str, float] | None
) -> None:
    found = matches(query, LONG, share=share)
    assert [(each["kind"], each["overlap"]) for each in found] == ([expected] if expected else [])


def test_the_evidence_of_ngrams_is_what_stands_there() -> None:
    (found,) = matches(EDITED_AT_THE_END.replace("Ansel Hut", "ANSEL-HUT"), LONG)
    assert found["matched_text"] == (
        "How many rope bridges does the old drovers' path from ANSEL-HUT down to the mill at Orra "
        "cross before"
    )


def test_words_of_two_texts_are_no_ngram() -> None:
    words = LONG.split()
    halves = [" ".join(words[:12]), " ".join(words[12:24])]
    steps = [step(1, input=halves[1])]
    assert matches(halves[0], " ".join(words[:24]), share=0.01, steps=steps) == []


def step(step_id: int, **fields: Any) -> dict[str, Any]:
    return {"step_id": step_id, "observations": []} | fields


def seen(source: str, content: str) -> list[dict[str, str]]:
    return [{"source": source, "content": content}]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"system_prompt": f"Example: {MIDDLE} Kite Refuge."}, "system_prompt"),
        ({"steps": [step(1, input="Hello."), step(2, input=MIDDLE)]}, "step 2 input"),
        ({"steps": [step(1), step(2, observations=seen("user", MIDDLE))]}, "step 2 observation"),
        ({"steps": [step(1, observations=seen("environment", MIDDLE))]}, None),
        ({"steps": [step(1, output=MIDDLE, thought=MIDDLE)]}, None),
    ],
)
def test_what_was_put_to_the_agent_is_searched_and_nothing_else(
    fields: dict[str, Any], place: str | None
) -> None:
    found = matches("Hello there.", MIDDLE, **fields)
    assert [each["where_found"] for each in found] == ([place] if place else [])


def test_an_item_counts_once_where_it_is_seen_best() -> None:
    steps = [step(1, input=MIDDLE.lower()), step(2, input=MIDDLE), step(3, input=MIDDLE)]
    (found,) = matches(MIDDLE.upper(), MIDDLE, steps=steps)
    assert (found["kind"], found["where_found"]) == ("exact", "step 2 input")


def test_every_item_of_a_prompt_is_told() -> None:
    found = matches(f"Q: {SHORT}\nA: nobody\nQ: {MIDDLE}\nA:", SHORT, MIDDLE, LONG)
    assert [each["item_id"] for each in found] == ["0", "1"]


def test_the_first_of_items_with_the_same_text_stands_for_them() -> None:
    assert [each["item_id"] for each in matches(MIDDLE, LONG, MIDDLE, MIDDLE)] == ["1"]


def test_what_many_items_begin_with_is_no_evidence() -> None:
    form = "You are given a table of huts with their heights and the name of their keepers; answer"
    items = [f"{form} question {n} about keeper number {n} of the year 19{n}." for n in range(11)]
    assert matches(f"{form} politely whatever you are asked.", *items, share=0.01) == []
    assert [each["item_id"] for each in matches(items[7], *items)] == ["7"]
    few = items[:10]
    assert len(matches(f"{form} politely whatever you are asked.", *few, share=0.01)) == 10


def test_texts_beyond_a_slice_are_found_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("udfs.benchmarks.overlap._SLICE_BYTES", 64)
    steps = [step(n, input=f"{n} times. {MIDDLE if n % 3 == 0 else 'No.'}") for n in range(1, 8)]
    found = matches("Hello there.", MIDDLE, steps=steps[3:])
    assert [each["where_found"] for each in found] == ["step 6 input"]


@pytest.mark.parametrize("share", ["0", "1.5", "half", "nan"])
def test_a_share_that_is_none_is_refused(share: str) -> None:
    with pytest.raises(ConfigError, match="overlap_ngram_share"):
        overlap_settings(share)
