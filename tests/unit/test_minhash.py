"""Near duplicates: the text that is compared, its signature, and clusters of links."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from udfs.curation.near_duplicates import (
    EDGE,
    band_hashes,
    bands_and_rows,
    compared_texts,
    connected_components,
    content_signatures,
    shingles,
    signature_similarity,
    signature_version,
)
from udfs.errors import ConfigError
from udfs.schema import STEP

WORDS = [f"word{i}" for i in range(400)]


def step(**fields: Any) -> dict[str, Any]:
    return dict.fromkeys(field.name for field in STEP) | fields


def text_of(query: str | None, *steps: dict[str, Any] | None) -> str:
    texts = compared_texts(pa.array([query], pa.string()), pa.array([steps], pa.list_(STEP)))
    return str(texts[0].as_py())


def signed(*texts: str | None, similarity: float = 0.8) -> list[dict[str, Any]]:
    """What `content_signatures` makes of trajectories that are a query and nothing else."""
    queries = pa.array(texts, pa.string())
    no_steps = pa.nulls(len(texts), pa.list_(STEP))
    thresholds = pa.array([similarity] * len(texts), pa.float64())
    rows: list[dict[str, Any]] = content_signatures(queries, no_steps, thresholds).to_pylist()
    return rows


def similarity(one: str, other: str) -> float | None:
    left, right = (each["signature"] for each in signed(one, other))
    found: float | None = signature_similarity(
        pa.array([left], pa.binary()), pa.array([right], pa.binary())
    )[0].as_py()
    return found


def distinct_shingles(text: str) -> set[int]:
    return set(shingles(pa.array([text]))[0].tolist())


def test_query_outputs_calls_and_observations_are_compared() -> None:
    call = {"call_id": "c1", "name": "search", "arguments": '{"query": "Rhine"}'}
    text = text_of(
        "How long is the Rhine?",
        step(
            input="You are an agent. Question: How long is the Rhine?",
            thought="I search.",
            output="I search. Action: search",
            tool_calls=[call],
            next_observation="1,233 km",
        ),
        step(input="And the Main?", output="525 km."),
    )
    assert text.split("\n") == [
        *("How long is the Rhine?", "", "I search. Action: search", "search"),
        *('{"query": "Rhine"}', "1,233 km", "And the Main?", "525 km.", "", ""),
    ]


def test_without_a_query_the_first_input_is_compared() -> None:
    assert text_of(None, step(input="Go on.", output="Done.")).split() == ["Go", "on.", "Done."]


def test_nothing_at_all_is_an_empty_text() -> None:
    assert text_of(None).strip() == ""
    texts = compared_texts(pa.array([None, "a"], pa.string()), pa.nulls(2, pa.list_(STEP)))
    assert [text.strip() for text in texts.to_pylist()] == ["", "a"]


@pytest.mark.parametrize(
    "other",
    [
        "the QUICK brown\n\n  fox jumps over",
        'the "quick" brown fox — jumps, over!',
        "the\u00a0quick\u3000brown **fox** jumps_over",
        "ｔｈｅ quick brown fox jumps “over”",
    ],
)
def test_case_white_space_and_punctuation_make_no_difference(other: str) -> None:
    assert distinct_shingles("The quick brown fox jumps over") == distinct_shingles(other)


def test_order_and_every_word_make_a_difference() -> None:
    text = "the quick brown fox jumps"
    others = ("quick the brown fox jumps", "the quick brown fox jump", "thequick brown fox jumps x")
    for other in others:
        assert not distinct_shingles(text) & distinct_shingles(other)


def test_letters_of_all_scripts_are_letters() -> None:
    assert distinct_shingles("Straße über ГОРОД مدينة शहर") == distinct_shingles(
        "straße u\u0308ber город مدينة शहर"
    )
    assert distinct_shingles("ä ö ü é ñ") != distinct_shingles("a o u e n")


def test_in_scripts_without_spaces_every_character_is_a_word() -> None:
    _, _, word_counts = shingles(pa.array(["今日は天気がいい", "ok 漢字", "สวัสดี", "🙂🙂 🙂"]))
    assert word_counts.tolist()[:2] == [8, 3]
    assert word_counts[2] > 1
    assert word_counts[3] == 0


@pytest.mark.parametrize("text", [None, "", " \n ", "?!", "yes", "Yes, I can do."])
def test_under_five_words_there_is_no_signature(text: str | None) -> None:
    (row,) = signed(text)
    assert row["signature"] is None and row["band_hashes"] is None
    assert row["word_count"] < 5


def test_five_words_are_enough() -> None:
    assert similarity("Yes, I can do it.", "yes i can do it") == 1.0


_TEXTS = st.text(alphabet="abC7 .\n_-éÉ“漢", max_size=60)


def words_of(text: str) -> list[str]:
    """The definition once more, word by word."""
    folded = unicodedata.normalize("NFKC", text).lower().replace("漢", " 漢 ")
    return re.findall(r"[^\W_]+", folded)


@given(st.lists(_TEXTS, max_size=6))
def test_shingles_are_runs_of_five_words_and_none_reaches_into_the_next_text(
    texts: list[str],
) -> None:
    hashes, bounds, word_counts = shingles(pa.array(texts, pa.string()))
    expected = [words_of(text) for text in texts]
    assert word_counts.tolist() == [len(words) for words in expected]
    runs = [[tuple(words[i : i + 5]) for i in range(max(0, len(words) - 4))] for words in expected]
    assert np.diff(bounds).tolist() == [len(each) for each in runs]
    flat = [run for each in runs for run in each]
    assert len(set(zip(flat, hashes.tolist(), strict=True))) == len(set(flat)) == len(set(hashes))


def changed(words: Sequence[str], *places: int) -> str:
    return " ".join("other" if i in places else word for i, word in enumerate(words))


@pytest.mark.parametrize("places", [(), (7,), (7, 100, 200), tuple(range(0, 400, 20))])
def test_the_estimate_is_near_the_share_of_common_shingles(places: tuple[int, ...]) -> None:
    one, other = " ".join(WORDS), changed(WORDS, *places)
    first, second = distinct_shingles(one), distinct_shingles(other)
    exact = len(first & second) / len(first | second)
    assert similarity(one, other) == pytest.approx(exact, abs=4 * 0.045)


def test_a_pair_over_the_threshold_shares_a_band_and_unlike_texts_do_not() -> None:
    text, near, far = signed(" ".join(WORDS), changed(WORDS, 50), " ".join(reversed(WORDS)))
    assert set(text["band_hashes"]) & set(near["band_hashes"])
    assert not set(text["band_hashes"]) & set(far["band_hashes"])


def test_a_signature_does_not_depend_on_what_is_signed_with_it() -> None:
    texts = ["a b c", " ".join(WORDS), "x " * 900_000, "", changed(WORDS, 3), "e é e e e e"] * 3
    together = signed(*texts)
    assert together == [signed(text)[0] for text in texts]
    queries = pa.array(["left out", *texts, "left out"]).slice(1, len(texts))
    sliced = content_signatures(
        queries, pa.nulls(len(texts), pa.list_(STEP)), pa.array([0.8] * len(texts))
    )
    assert sliced.to_pylist() == together


def test_a_text_of_five_megabytes_is_compared_like_any_other() -> None:
    long = " ".join(f"word{i}" for i in range(500_000))
    assert len(long) > 5_000_000
    assert similarity(long, f"{long} and a few words more") > 0.95
    assert signed("x" * 5_000_000)[0]["word_count"] == 1


def test_equal_numbers_in_two_bands_do_not_make_them_equal() -> None:
    hashes = band_hashes(np.full((1, 128), 7, dtype=np.uint32), 21, 6)
    assert len(set(hashes[0].tolist())) == 21


def test_bands_follow_from_the_threshold() -> None:
    assert bands_and_rows(0.8) == (21, 6)
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0):
        bands, rows = bands_and_rows(similarity)
        assert bands * rows <= 128
        assert 1 - (1 - similarity**rows) ** bands >= 0.99
    sizes = [bands_and_rows(s / 100)[1] for s in range(50, 101)]
    assert all(a <= b for a, b in pairwise(sizes))
    assert signature_version(0.8) == signature_version(0.801) != signature_version(0.9)


@pytest.mark.parametrize("wrong", [0.0, 0.49, 1.01, float("nan")])
def test_a_threshold_that_cannot_be_used_is_refused(wrong: float) -> None:
    with pytest.raises(ConfigError, match=r"near_duplicate_similarity is .* from 0\.5"):
        signature_version(wrong)


def test_without_a_signature_there_is_no_similarity() -> None:
    one, none = signed(" ".join(WORDS), "yes")
    left = pa.array([one["signature"], none["signature"], one["signature"]], pa.binary())
    right = pa.array([one["signature"], one["signature"], None], pa.binary())
    assert signature_similarity(left, right).to_pylist() == [1.0, None, None]
    assert signature_similarity(left.slice(0, 0), right.slice(0, 0)).to_pylist() == []


def components(*graphs: list[tuple[int, int]] | None) -> list[list[int]]:
    """The smallest node of each node's component, for each graph."""
    lists = [
        None if edges is None else [{"one": one, "other": other} for one, other in edges]
        for edges in graphs
    ]
    found = connected_components(pa.array(lists, pa.list_(EDGE))).to_pylist()
    for each in found:
        assert [row["node"] for row in each] == list(range(len(each)))
    return [[row["smallest"] for row in each] for each in found]


def test_linked_nodes_have_the_smallest_of_them() -> None:
    assert components([(0, 1), (4, 3), (3, 2)]) == [[0, 0, 2, 2, 2]]
    assert components([], None, [(1, 0)]) == [[], [], [0, 0]]
    assert components([(1, 2), (2, 1), (1, 1)]) == [[0, 1, 1]]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60))
def test_components_are_those_that_merging_sets_gives(edges: list[tuple[int, int]]) -> None:
    sets = [{node} for node in range(max((max(edge) for edge in edges), default=-1) + 1)]
    for one, other in edges:
        merged = sets[one] | sets[other]
        for node in merged:
            sets[node] = merged
    assert components(edges) == [[min(each) for each in sets]]


def test_a_long_chain_is_one_component() -> None:
    rng = np.random.default_rng(0)
    nodes = rng.permutation(200_000)
    edges = pa.StructArray.from_arrays(
        [pa.array(nodes[:-1]), pa.array(nodes[1:])], fields=list(EDGE)
    )
    whole = pa.ListArray.from_arrays(pa.array([0, len(edges)], pa.int32()), edges)
    smallest = connected_components(whole).flatten().field("smallest")
    assert not smallest.to_numpy().any()
