"""How a rater's scores go with labels: `trajlake calibration`, a table and a page with plots."""

from __future__ import annotations

import html
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import duckdb
import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orchestration.printing import AsJson, print_json, table, text
from udfs.errors import LakeError
from udfs.rater import calibration
from udfs.rater.calibration import Calibration, Estimate, Measures
from udfs.views import open_lake

# A recipe's usual filter, `rater_score >= 4.0`.
_THRESHOLD = 4.0

# A label that goes with the environment's score like this is that score.
_CIRCULAR = 0.8


@dataclass(frozen=True)
class Group:
    """Labelled ratings of one rater and one label: of an environment, or of all together."""

    rater: str
    rate_model: str
    rater_id: str
    label: str
    place: str  # the environment or the source
    trained_on: int  # left out: the rater has learned from their tasks
    likeness_to_reward: float | None  # the label's correlation with the environment's score
    scores: calibration.Floats
    shares: calibration.Floats
    successes: calibration.Bools
    tasks: Sequence[str]
    lengths: calibration.Floats

    @property
    def name(self) -> str:
        """The rater as a reader calls it."""
        # A trained rater's model name has a hash of its own.
        return (
            self.rate_model if self.rater == "local" else f"{self.rate_model} {self.rater_id[:6]}"
        )


def calibration_command(
    label: Annotated[str, typer.Option(help="What the scores are compared with.")] = "success",
    rater: Annotated[
        str | None, typer.Option(help="Only raters of this kind or model; else every one.")
    ] = None,
    environment: Annotated[str | None, typer.Option(help="Only this environment.")] = None,
    by: Annotated[
        Literal["environment", "source", "all"],
        typer.Option(help="What labels are put together by."),
    ] = "environment",
    threshold: Annotated[
        float, typer.Option(help="The score from which on the rater says success.", min=0, max=5)
    ] = _THRESHOLD,
    page: Annotated[
        Path | None, typer.Option(help="Write a page with plots to this file (.html or .svg).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how raters' scores go with labels: agreement, order, calibration, length bias."""
    if page is not None and page.suffix not in (".html", ".svg"):
        raise LakeError(f"--page {page} is neither .html nor .svg. Give it one of these endings.")
    groups = list(_groups(label, rater, environment, by))
    if not groups:
        raise LakeError(
            f"No rating has the label '{label}' here. `select label, count(*) from "
            "labelled_ratings group by label` shows which there are, by `trajlake sql`; "
            "docs/calibration.md says where labels come from."
        )
    measured = [(group, _measured(group, threshold), _calibrated(group)) for group in groups]
    if page is not None:
        _write(page, measured, threshold)
    if as_json:
        print_json([_described(*each, threshold) for each in measured])
        return
    console = Console()
    console.print(Text.assemble(("Ratings beside the label ", "bold"), text(label), "\n"))
    for each in _tables(measured, threshold):
        console.print(each)
    for line in _notes(measured):
        console.print(text(line), soft_wrap=True)
    if page is not None:
        console.print(text(f"plots: {page}"), soft_wrap=True)


Measured = tuple[Group, Measures, Calibration | None]


def _measured(group: Group, threshold: float) -> Measures:
    return calibration.measure(
        group.scores,
        group.shares,
        group.successes,
        group.tasks,
        group.lengths,
        threshold=threshold,
    )


def _calibrated(group: Group) -> Calibration | None:
    return calibration.calibrate(group.scores, group.successes, group.tasks)


def _described(
    group: Group, measures: Measures, fitted: Calibration | None, threshold: float
) -> dict[str, Any]:
    """One group as a script reads it: who, where, and every number unrounded."""
    return {
        "rater": group.rater,
        "rate_model": group.rate_model,
        "rater_id": group.rater_id,
        "label": group.label,
        "place": group.place,
        "left_out_trained_on": group.trained_on,
        "likeness_to_reward": group.likeness_to_reward,
        "threshold": threshold,
        **_fields(measures),
        "calibration": None if fitted is None else _fields(fitted),
    }


def _fields(measured: Measures | Calibration) -> dict[str, Any]:
    """The fields of a measurement; an interval by its names."""
    return {
        name: value._asdict() if isinstance(value, Estimate) else value
        for name, value in vars(measured).items()
    }


def _groups(label: str, rater: str | None, environment: str | None, by: str) -> Iterator[Group]:
    """What there is in `labelled_ratings`, by rater, label and environment or source."""
    with open_lake() as connection:
        try:
            rows = connection.execute(
                f"""
                select
                    rater,
                    rate_model,
                    rater_id,
                    label,
                    {"'all'" if by == "all" else by} as place,
                    count(*) filter (where is_trained_on) as trained_on,
                    corr(label_share, environment_score),
                    list(rater_score order by rating_id) filter (where not is_trained_on),
                    list(label_share order by rating_id) filter (where not is_trained_on),
                    list(is_success order by rating_id) filter (where not is_trained_on),
                    list(task_key order by rating_id) filter (where not is_trained_on),
                    list(output_characters order by rating_id) filter (where not is_trained_on)
                from labelled_ratings
                where
                    label = $label
                    and ($rater is null or $rater in (rater, rate_model, rater_id))
                    and environment = coalesce($environment, environment)
                group by all
                having count(*) > trained_on
                order by label, rater, rate_model, rater_id, place
                """,
                {"label": label, "rater": rater, "environment": environment},
            ).fetchall()
        except duckdb.CatalogException as error:
            raise LakeError(
                "The lake has no labels beside ratings yet. Run `dbt build`."
            ) from error
    for row in rows:
        scores, shares, successes, tasks, lengths = row[7:]
        rater_kind, rate_model, rater_id, _, place, trained_on, likeness = row[:7]
        yield Group(
            rater=rater_kind,
            rate_model=rate_model,
            rater_id=rater_id,
            label=label,
            place=place,
            trained_on=trained_on,
            likeness_to_reward=likeness,
            scores=np.array(scores, dtype=np.float64),
            shares=np.array(shares, dtype=np.float64),
            successes=np.array(successes, dtype=bool),
            tasks=tasks,
            lengths=np.array(lengths, dtype=np.float64),
        )


def _tables(measured: Sequence[Measured], threshold: float) -> Iterator[Table]:
    """What is printed, each table narrow enough for a terminal of 80 columns."""
    agreement = _new_table(
        f"Does a score of {threshold:g} or more mean success?",
        ("labels", "success", "agree", "same", "kappa", "length"),
    )
    order = _new_table(
        "Does a higher score mean better?", ("Spearman", "Kendall", "AUC", "same task")
    )
    probability = _new_table(
        "Can a score be read as a probability? (raw → calibrated, on held-out tasks)",
        ("fitted", "held out", "ECE", "Brier", "of the mean"),
    )
    for group, found, fitted in measured:
        names = (text(group.name), text(group.place))
        agreement.add_row(
            *names,
            f"{found.labels:,}",
            f"{found.success_rate:.0%}",
            f"{found.agreement_at:.0%}",
            f"{found.exact_agreement:.0%}",
            _number(found.weighted_kappa),
            _number(found.length_bias),
        )
        order.add_row(
            *names,
            *map(_interval, (found.spearman, found.kendall, found.auc)),
            _number(found.same_task)
            + (f"\nof {found.same_task_pairs:,}" if found.same_task else ""),
        )
        if fitted is None:
            probability.add_row(*names, "too few", "", f"{found.ece:.2f}", f"{found.brier:.3f}", "")
        else:
            probability.add_row(
                *names,
                f"{fitted.fitted_labels:,}",
                f"{fitted.held_out_labels:,}",
                f"{fitted.ece_before:.2f} → {fitted.ece:.2f}",
                f"{fitted.brier_before:.3f} → {fitted.brier:.3f}",
                f"{fitted.brier_of_mean:.3f}",
            )
    yield from (agreement, order, probability)


def _new_table(title: str, columns: Sequence[str]) -> Table:
    new = table(title)
    for name in ("rater", "where"):
        new.add_column(name, overflow="fold")
    for name in columns:
        new.add_column(name, justify="right", no_wrap=True)
    return new


def _notes(measured: Sequence[Measured]) -> Iterator[str]:
    yield (
        "same: score and label round to the same of 0 to 5. kappa: quadratic weights. length: "
        "rank correlation of score and length among equal labels. Below: 95% of bootstraps "
        "over tasks. same task: of two runs of one task, how often the better has the higher "
        "score. of the mean: the Brier score of the mean rate for all."
    )
    if left_out := sum(group.trained_on for group, _, _ in measured):
        yield f"Left out: {left_out:,} ratings of tasks that their rater was trained on."
    circular = [
        group.place
        for group, _, _ in measured
        if group.rater == "rules" and (group.likeness_to_reward or 0.0) > _CIRCULAR
    ]
    if circular:
        yield (
            f"No proof for the rules in {', '.join(circular)}: the label is the environment's "
            "score there, or goes with it, and the rules count that score."
        )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _interval(estimate: Estimate) -> str:
    if estimate.low is None or estimate.high is None:
        return _number(estimate.value)
    return f"{_number(estimate.value)}\n{estimate.low:.2f} – {estimate.high:.2f}"


def _write(page: Path, measured: Sequence[Measured], threshold: float) -> None:
    """The plots, one row for each group; a page also has the tables, and needs nothing else."""
    from udfs.rater.diagrams import Drawn, draw

    drawing = draw(
        [
            Drawn(
                f"{group.label}, {group.name}, {group.place}",
                group.scores,
                group.successes,
                group.tasks,
                group.lengths,
                fitted,
            )
            for group, _, fitted in measured
        ]
    )
    if page.suffix == ".html":
        console = Console(record=True, width=160, file=io.StringIO())
        console.print(*_tables(measured, threshold))
        printed = html.escape("\n".join([console.export_text(), *_notes(measured)]))
        drawing = (
            '<!doctype html><html lang="en"><meta charset="utf-8">'
            "<title>Calibration of raters</title>"
            f"<h1>Calibration of raters</h1><pre>{printed}</pre>{drawing}</html>"
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(drawing + "\n", encoding="utf-8")
