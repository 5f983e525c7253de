"""The report's page: what it says of what the lake has answered, and what it makes of texts."""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser
from typing import Any

import pytest

from orchestration.pages.blocks import (
    beside,
    decimal,
    heat,
    histogram,
    ranges,
    share_text,
    stacked,
)
from orchestration.pages.runs import told
from orchestration.pages.texts import Text, pieces, shown, shown_beginning
from orchestration.report import render
from orchestration.report.examples import choose
from orchestration.report.page import page
from orchestration.report.queries import QUERIES, Findings

HOSTILE = [
    "<script>document.title = 'taken'</script>",
    "</pre></bdi></details></style></title><img src=x onerror=alert(1)>",
    "javascript:alert(1) <a href='javascript:alert(1)'>here</a>",
    "\x1b[2J\x1b[31mred\x07",
    "user\u202egnp.exe\u202c \u2066hidden\u2069 \u200bzero \ufeffmark",
    '" onmouseover="alert(1)" x="',
    "{{ 7 * 7 }} {% raw %} {# comment #}",
    "<!-- --> <![CDATA[ ]]> &amp;lt;",
]


def said(text: Text) -> str:
    return "".join(piece.text for piece in (*text.head, *text.tail))


class Seen(HTMLParser):
    """The elements, attributes and texts of a page, as a browser would find them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: set[str] = set()
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("href", "src", "action", "xlink:href"):
                self.links.add(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)


def example(**fields: Any) -> dict[str, Any]:
    return {
        "trajectory_id": "one",
        "source": "s",
        "environment": None,
        "model_name": None,
        "license": None,
        "system_prompt": None,
        "steps": [],
        "raw_file": "s/a.jsonl",
        "raw_position": 1,
        "reason": "kept",
        "reason_detail": None,
        "rater_score": 5.0,
        "score": None,
        "is_kept": True,
        "trained_steps": [1],
    } | fields


def step(step_id: int = 1, **fields: Any) -> dict[str, Any]:
    return {
        "step_id": step_id,
        "input": None,
        "thought": None,
        "output": "Go",
        "tool_calls": [],
        "observations": [],
        "is_trainable": True,
    } | fields


def verdict(number: int, source: str, reason: str = "kept", **fields: Any) -> dict[str, Any]:
    return {
        "trajectory_id": f"{reason}-{source}-{number}",
        "source": source,
        "reason": reason,
        "reason_detail": None,
        "task_key": f"task of {reason} {source} {number}",
        "is_kept": reason in ("kept", "salvaged"),
    } | fields


def findings(*texts: str) -> Findings:
    """What a lake answers that holds these texts wherever a text of strangers can be."""
    text = " ".join(texts) or "a text"
    excerpt = {"query": text, "query_length": len(text)}
    scores = {"mean": 4.0, "median": 4.0, "lowest": 3.0, "highest": 5.0}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in QUERIES}
    rows["settings"] = [
        {"matched_by": text, "filter": text, "weight": 1.0, "max_repeats": 3, "is_general": False}
    ]
    rows["funnel"] = [
        {"source": text, "raw_records": 3, "quarantined": 1, "trajectories": 2, "rated": 2,
         "filtered": 1, "kept": 1, "salvaged": 0, "kept_tasks": 1, "train_trajectories": 1,
         "train_positions": 3, "eval_trajectories": 0}
    ]  # fmt: skip
    rows["quarantine"] = [
        {"source": text, "reason": "r", "records": 1, "detail": text, "detail_length": len(text)}
    ]
    rows["rejections"] = [
        {"reason": "filtered", "source": text, "trajectory_id": "two", "reason_detail": text,
         "reason_detail_length": len(text), "rater_score": None, "score": None, **excerpt,
         "last_output": text, "last_output_length": len(text), "step_count": 1, "raw_file": text,
         "raw_position": 1}
    ]  # fmt: skip
    known = {"source": text, "trajectories": 2, "known": 2, **scores}
    rows["rater_scores"] = [known]
    rows["scores"] = [known | {"not_finite": 0, "distinct_values": 2}]
    rows["rater_bins"] = rows["score_bins"] = [
        {"source": text, "bin": 9, "trajectories": 2, "kept": 1}
    ]
    rows["checked"] = [{"trajectories": 2}]
    rows["benchmarks"] = [{"benchmark": text, "items": 1, "problems": 0}]
    rows["overlap"] = [
        {"benchmark": text, "source": text, "items": 1, "trajectories": 1, "kept": 0, "exact": 1,
         "normalised": 0, "ngram": 0}
    ]  # fmt: skip
    rows["overlap_examples"] = [
        {"benchmark": text, "item_id": text, "source": text, "kind": "exact", "overlap": 1.0,
         "where_found": "user_query", "matched_text": text, "matched_text_length": len(text)}
    ]  # fmt: skip
    rows["licences"] = [
        {"source": text, "license": text, "is_synthetic": None, "generator": text,
         "generators": 1, "trajectories": 2, "kept": 1}
    ]  # fmt: skip
    rows["candidates"] = [
        verdict(1, text, trajectory_id="one"),
        verdict(1, text, "filtered", trajectory_id="two", reason_detail=text),
    ]
    call = {"call_id": "c", "name": text, "arguments": text}
    seen = {"source": "environment", "name": text, "call_id": None, "content": text}
    whole = step(
        input=text, thought=text, output=f"Thought: {text}\n{text}", tool_calls=[call],
        observations=[seen],
    )  # fmt: skip
    fields = {"source": text, "environment": text, "model_name": text, "license": text,
              "system_prompt": text, "steps": [whole], "raw_file": text}  # fmt: skip
    rows["examples"] = [
        example(**fields),
        example(
            **fields | {"trajectory_id": "two", "reason": "filtered", "reason_detail": text,
                        "is_kept": False, "trained_steps": None}
        ),
    ]  # fmt: skip
    rows["example_flags"] = [
        {"trajectory_id": "two", "unmasked_steps": [1], "trainable_steps": [], "sound_steps": [],
         "flags": [{"step_id": 1, "flag": "invalid_action", "detail": text}]}
    ]  # fmt: skip
    return Findings("default", rows, {}, {"trajectories": 0})


def test_a_short_text_is_all_there() -> None:
    assert shown("so it is") == Text(pieces("so it is"))


def test_a_long_text_is_cut_in_the_middle_and_says_by_how_much() -> None:
    text = "a" * 5_000_000 + "the end"
    cut = shown(text, 100)
    assert len(said(cut)) == 100
    assert cut.left_out == len(text) - 100
    assert said(cut).endswith("the end")


def test_a_beginning_says_what_is_behind_it() -> None:
    assert shown_beginning("x" * 400, 5_000).left_out == 5_100
    assert shown_beginning("x" * 300, 0).left_out == 0


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("\x1b[0m", ["U+001B"]),
        ("a\x00b", ["U+0000"]),
        ("\u202eabc\u202c", ["U+202E", "U+202C"]),
        ("\u2066a\u2069\u200b\ufeff", ["U+2066", "U+2069", "U+200B", "U+FEFF"]),
        ("\x7f\x85", ["U+007F", "U+0085"]),
        ("\ud800", ["U+D800"]),
        ("\U000e0041", ["U+E0041"]),
        ("tab\tand\r\nlines\n", []),
        ("می‌خواهم 👩‍🔬 ünï", []),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, names: list[str]) -> None:
    found = pieces(text)
    assert [piece.text for piece in found if piece.is_name] == names
    kept = "".join(piece.text for piece in found if not piece.is_name)
    assert all(character.isprintable() or character in "\t\n\u200c\u200d" for character in kept)


def test_nothing_of_strangers_becomes_markup() -> None:
    harmless, hostile = Seen(render(page(findings()))), Seen(render(page(findings(*HOSTILE))))
    assert hostile.tags == harmless.tags | {"span"}
    assert hostile.attributes == harmless.attributes
    assert not hostile.tags & {"script", "img", "iframe", "object", "link", "base"}
    assert all(link.startswith("#") for link in hostile.links)
    assert "<script>document.title = 'taken'</script>" in hostile.text
    assert "{{ 7 * 7 }} {% raw %} {# comment #}" in hostile.text
    html = render(page(findings(*HOSTILE)))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", html)


def test_the_page_admits_its_own_style_sheet_only() -> None:
    html = render(page(findings()))
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    [style] = re.findall(r"<style>(.*?)</style>", html, re.S)
    digest = b64encode(sha256(style.encode()).digest()).decode()
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert "style=" not in html
    assert "url(" not in style and "@import" not in style


def test_a_trajectory_of_five_megabytes_makes_no_large_page() -> None:
    html = render(page(findings("<script>" + "x" * 5_000_000)))
    assert len(html) < 300_000
    assert "characters left out" in html


def test_the_same_answers_give_the_same_bytes() -> None:
    assert render(page(findings(*HOSTILE))) == render(page(findings(*HOSTILE)))


def test_what_the_lake_does_not_have_is_said_in_its_place() -> None:
    answers = findings()
    for name in ("clusters", "cluster_examples", "steps", "flags", "personal_kinds", "windows"):
        del answers.rows[name]
        answers.problems[name] = f"This lake has no table for {name}."
    del answers.rows["example_flags"]
    html = render(page(answers))
    for name in ("clusters", "steps", "personal_kinds", "windows"):
        assert f"This lake has no table for {name}." in html
    assert "not known: no flags in this lake" in html
    assert "From raw records to training" in html


def test_a_step_says_whether_it_is_trained_on() -> None:
    flags = {"unmasked_steps": [1, 2, 4], "trainable_steps": [1, 4], "flags": []}
    steps = [step(1), step(2), step(3, is_trainable=False), step(4), step(5)]
    kept = told(example(steps=steps), flags)
    assert [each.state_text for each in kept.first_steps] == [
        "trained on",
        "masked by a rule",
        "masked by its source",
        "masked by the recipe",
        "no loss: the agent says nothing",
    ]
    dropped = told(example(steps=steps, is_kept=False, trained_steps=None), flags)
    assert [each.state for each in dropped.first_steps] == [
        "open",
        "masked",
        "masked",
        "open",
        "masked",
    ]


def test_thought_action_call_and_observation_are_told_apart() -> None:
    row = step(
        input="Where?",
        thought="I look.",
        output="Thought: I look.\nAction: look[x]",
        tool_calls=[{"call_id": "c", "name": "look", "arguments": '{"at": "x"}'}],
        observations=[
            {"source": "environment", "name": "look", "call_id": "c", "content": "A wall."}
        ],
    )
    [only] = told(example(steps=[row]), None).first_steps
    assert [(part.role, said(part.label), said(part.text)) for part in only.parts] == [
        ("input", "Input", "Where?"),
        ("thought", "Thought", "Thought: I look."),
        ("action", "Action", "Action: look[x]"),
        ("call", "Tool call", 'look({"at": "x"})'),
        ("observation", "Observation (environment, look)", "A wall."),
    ]


def test_a_long_run_shows_both_ends_and_says_how_many_steps_are_missing() -> None:
    run = told(example(steps=[step(number) for number in range(1, 31)]), None)
    assert [each.step_id for each in run.first_steps] == [1, 2, 3, 4, 5, 6]
    assert [each.step_id for each in run.last_steps] == [29, 30]
    assert run.steps_left_out == 22
    assert told(example(steps=[step(n) for n in range(1, 9)]), None).steps_left_out == 0


def test_examples_are_of_all_reasons_and_many_sources() -> None:
    sources = [f"s{number}" for number in range(6)]
    candidates = [
        verdict(number, source, reason)
        for reason in ("filtered", "not_rated", "kept", "near_duplicate")
        for source in sources
        for number in range(3)
    ]
    pairs = choose(candidates)
    assert len(pairs) == 10
    kept, dropped = zip(*pairs, strict=True)
    assert len(set(kept)) == len(set(dropped)) == 10
    assert {each.split("-")[0] for each in dropped} == {"filtered", "not_rated", "near_duplicate"}
    assert {each.split("-")[1] for each in dropped} == set(sources)
    assert {each.split("-")[1] for each in kept} == set(sources)
    assert choose(candidates) == pairs


def test_a_copy_stands_beside_what_it_is_a_copy_of() -> None:
    original = verdict(7, "b")
    same_task = verdict(8, "c", task_key="the task")
    pairs = choose(
        [
            verdict(1, "a"),
            original,
            same_task,
            verdict(1, "a", "filtered", task_key="the task"),
            verdict(1, "a", "near_duplicate", reason_detail=original["trajectory_id"]),
        ]
    )
    assert (original["trajectory_id"], "near_duplicate-a-1") in pairs
    assert (same_task["trajectory_id"], "filtered-a-1") in pairs
    assert ("kept-a-1", None) in pairs


def test_no_candidates_give_no_pairs() -> None:
    assert choose([]) == []


def test_bars_fill_what_their_numbers_say() -> None:
    bar = stacked([("a", "kept", 3), ("b", "none", 0), ("c", "dropped", 1)], 4)
    assert [(each.name, each.x, each.width) for each in bar.segments] == [
        ("a", 0, 750),
        ("c", 750, 250),
    ]
    assert bar.label == "kept: 3 (75.0%); dropped: 1 (25.0%)"
    assert stacked([], 0).label == "nothing"
    assert [each.width for each in beside([("a", "x", 0.5), ("b", "y", None)], 0.5).segments] == [
        1000
    ]


def test_a_histogram_stands_on_its_ground() -> None:
    columns = histogram([("low", 4, 1), ("high", 2, 2)])
    assert [(each.name, each.y + each.height) for each in columns.segments] == [
        ("v-filtered", 30),
        ("v-kept", 40),
        ("v-kept", 40),
    ]
    assert columns.label == "low: 4 (1 kept); high: 2 (2 kept)"


def test_numbers_are_never_rounded_to_nothing() -> None:
    assert share_text(0.00001) == "<0.1%"
    assert share_text(0.0) == "0.0%"
    assert share_text(None) == "–"
    assert heat(1, 1_000_000).level == 1
    assert heat(0, 10).level == 0
    assert heat(50, 10).level == 5
    assert decimal(-0.001).text == "0.00"
    assert ranges(0, 1, 2) == ["0 to 0.5", "0.5 to 1"]
    assert ranges(3, 3, 2) == ["3", ""]
