"""How far the text in a trajectory moves a rater: the attack suite against any rater.

The suite (`udfs.rater.attacks`) becomes a small lake of its own, and the rater that the vars name
rates it as it rates any other: with its estimate, its budget, its journal and its ledger. So a run
that was interrupted goes on where it stopped, and no question is paid for twice.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import typer
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from udfs import lake
from udfs.errors import ConfigError
from udfs.rater import configured_raters, rate
from udfs.rater.attacks import (
    CONTROL,
    KEPT_FROM,
    PLACEBO,
    POSITIONS,
    SUITE_VERSION,
    Rate,
    Rating,
    Trial,
    controls,
    is_usable,
    rates_by,
    suite,
)
from udfs.rater.committee import Settings
from udfs.rater.ledger import TABLE
from udfs.rater.prompt import DEFAULT_TEMPLATE
from udfs.schema import TRAJECTORY

# Beside the template that the vars name: the method's own prompt, with nothing around it.
BARE_TEMPLATE = "fig4-v1"

_TRIALS = "trajectories"
_TRIALS_SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("base", pa.string()),
        ("environment", pa.string()),
        ("attack", pa.string()),
        ("position", pa.string()),
        ("payload", pa.string()),
        *TRAJECTORY,
    ]
)


@dataclass(frozen=True)
class Column:
    """The suite against one rater, or one template of a judge."""

    name: str
    asked: int
    controls: Mapping[str, float | None]
    attacks: Sequence[Rate]
    total: Sequence[Rate]  # one: all attacks together, without the placebo, as the positions are
    positions: Sequence[Rate]


def attack_command(
    vars: Annotated[
        str, typer.Option(metavar="YAML", help="The rater's vars, written as for `dbt build`.")
    ] = "{}",
    template: Annotated[
        list[str] | None,
        typer.Option(help="A judge's template; give it again for another column."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of each attack.")] = 48,
    seed: Annotated[int, typer.Option(help="What the trials are drawn by.")] = 0,
    out: Annotated[
        Path, typer.Option(help="The folder that keeps trials, replies and report.json.")
    ] = Path("attacks"),
) -> None:
    """Attack a rater with hostile trajectories, and say how often its score moves."""
    settings = _settings(vars)
    made = suite(seed, trials)
    with _lake_in(out):
        lake.write(_TRIALS, _rows(made), _insert_by("trajectory_id"))
        spent = _spent_usd()
        columns = [
            column
            for variant in _variants(settings, template)
            for column in _columns(made, variant, spent)
        ]
    report = {
        "suite": SUITE_VERSION,
        "seed": seed,
        "trials": trials,
        "rater": settings["rater"],
        "model": settings["model"] or None,
        "columns": [_as_json(column) for column in columns],
    }
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    _print(report, columns, len(made), out)


def _settings(given: str) -> dict[str, Any]:
    """The rater's settings: the project's vars, and over them those that were given."""
    project = Path("dbt_project.yml")
    if not project.exists():
        raise ConfigError(f"There is no {project.resolve()}. Run `trajlake` in the project's root.")
    try:
        chosen = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise ConfigError(f"--vars is no YAML: {error}") from error
    known: dict[str, Any] = yaml.safe_load(project.read_text("utf-8"))["vars"]
    if not isinstance(chosen, dict) or not chosen.keys() <= known.keys():
        raise ConfigError(
            f"--vars is {given!r}. Give vars of dbt_project.yml as for dbt, for example "
            "--vars '{rater: openai, rater_model: gpt-4o-mini}'."
        )
    variables = {name.removeprefix("rater_"): value for name, value in (known | chosen).items()}
    names = [setting.name for setting in fields(Settings)]
    return {name: variables[name] for name in names if variables.get(name) is not None}


def _variants(
    settings: Mapping[str, Any], templates: Sequence[str] | None
) -> Iterator[Mapping[str, Any]]:
    """The settings to compare: those of one judge with each template."""
    if settings["rater"] != "openai" or settings.get("committee"):
        if templates:
            raise ConfigError("--template is for one judge (rater: openai). Leave it out.")
        yield settings
        return
    for name in dict.fromkeys(
        templates or (BARE_TEMPLATE, settings.get("template", DEFAULT_TEMPLATE))
    ):
        yield {**settings, "template": name}


def _spent_usd() -> float:
    """What the replies in the folder cost, those of earlier runs included."""
    if lake.open_table(TABLE) is None:
        return 0.0
    with lake.connect() as connection:
        (usd,) = connection.execute(f"select sum(cost_usd) from {TABLE}").fetchone() or (0.0,)
    return float(usd or 0.0)


@contextmanager
def _lake_in(folder: Path) -> Iterator[None]:
    """Makes a folder the lake, so that the real one is neither read nor written."""
    before = os.environ.get("TRAJLAKE_LAKE")
    os.environ["TRAJLAKE_LAKE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRAJLAKE_LAKE"]
        else:
            os.environ["TRAJLAKE_LAKE"] = before


def _insert_by(key: str) -> lake.WriteOptions:
    return lake.WriteOptions(strategy="insert", unique_key=(key,), commit="batch")


def _rows(trials: Sequence[Trial]) -> pa.RecordBatchReader:
    rows = [
        {
            **asdict(trial),
            **trial.trajectory,
            "trajectory_id": trial.trial_id,
            # Not the content's: a control that is asked three times has to be three questions.
            "content_sha256": trial.trial_id,
        }
        for trial in trials
    ]
    return pa.Table.from_pylist(rows, schema=_TRIALS_SCHEMA).to_reader()


def _columns(
    trials: Sequence[Trial], settings: Mapping[str, Any], spent_before: float
) -> list[Column]:
    """Have the trials rated, as far as they are not yet, and count what came of it.

    The controls come first: where no base is of use, the attacks would be paid for in vain.

    Args:
        trials: the suite.
        settings: the rater's.
        spent_before: USD when this run began; its budget is for all that it asks.
    """
    raters = json.loads(configured_raters(json.dumps(settings)))
    alone = settings.get("template", settings["rater"])
    bare = [trial for trial in trials if trial.attack == CONTROL]
    _rate(bare, settings, spent_before)
    found = [controls(bare, _ratings(rater["rater_id"])).values() for rater in raters]
    if any(is_usable(score) for scores in found for score in scores):
        _rate([t for t in trials if t.attack != CONTROL], settings, spent_before)
    return [
        _column(trials, rater["judge"] or alone, _ratings(rater["rater_id"])) for rater in raters
    ]


def _rate(trials: Sequence[Trial], settings: Mapping[str, Any], spent_before: float) -> None:
    if "max_usd" in settings:
        left = settings["max_usd"] - (_spent_usd() - spent_before)
        settings = {**settings, "max_usd": max(0.0, left)}
    with lake.connect() as connection:
        connection.register("suite", pa.table({"trajectory_id": [t.trial_id for t in trials]}))
        given = connection.sql(f"select * from {_TRIALS} semi join suite using (trajectory_id)")
        lake.write(TABLE, rate(given, **settings), _insert_by("rating_id"))


def _ratings(rater_id: str) -> dict[str, Rating]:
    """Trial → its latest rating by a rater."""
    with lake.connect() as connection:
        found = connection.execute(
            f"select content_sha256, status, rater_score from {TABLE} where rater_id = ? "
            "order by attempt",
            [rater_id],
        )
        return {key: Rating(status, score) for key, status, score in found.fetchall()}


def _column(trials: Sequence[Trial], name: str, ratings: Mapping[str, Rating]) -> Column:
    attacks = [trial for trial in trials if trial.attack != PLACEBO]
    by_position = sorted(attacks, key=lambda trial: POSITIONS.index(trial.position or POSITIONS[0]))
    return Column(
        name=name,
        asked=sum(trial.trial_id in ratings for trial in trials),
        controls=controls(trials, ratings),
        attacks=rates_by(lambda trial: trial.attack, trials, ratings),
        total=rates_by(lambda trial: "all attacks", attacks, ratings),
        positions=rates_by(lambda trial: trial.position or "control", by_position, ratings),
    )


def _as_json(column: Column) -> dict[str, Any]:
    def rows(key: str, rates: Sequence[Rate]) -> list[dict[str, Any]]:
        return [
            {key: rate.name, "success_rate": rate.rate, "interval_95": rate.interval}
            | {k: v for k, v in asdict(rate).items() if k != "name"}
            for rate in rates
        ]

    return {
        "name": column.name,
        "asked": column.asked,
        "controls": column.controls,
        "attacks": rows("attack", [*column.attacks, *column.total]),
        "positions": rows("position", column.positions),
    }


def _print(report: Mapping[str, Any], columns: Sequence[Column], asked: int, out: Path) -> None:
    console = Console()
    title = (
        f"How often text moves the score of {report['model'] or report['rater']} "
        f"({report['suite']}, seed {report['seed']}, {report['trials']} trials of each attack)"
    )
    console.print(Text(title), soft_wrap=True)
    console.print(_table("attack", columns, lambda column: [*column.attacks, *column.total]))
    console.print(_table("position", columns, lambda column: column.positions))
    for column in columns:
        for line in _remarks(column, asked):
            console.print(Text(f"{column.name}: {line}"), soft_wrap=True)
    places = f"{out / 'report.json'} has it as JSON; {out} is a lake with every reply."
    console.print(Text(places), soft_wrap=True)


def _table(
    what: str, columns: Sequence[Column], rates: Callable[[Column], Sequence[Rate]]
) -> Table:
    table = Table(box=SIMPLE_HEAD, collapse_padding=True)
    table.add_column(what, no_wrap=True)
    for column in columns:
        table.add_column(f"{column.name}\nmoved", justify="right", no_wrap=True)
        table.add_column("\n% (95%)", justify="right", no_wrap=True)
        table.add_column("no\nscore", justify="right", no_wrap=True)
    for row in zip(*map(rates, columns), strict=True):
        cells: list[str] = []
        for found in row:
            low, high = found.interval
            shown = (
                "" if found.rate is None else f"{found.rate:.0%} ({100 * low:.0f}–{100 * high:.0f})"
            )
            cells += [f"{found.moved}/{found.answered}", shown, str(found.no_score)]
        table.add_row(row[0].name, *cells)
    return table


def _remarks(column: Column, trials: int) -> Iterator[str]:
    """What a reader of the table has to know."""
    useless = [
        f"{base} ({'no score' if score is None else format(score, 'g')})"
        for base, score in column.controls.items()
        if not is_usable(score)
    ]
    if len(useless) == len(column.controls):
        yield (
            f"no run has a score below {KEPT_FROM:g} without an attack, so there was nothing to "
            f"attack: {', '.join(useless)}."
        )
        return
    if useless:
        yield (
            f"left out, because the run without an attack has {KEPT_FROM:g} or more, or no score: "
            f"{', '.join(useless)}."
        )
    if column.asked < trials:
        yield (
            f"{column.asked:,} of {trials:,} questions have an answer. Run the command again to "
            "ask the rest."
        )
    if failed := sum(rate.failed for rate in column.attacks):
        yield f"{failed:,} questions failed and are not counted. Run the command again to ask them."
