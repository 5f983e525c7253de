"""Figures of the whole lake: what a recipe keeps, how scores lie, what came when, what rating cost.

The funnel and the scores are the report's; the report has more of a recipe (`trajlake report`).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from orchestration.pages import blocks as b
from orchestration.pages.blocks import Block, Section, Table, Words
from orchestration.report.page import scores_of, stages_of
from orchestration.report.queries import QUERIES, Findings
from orchestration.ui.rows import Rows
from orchestration.ui.tables import Reader, Unavailable

_SCORES = ("rater_scores", "rater_bins", "scores", "score_bins")
_FUNNEL = ("funnel", "quarantine")
_DAYS = 60

_TIMES = """
    select source, cast(date_trunc('day', ingested_at) as date) as day, count(*) as trajectories
    from found
    where ingested_at is not null
    group by all
    order by source, day desc
"""

_COSTS = """
    select
        cast(date_trunc('day', rated_at) as date) as day,
        rate_model,
        rater,
        count(*) as attempts,
        count(case when status = 'ok' then 1 end) as ok,
        cast(sum(prompt_tokens) as bigint) as prompt_tokens,
        cast(sum(completion_tokens) as bigint) as completion_tokens,
        cast(sum(cost_usd) as double) as usd,
        count(case when cost_usd is null and prompt_tokens is not null then 1 end) as unpriced
    from ratings
    group by all
    order by day desc, rate_model, rater
"""


class Overview:
    """The overview of each recipe, made once for each state of the lake."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[str, tuple[object, tuple[Section, ...]]] = {}

    def sections(self, reader: Reader, rows: Rows, recipe: str) -> tuple[Section, ...]:
        """The sections of a recipe's overview; what cannot be read is said in its place."""
        key = (id(rows), tuple(reader.state.versions.items()), tuple(reader.state.problems))
        with self._lock:
            made = self._made.get(recipe)
            if made is None or made[0] != key:
                made = self._made[recipe] = (key, tuple(_sections(reader, rows, recipe)))
        return made[1]


def _sections(reader: Reader, rows: Rows, recipe: str) -> Iterable[Section]:
    parts: tuple[tuple[str, str, Callable[[], Iterable[Block]]], ...] = (
        ("funnel", "Funnel", lambda: _funnel(reader, recipe)),
        ("scores", "Scores", lambda: _scores(rows, recipe)),
        ("times", "Sources over time", lambda: _times(rows)),
        ("cost", "What rating cost", lambda: _costs(reader)),
    )
    for name, title, make in parts:
        try:
            blocks = tuple(make())
        except Unavailable as error:
            blocks = (Words(str(error), is_warning=True),)
        yield Section(name, title, blocks)


def _funnel(reader: Reader, recipe: str) -> Iterable[Block]:
    findings = Findings(recipe)
    for name in _FUNNEL:
        try:
            findings.rows[name] = reader.rows(QUERIES[name], {"recipe": recipe})
        except Unavailable as error:
            findings.problems[name] = str(error)
    if "funnel" in findings.problems:
        return (Words(findings.problems["funnel"], is_warning=True),)
    if not findings.rows["funnel"]:
        return (Words(f"The funnel has nothing of the recipe '{recipe}'.", is_warning=True),)
    return stages_of(findings)


def _scores(rows: Rows, recipe: str) -> Iterable[Block]:
    findings = Findings(recipe)
    for name in _SCORES:
        findings.rows[name] = rows.report(QUERIES[name], recipe)
    return scores_of(findings)


def _times(rows: Rows) -> Iterable[Block]:
    found = rows.ask(_TIMES)
    if not found:
        yield Words("Nothing has come yet.")
        return
    days = sorted({row["day"] for row in found}, reverse=True)
    shown_days = sorted(days[:_DAYS])
    by_source: dict[str, dict[Any, int]] = defaultdict(dict)
    for row in found:
        by_source[row["source"]][row["day"]] = row["trajectories"]
    if len(days) > _DAYS:
        yield Words(f"The last {_DAYS} of {len(days):,} days on which something came.")
    yield Table(
        f"Trajectories by the day on which they came, {shown_days[0]} to {shown_days[-1]}",
        ("source", "trajectories", "by day", "first day", "last day", "on the last day"),
        tuple(
            (
                b.words(source),
                b.count(sum(counts.values())),
                b.histogram([(str(day), counts.get(day, 0), counts.get(day, 0))
                             for day in shown_days]),
                b.words(str(min(counts))),
                b.words(str(max(counts))),
                b.count(counts[max(counts)]),
            )
            for source, counts in sorted(by_source.items())
        ),
    )  # fmt: skip


def _costs(reader: Reader) -> Iterable[Block]:
    found = reader.rows(_COSTS)
    if not found:
        yield Words("Nothing has been rated.")
        return
    total = sum(row["usd"] or 0 for row in found)
    unpriced = sum(row["unpriced"] for row in found)
    yield Words(f"{total:,.4f} USD in all, by the prices of `rater_prices`.")
    if unpriced:
        yield Words(f"{unpriced:,} ratings used tokens that have no price.", is_warning=True)
    most = max(row["usd"] or 0 for row in found)
    shown = found[: _DAYS * 4]
    yield Table(
        "Ratings by day and rater" + (f": {len(shown)} of {len(found):,}" if len(found) > len(shown)
                                      else ""),
        ("day", "rater", "kind", "attempts", "with a score", "prompt tokens", "completion tokens",
         "USD", ""),
        tuple(
            (
                b.words(str(row["day"])),
                b.words(row["rate_model"]),
                b.words(row["rater"]),
                b.count(row["attempts"]),
                b.count(row["ok"]),
                b.count(row["prompt_tokens"]),
                b.count(row["completion_tokens"]),
                b.decimal(row["usd"], 4),
                b.Bars(
                    (b.Segment("s-stage", 0, round(b.WIDTH * (row["usd"] or 0) / most, 2)),)
                    if most and row["usd"]
                    else (),
                    "cost unknown" if row["usd"] is None else f"{row['usd']:.4f} USD",
                ),
            )
            for row in shown
        ),
    )  # fmt: skip
