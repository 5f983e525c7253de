"""The page of a recipe: what the lake has answered, put into tables and charts. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestration.pages import blocks as b
from orchestration.pages.blocks import Block, Cell, Section, Table, Words
from orchestration.pages.runs import told
from orchestration.pages.texts import Text, shown, shown_beginning
from orchestration.report.examples import choose
from orchestration.report.queries import FETCHED, Findings, Rows

# In the order in which a verdict is found (docs/recipes.md).
REASONS = {
    "source_excluded": "its source was left out of this build",
    "source_not_in_recipe": "the recipe does not take its source",
    "not_rated": "there is no score, so nothing speaks for it",
    "benchmark_overlap": "it has an item of an excluded benchmark",
    "filtered": "the filter is false or null",
    "no_trainable_output": "no step carries loss",
    "duplicate_content": "the same content is kept already",
    "near_duplicate": "another one of its cluster is kept already",
    "over_quota": "better ones fill a quota",
}
_RESULTS = {"kept": "kept", "salvaged": "kept up to the first error"}

_RATER_BINS = [f"{n / 2:g} to {(n + 1) / 2:g}" for n in range(10)]
_SCORE_BINS = 10
_AGREEMENT_BINS = 5

# Rank correlations of fewer runs are shown, and said to be of few.
_FEW_RUNS = 30

_PLAN_SHARES = (
    ("s-requested", "share requested"),
    ("s-samples", "share of samples"),
    ("s-tokens", "share of trained tokens"),
)


@dataclass(frozen=True)
class Page:
    """All that the template needs."""

    recipe: str
    tiles: b.Tiles
    settings: Table
    sections: tuple[Section, ...]
    versions: Table


def page(findings: Findings) -> Page:
    """The page of what the lake has answered; what it could not answer is said in its place."""
    funnel = findings.rows["funnel"]
    return Page(
        recipe=findings.recipe,
        tiles=_tiles(findings, funnel),
        settings=_settings(findings),
        sections=tuple(
            Section(name, title, _made(findings, needed, make))
            for name, title, needed, make in _SECTIONS
        ),
        versions=Table(
            "Delta tables, and the version of each that was read",
            ("table", "version"),
            tuple(
                (b.words(name), b.count(version))
                for name, version in sorted(findings.versions.items())
            ),
        ),
    )


def chosen_pairs(findings: Findings) -> list[tuple[str | None, str | None]]:
    """The trajectories that are shown in full, by id; none where the lake could not say."""
    return choose(findings.rows.get("candidates", []))


def _made(
    findings: Findings,
    needed: Sequence[str],
    make: Callable[[Findings], Iterable[Block]],
) -> tuple[Block, ...]:
    problems = [findings.problems[name] for name in needed if name in findings.problems]
    if problems:
        return tuple(Words(problem, is_warning=True) for problem in dict.fromkeys(problems))
    return tuple(make(findings))


def _of_source(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = defaultdict(list)
    for row in rows:
        found[row["source"]].append(row)
    return dict(found)


def _sum(rows: Iterable[Mapping[str, Any]], name: str) -> int:
    return sum(row.get(name) or 0 for row in rows)


def _excerpt(row: Mapping[str, Any], name: str) -> Text:
    """The beginning of a text that a query gave, with its length; a dash for none."""
    length = row[f"{name}_length"] or 0
    return shown_beginning(row[name] or "–", length - min(length, FETCHED))


def _tiles(findings: Findings, funnel: Rows) -> b.Tiles:
    trajectories, kept = _sum(funnel, "trajectories"), _sum(funnel, "kept")
    entries = [
        (f"{_sum(funnel, 'raw_records'):,}", "raw records"),
        (f"{len(funnel):,}", "sources"),
        (f"{trajectories:,}", "trajectories"),
        (f"{kept:,}", f"kept ({b.share_text(kept / trajectories if trajectories else None)})"),
        (f"{_sum(funnel, 'train_positions'):,}", "positions of training"),
    ]
    if plan := findings.rows.get("plan"):
        in_training, positions = _sum(plan, "trajectories"), _sum(plan, "positions")
        entries += [
            (f"{positions / in_training:.2f}" if in_training else "–", "mean passes"),
            (f"{_sum(plan, 'trained_tokens'):,}", "trained tokens, estimated"),
        ]
    return b.Tiles(tuple(entries))


def _settings(findings: Findings) -> Table:
    """The recipe: what it says once, then what it says of sources."""
    rows = findings.rows["settings"]
    of_source = ("matched_by", "weight", "max_repeats", "is_general")
    lines = [(name, value) for name, value in rows[0].items() if name not in of_source]
    for row in rows:
        if row["matched_by"] is not None:
            said = f"weight {row['weight']:g}, at most {row['max_repeats']} repeats"
            said += ", general data" if row.get("is_general") else ""
            name = "every other source" if row["matched_by"] == "*" else row["matched_by"]
            lines.append((f"source: {name}", said))
    for row in findings.rows.get("quotas", ()):
        at_most = f"at most {row['max_trajectories']:,} trajectories"
        lines.append((f"quota: {row['dimension']} {row['value']}", at_most))
    for row in findings.rows.get("excluded_sources", ()):
        lines.append((f"source: {row['source']}", "left out of this build"))
    return Table(
        "The recipe as it was built",
        ("setting", "value"),
        tuple((b.words(name), b.words(value, 400)) for name, value in lines),
    )


def _reasons_there(funnel: Rows) -> list[str]:
    return [reason for reason in REASONS if any(row.get(reason) for row in funnel)]


def stages_of(findings: Findings) -> Iterable[Block]:
    """From raw records to training, of all sources and of each."""
    funnel = findings.rows["funnel"]
    reasons = _reasons_there(funnel)
    yield _stages(funnel, reasons)
    shown_results = [name for name in _RESULTS if name == "kept" or _sum(funnel, name)]
    yield b.Legend(
        tuple((f"v-{name}", _RESULTS[name]) for name in shown_results)
        + tuple((f"v-{reason}", reason) for reason in reasons)
    )
    yield Table(
        "Verdicts of each source, as shares of its trajectories",
        ("source", "trajectories", "verdicts", "kept"),
        tuple(
            (
                b.words(row["source"]),
                b.count(row["trajectories"]),
                b.stacked(
                    [
                        ("v-kept", "kept", row["kept"] - (row.get("salvaged") or 0)),
                        ("v-salvaged", _RESULTS["salvaged"], row.get("salvaged") or 0),
                        *((f"v-{name}", name, row.get(name) or 0) for name in reasons),
                    ],
                    row["trajectories"],
                ),
                b.share(row["kept"] / row["trajectories"] if row["trajectories"] else None),
            )
            for row in funnel
        ),
    )
    columns = ("raw_records", "quarantined", "trajectories", "rated", *reasons, "kept")
    columns += ("salvaged", "kept_tasks", "train_trajectories", "train_positions")
    columns += ("eval_trajectories",)
    yield b.Details(
        shown("The same as numbers"),
        (
            Table(
                "Records, trajectories and positions of each source",
                ("source", *(name.replace("_", " ") for name in columns)),
                tuple(
                    (b.words(row["source"]), *(b.count(row.get(name)) for name in columns))
                    for row in funnel
                ),
                (b.words("all"), *(b.count(_sum(funnel, name)) for name in columns)),
            ),
        ),
    )
    if "quarantine" in findings.problems:
        yield Words(findings.problems["quarantine"], is_warning=True)
    elif quarantine := findings.rows["quarantine"]:
        yield Table(
            "Records in quarantine: no parser accepted them",
            ("source", "reason", "records", "for example"),
            tuple(
                (
                    b.words(row["source"]),
                    b.words(row["reason"]),
                    b.count(row["records"]),
                    _excerpt(row, "detail"),
                )
                for row in quarantine
            ),
        )


def _stages(funnel: Rows, reasons: Sequence[str]) -> Table:
    """The whole lake, from records to what is trained on; what each stage takes away."""
    records, left = _sum(funnel, "raw_records"), _sum(funnel, "trajectories")
    quarantined = _sum(funnel, "quarantined")
    stages = [
        ("raw records", records, ""),
        ("records that a parser accepted", records - quarantined, f"{quarantined:,} in quarantine"),
        ("trajectories", left, "a record may hold several"),
    ]
    for reason in reasons:
        dropped = _sum(funnel, reason)
        left -= dropped
        stages.append((f"without {reason}", left, f"{dropped:,} dropped: {REASONS[reason]}"))
    salvaged = _sum(funnel, "salvaged")
    stages += [
        ("kept", _sum(funnel, "kept"), f"{salvaged:,} of them salvaged" if salvaged else ""),
        (
            "held back for evaluation",
            _sum(funnel, "eval_trajectories"),
            "by task, before all sampling",
        ),
        ("trained on", _sum(funnel, "train_trajectories"), "different trajectories in the plan"),
    ]
    most = max(size for _, size, _ in stages)
    return Table(
        "From raw records to training",
        ("stage", "how many", "", "what happens there"),
        tuple(
            (
                b.words(name),
                b.count(size),
                b.stacked([("v-kept" if name == "kept" else "s-stage", name, size)], most),
                b.words(lost),
            )
            for name, size, lost in stages
        ),
    )


def _rejections(findings: Findings) -> Iterable[Block]:
    funnel = findings.rows["funnel"]
    by_reason: dict[str, Rows] = defaultdict(list)
    for row in findings.rows["rejections"]:
        by_reason[row["reason"]].append(row)
    if not by_reason:
        yield Words("Nothing was dropped.")
    order = [*REASONS, *sorted(set(by_reason) - set(REASONS))]
    for reason in (name for name in order if name in by_reason):
        rows = by_reason[reason]
        total = _sum(funnel, reason) or len(rows)
        title = f"{reason}: {total:,}, {len(rows)} of them shown"
        meaning = REASONS.get(reason)
        yield b.Details(
            shown(title),
            (
                Words(f"Dropped because {meaning}." if meaning else "Dropped."),
                Table(
                    f"Dropped as {reason}",
                    ("source", "user query", "last output", "detail", "rater", "environment",
                     "steps", "raw record"),
                    tuple(map(_rejected, rows)),
                ),
            ),
            is_open=True,
        )  # fmt: skip


def _rejected(row: Mapping[str, Any]) -> tuple[Cell, ...]:
    return (
        b.words(row["source"]),
        _excerpt(row, "query"),
        _excerpt(row, "last_output"),
        _excerpt(row, "reason_detail"),
        b.decimal(row["rater_score"]),
        b.decimal(row["score"]),
        b.count(row["step_count"]),
        b.words(f"{row['raw_file']}, position {row['raw_position']}", 160),
    )


def scores_of(findings: Findings) -> Iterable[Block]:
    """Both scores by source, each on its own scale."""
    yield Words(
        "Two scores, never mixed. The rater's goes from 0 to 5 for every source. The "
        "environment's has a scale of its own in every source: its columns go from the lowest to "
        "the highest value that the source has."
    )
    yield b.Legend((("v-kept", "kept"), ("v-filtered", "dropped, for any reason")))
    bins = _of_source(findings.rows["rater_bins"])
    yield Table(
        "rater_score by source, in halves of a point from 0 to 5",
        ("source", "rated", "not rated", "0 to 5", "mean", "median", "lowest", "highest"),
        tuple(
            (
                b.words(row["source"]),
                b.count(row["known"]),
                b.count(row["trajectories"] - row["known"]),
                _columns(bins.get(row["source"], []), _RATER_BINS),
                *(b.decimal(row[name]) for name in ("mean", "median", "lowest", "highest")),
            )
            for row in findings.rows["rater_scores"]
        ),
    )
    bins = _of_source(findings.rows["score_bins"])
    scored = [row for row in findings.rows["scores"] if row["known"] or row["not_finite"]]
    without = len(findings.rows["scores"]) - len(scored)
    if without:
        yield Words(f"{without:,} sources have no score of an environment.")
    if scored:
        yield Table(
            "The environment's score by source, in tenths of its own scale",
            ("source", "known", "unknown", "not finite", "different values", "lowest to highest",
             "mean", "median", "lowest", "highest"),
            tuple(
                (
                    b.words(row["source"]),
                    b.count(row["known"]),
                    b.count(row["trajectories"] - row["known"] - row["not_finite"]),
                    b.count(row["not_finite"]),
                    b.count(row["distinct_values"]),
                    _columns(
                        bins.get(row["source"], []),
                        b.ranges(row["lowest"] or 0, row["highest"] or 0, _SCORE_BINS),
                    ),
                    *(b.decimal(row[name]) for name in ("mean", "median", "lowest", "highest")),
                )
                for row in scored
            ),
        )  # fmt: skip


def _columns(rows: Rows, titles: Sequence[str]) -> b.Bars:
    by_bin = {row["bin"]: row for row in rows}
    return b.histogram(
        [
            (title, by_bin[place]["trajectories"], by_bin[place]["kept"])
            if place in by_bin
            else (title, 0, 0)
            for place, title in enumerate(titles)
        ]
    )


def _agreement(findings: Findings) -> Iterable[Block]:
    rows = findings.rows["agreement"]
    if not rows:
        yield Words("No trajectory has both scores.")
        return
    yield Words(
        "Rank correlation is Spearman's ρ with mean ranks for equal values: 1 where the rater puts "
        "a source's runs in the environment's order, 0 where it does not know it. It needs two "
        f"different values of each. Of fewer than {_FEW_RUNS} runs it says little."
    )
    yield Table(
        "Runs with both scores",
        ("source", "runs (n)", "rank correlation ρ", "environment: values", "rater: values",
         "few runs"),
        tuple(
            (
                b.words(row["source"]),
                b.count(row["runs"]),
                b.decimal(row["rank_correlation"]),
                b.count(row["environment_values"]),
                b.count(row["rater_values"]),
                b.words("few" if row["runs"] < _FEW_RUNS else None),
            )
            for row in rows
        ),
    )  # fmt: skip
    cells = _of_source(findings.rows["agreement_cells"])
    largest = sorted(rows, key=lambda row: (-row["runs"], row["source"]))[:3]
    for row in rows:
        titles = b.ranges(row["lowest"], row["highest"], _AGREEMENT_BINS)
        yield b.Details(
            shown(f"{row['source']}: {row['runs']:,} {'run' if row['runs'] == 1 else 'runs'}"),
            (
                Table(
                    "How the rater's scores lie within each fifth of the environment's scale; "
                    "the stronger the colour, the greater the part of the row",
                    ("environment's score", "runs", "rated 0 to 1", "1 to 2", "2 to 3", "3 to 4",
                     "4 to 5", "lower quartile", "median", "upper quartile"),
                    tuple(
                        (
                            b.words(titles[cell["score_bin"]]),
                            b.count(cell["runs"]),
                            *(b.heat(cell[f"rated_{n}"], cell["runs"]) for n in range(5)),
                            b.decimal(cell["lower_quartile"]),
                            b.decimal(cell["median"]),
                            b.decimal(cell["upper_quartile"]),
                        )
                        for cell in cells[row["source"]]
                    ),
                ),
            ),
            is_open=row in largest,
        )  # fmt: skip


def _plan(findings: Findings) -> Iterable[Block]:
    plan = findings.rows["plan"]
    if not plan:
        yield Words("Nothing is trained on.")
        return
    windows = {row["source"]: row for row in findings.rows["windows"]}
    most = max(
        row[name] or 0
        for row in plan
        for name in ("requested_share", "realised_share", "trained_token_share")
    )
    yield Words(
        "Requested is what weights, temperature and agent_share ask for; a cap on repeats or a "
        "token budget can give less. Tokens are estimated, a quarter of the characters. A source "
        "with long conversations has a greater share of the tokens than of the samples."
    )
    yield b.Legend(_PLAN_SHARES)
    yield Table(
        "Share of each source in the run",
        ("source", "shares", "requested", "samples", "trained tokens", "positions",
         "trained tokens, estimated", "capped"),
        tuple(
            (
                b.words(row["source"]),
                b.beside(
                    [
                        (*_PLAN_SHARES[0], row["requested_share"]),
                        (*_PLAN_SHARES[1], row["realised_share"]),
                        (*_PLAN_SHARES[2], row["trained_token_share"]),
                    ],
                    most,
                ),
                b.share(row["requested_share"]),
                b.share(row["realised_share"]),
                b.share(row["trained_token_share"]),
                b.count(row["positions"]),
                b.count(row["trained_tokens"]),
                b.words("by max_repeats" if row["is_capped"] else None),
            )
            for row in plan
        ),
        (
            b.words("all"),
            b.words(None),
            *(
                b.share(sum(row[name] or 0 for row in plan))
                for name in ("requested_share", "realised_share", "trained_token_share")
            ),
            b.count(_sum(plan, "positions")),
            b.count(_sum(plan, "trained_tokens")),
            b.words(None),
        ),
    )  # fmt: skip
    worst = max((row["samples_off"] or 0 for row in windows.values()), default=0.0)
    many = max((row["windows"] for row in windows.values()), default=0)
    yield Words(
        f"Windows of 1,000 positions: {many:,}. The worst one is {worst:.2f} samples off a "
        "source's share of the run. Shares of tokens are of whole windows, or of the only one."
    )
    yield Table(
        "The worst window of each source",
        ("source", "most samples off its share", "in window number",
         "trained tokens: lowest share", "trained tokens: highest share"),
        tuple(
            (
                b.words(row["source"]),
                b.decimal(row["samples_off"]),
                b.count(row["worst_window"]),
                b.share(row["lowest_token_share"]),
                b.share(row["highest_token_share"]),
            )
            for row in findings.rows["windows"]
        ),
    )  # fmt: skip


def _passes(findings: Findings) -> Iterable[Block]:
    plan = findings.rows["plan"]
    trajectories = _sum(plan, "trajectories")
    if not trajectories:
        yield Words("Nothing is trained on.")
        return
    by_rows = _sum(plan, "positions") / trajectories
    by_source = sum(row["passes"] for row in plan) / len(plan)
    yield Words(
        f"A trajectory is seen {by_rows:.2f} times on average over all rows, and a source "
        f"{by_source:.2f} times on average over the sources. AgentOhana's model saw each data set "
        "about three times on average (arXiv 2402.15506)."
    )
    seen: dict[str, dict[int, int]] = defaultdict(dict)
    for row in findings.rows["passes"]:
        seen[row["source"]][row["times"]] = row["trajectories"]
    for row in plan:
        never = row["trajectories"] - sum(seen[row["source"]].values())
        if never > 0:
            seen[row["source"]][0] = never
    times = sorted({each for of_source in seen.values() for each in of_source})
    most = max(row["passes"] for row in plan)
    yield Table(
        "Passes over each source, and how many of its trajectories come how often",
        ("source", "trajectories", "passes", "mean passes", *(f"{n}×" for n in times)),
        tuple(
            (
                b.words(row["source"]),
                b.count(row["trajectories"]),
                b.Bars(
                    (b.Segment("s-samples", 0, round(b.WIDTH * row["passes"] / most, 2)),)
                    if most
                    else (),
                    f"{row['passes']:.2f} passes",
                ),
                b.decimal(row["passes"]),
                *(b.count(seen[row["source"]].get(n, 0)) for n in times),
            )
            for row in plan
        ),
        (
            b.words("all"),
            b.count(trajectories),
            b.words(None),
            b.decimal(by_rows),
            *(b.count(sum(of_source.get(n, 0) for of_source in seen.values())) for n in times),
        ),
    )


def _exact(findings: Findings) -> Iterable[Block]:
    copies = findings.rows["copies"]
    contents = _sum(copies, "contents")
    extra = sum((row["copies"] - 1) * row["contents"] for row in copies)
    yield Words(
        f"Exact: {contents:,} contents are there more than once, "
        f"{_sum(copies, 'across_sources'):,} of them in more than one source. That is "
        f"{extra:,} trajectories more than contents."
    )
    if not copies:
        return
    most = max(row["contents"] for row in copies)
    yield Table(
        "Contents by the number of their copies",
        ("copies", "contents", "", "in more than one source"),
        tuple(
            (
                b.count(row["copies"]),
                b.count(row["contents"]),
                b.stacked([("s-stage", f"{row['copies']} copies", row["contents"])], most),
                b.count(row["across_sources"]),
            )
            for row in copies
        ),
    )
    yield Table(
        f"The most copied contents: {len(findings.rows['copy_examples'])} of {contents:,}",
        ("copies", "sources", "user query"),
        tuple(
            (
                b.count(row["copies"]),
                b.words(", ".join(row["sources"])),
                _excerpt(row, "query"),
            )
            for row in findings.rows["copy_examples"]
        ),
    )


def _near(findings: Findings) -> Iterable[Block]:
    clusters = findings.rows["clusters"]
    total = _sum(clusters, "clusters")
    if not total:
        yield Words("Near: no two different contents are near duplicates of each other.")
        return
    members = sum(row["clusters"] * row["cluster_size"] for row in clusters)
    yield Words(
        f"Near: {members:,} different contents are in {total:,} clusters. Of a cluster, a recipe "
        "with drops_near_duplicates keeps one."
    )
    most = max(row["clusters"] for row in clusters)
    yield Table(
        "Clusters by size",
        ("contents in it", "clusters", ""),
        tuple(
            (
                b.count(row["cluster_size"]),
                b.count(row["clusters"]),
                b.stacked([("s-stage", f"of {row['cluster_size']}", row["clusters"])], most),
            )
            for row in clusters
        ),
    )
    of_cluster: dict[str, Rows] = defaultdict(list)
    for row in findings.rows["cluster_examples"]:
        of_cluster[row["cluster_id"]].append(row)
    yield Words(f"The largest clusters, {len(of_cluster)} of {total:,}, three contents of each:")
    for cluster, rows in of_cluster.items():
        yield b.Details(
            shown(f"{rows[0]['cluster_size']:,} contents: cluster {cluster[:12]}"),
            (
                Table(
                    "Contents of the cluster",
                    ("source", "user query", "similarity with its nearest", "verdict"),
                    tuple(
                        (
                            b.words(row["source"]),
                            _excerpt(row, "query"),
                            b.decimal(row["similarity"]),
                            b.words(row["reason"]),
                        )
                        for row in rows
                    ),
                ),
            ),
        )


def _duplicates(findings: Findings) -> Iterable[Block]:
    yield from _made(findings, ("copies", "copy_examples"), _exact)
    yield from _made(findings, ("clusters", "cluster_examples"), _near)


def _overlap(findings: Findings) -> Iterable[Block]:
    checked = findings.rows["checked"][0]["trajectories"]
    overlap = findings.rows["overlap"]
    if not findings.rows["benchmarks"]:
        yield Words("No benchmark is declared, so nothing was looked for.")
        return
    of_benchmark: dict[str, Rows] = defaultdict(list)
    for row in overlap:
        of_benchmark[row["benchmark"]].append(row)
    yield Words(f"{checked:,} trajectories were looked through for texts of these benchmarks.")
    yield Table(
        "Benchmarks",
        ("benchmark", "items", "items that cannot be searched", "trajectories with an item"),
        tuple(
            (
                b.words(row["benchmark"]),
                b.count(row["items"]),
                b.count(row["problems"]),
                b.count(_sum(of_benchmark.get(row["benchmark"], ()), "trajectories")),
            )
            for row in findings.rows["benchmarks"]
        ),
    )
    if not overlap:
        return
    yield Table(
        "What was found, by source",
        ("benchmark", "source", "items", "trajectories", "kept all the same", "exact",
         "normalised", "n-gram"),
        tuple(
            (
                b.words(row["benchmark"]),
                b.words(row["source"]),
                *(
                    b.count(row[name])
                    for name in ("items", "trajectories", "kept", "exact", "normalised", "ngram")
                ),
            )
            for row in overlap
        ),
    )  # fmt: skip
    examples = findings.rows["overlap_examples"]
    matches = sum(row["exact"] + row["normalised"] + row["ngram"] for row in overlap)
    yield Table(
        f"Evidence: {len(examples):,} of {matches:,} matches",
        ("benchmark", "item", "source", "kind", "overlap", "where", "matched text"),
        tuple(
            (
                b.words(row["benchmark"]),
                b.words(row["item_id"]),
                b.words(row["source"]),
                b.words(row["kind"]),
                b.share(row["overlap"]),
                b.words(row["where_found"]),
                _excerpt(row, "matched_text"),
            )
            for row in examples
        ),
    )


def _flags(findings: Findings) -> Iterable[Block]:
    steps = findings.rows["steps"]
    yield Table(
        "Steps by source, of all trajectories, kept or not",
        ("source", "steps", "masked by the source, or silent", "masked by a rule", "left",
         "runs", "with an error step", "with a loop", "unfinished"),
        tuple(
            (
                b.words(row["source"]),
                b.count(row["steps"]),
                b.count(row["steps"] - row["unmasked_steps"]),
                b.count(row["unmasked_steps"] - row["trainable_steps"]),
                b.count(row["trainable_steps"]),
                *(
                    b.count(row[name])
                    for name in ("trajectories", "with_error", "with_loop", "unfinished")
                ),
            )
            for row in steps
        ),
    )  # fmt: skip
    flags = findings.rows["flags"]
    if not flags:
        yield Words("No step has a flag.")
        return
    names = sorted({row["flag"] for row in flags})
    sizes = {row["source"]: row["steps"] for row in steps}
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in flags:
        found[row["source"]][row["flag"]] = row["steps"]
    most = max(row["steps"] / (sizes.get(row["source"]) or 1) for row in flags)
    yield Table(
        "Steps with a flag, by source; the stronger the colour, the greater the part of the "
        "source's steps",
        ("source", *(name.replace("_", " ") for name in names)),
        tuple(
            (
                b.words(source),
                *(
                    b.heat(found[source].get(name, 0), (sizes.get(source) or 1) * most)
                    for name in names
                ),
            )
            for source in sorted(found)
        ),
        (
            b.words("all"),
            *(b.count(sum(each.get(name, 0) for each in found.values())) for name in names),
        ),
    )
    if len(sizes) > len(found):
        yield Words(f"{len(sizes) - len(found):,} sources have no flag at all.")


def _personal(findings: Findings) -> Iterable[Block]:
    kinds = findings.rows["personal_kinds"]
    yield Words(
        "What looks like personal data or a secret, by kind. Values are not shown: in all texts of "
        "this page, placeholders such as [EMAIL] stand for them. What the rules do not know may "
        "still be there, so the page is as private as the lake."
    )
    if not kinds:
        yield Words("Nothing was found.")
        return
    yield Table(
        "Trajectories with personal data",
        ("source", "kind", "trajectories", "of them kept"),
        tuple(
            (
                b.words(row["source"]),
                b.words(row["kind"]),
                b.count(row["trajectories"]),
                b.count(row["kept"]),
            )
            for row in kinds
        ),
    )
    places = sorted({row["place"] for row in findings.rows["personal_places"]})
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for row in findings.rows["personal_places"]:
        found[row["kind"]][row["place"]] = row["findings"]
    most = max(row["findings"] for row in findings.rows["personal_places"])
    yield Table(
        "Findings by kind and field",
        ("kind", *(name.replace("_", " ") for name in places)),
        tuple(
            (b.words(kind), *(b.heat(found[kind].get(place, 0), most) for place in places))
            for kind in sorted(found)
        ),
    )


def _licences(findings: Findings) -> Iterable[Block]:
    rows = findings.rows["licences"]
    unknown = sum(row["kept"] for row in rows if row["license"] is None)
    if unknown:
        yield Words(f"{unknown:,} kept trajectories have no known licence.", is_warning=True)
    yield Table(
        "Licences and origin",
        ("source", "licence", "synthetic", "generator", "trajectories", "kept"),
        tuple(
            (
                b.words(row["source"]),
                b.words(row["license"] or "unknown"),
                b.words({True: "yes", False: "no"}.get(row["is_synthetic"], "unknown")),
                b.words(
                    row["generator"]
                    if row["generators"] < 2
                    else f"{row['generators']:,} generators"
                ),
                b.count(row["trajectories"]),
                b.count(row["kept"]),
            )
            for row in rows
        ),
    )


def _examples(findings: Findings) -> Iterable[Block]:
    flags = {row["trajectory_id"]: row for row in findings.rows.get("example_flags", [])}
    told_of = {
        row["trajectory_id"]: told(row, flags.get(row["trajectory_id"]))
        for row in findings.rows["examples"]
    }
    pairs = tuple(
        (told_of.get(kept or ""), told_of.get(dropped or ""))
        for kept, dropped in chosen_pairs(findings)
    )
    kept_count = sum(kept is not None for kept, _ in pairs)
    dropped_count = sum(dropped is not None for _, dropped in pairs)
    yield Words(
        f"{kept_count} kept beside {dropped_count} dropped. Dropped ones are of all reasons in "
        "turn and of many sources. Beside one stands the run that it is a copy of, or one at the "
        "same task, or one of a source that was not shown yet. Nobody picked them by hand."
    )
    yield Words(
        "A step with a hatched edge carries no loss. Long runs and texts are cut; how much is "
        "missing stands where it is missing. Names such as U+202E stand for characters that "
        "cannot be seen."
    )
    yield b.Pairs(pairs)


_SECTIONS: tuple[
    tuple[str, str, tuple[str, ...], Callable[[Findings], Iterable[Block]]], ...
] = (
    ("funnel", "Funnel", ("funnel",), stages_of),
    ("rejections", "What was dropped", ("rejections",), _rejections),
    ("scores", "Scores", ("rater_scores", "rater_bins", "scores", "score_bins"), scores_of),
    ("agreement", "Rater and environment", ("agreement", "agreement_cells"), _agreement),
    ("plan", "Shares, requested and realised", ("plan", "windows"), _plan),
    ("passes", "Passes", ("plan", "passes"), _passes),
    ("duplicates", "Duplicates", (), _duplicates),
    ("overlap", "Benchmark overlap", ("checked", "benchmarks", "overlap", "overlap_examples"),
     _overlap),
    ("flags", "Flags of steps", ("steps", "flags"), _flags),
    ("personal-data", "Personal data", ("personal_kinds", "personal_places"), _personal),
    ("licences", "Licences", ("licences",), _licences),
    ("examples", "Kept and dropped, side by side", ("candidates", "examples"), _examples),
)  # fmt: skip
