"""Rating from the command line: `trajlake rate estimate | run | status`.

What rates, and how, is in `udfs.rater` and in the vars of `dbt_project.yml`. Here is only the
asking of it: an estimate sends nothing, a run is `dbt build` of the ratings and what follows.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import duckdb
import typer
import yaml
from rich.console import Console
from rich.table import Table

from orchestration.printing import AsJson, print_json, table, text
from udfs.errors import ConfigError, LakeError
from udfs.llm.progress import usd
from udfs.rater import Pending, configured_raters, pending
from udfs.views import UnreadableDatabase, open_database, open_lake

_PROJECT = Path(__file__).parents[1] / "dbt_project.yml"

# What a run builds: who rates, the ratings, and all that follows from them.
_SELECTED = ("raters", "ratings+")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)

_Rater = Annotated[str | None, typer.Option("--rater", help="rules, openai or local.")]
_Model = Annotated[
    str | None, typer.Option("--model", help="The judge's name at its endpoint, or a folder.")
]
_MaxUsd = Annotated[float | None, typer.Option("--max-usd", help="Stop before it costs more.")]
_MaxTrajectories = Annotated[
    int | None, typer.Option("--max-trajectories", help="Rate at most so many.")
]
_Vars = Annotated[
    str | None, typer.Option("--vars", help="Any other vars of dbt_project.yml, as YAML.")
]


@app.callback()
def rate() -> None:
    """Rate trajectories. Options stand in for the vars of dbt_project.yml, for this one call."""


@app.command("estimate")
def estimate_command(
    rater: _Rater = None,
    model: _Model = None,
    max_usd: _MaxUsd = None,
    max_trajectories: _MaxTrajectories = None,
    more: _Vars = None,
    as_json: AsJson = False,
) -> None:
    """Say what is still to be rated and what that would cost. Nothing is sent, no key is needed."""
    settings = rater_settings(_given(rater, model, max_usd, max_trajectories, more))
    found = _pending(settings)
    least, most = (_sum_usd(found, name) for name in ("least_usd", "most_usd"))
    if as_json:
        print_json(
            {
                "raters": [_described(each) for each in found],
                "least_usd": least,
                "most_usd": most,
                "max_usd": settings.get("max_usd"),
            }
        )
        return
    console = Console()
    console.print(_estimate_table(found))
    for line in _remarks(found, least, most, settings):
        console.print(text(line), soft_wrap=True)


@app.command("run")
def run_command(
    rater: _Rater = None,
    model: _Model = None,
    max_usd: _MaxUsd = None,
    max_trajectories: _MaxTrajectories = None,
    more: _Vars = None,
) -> None:
    """Rate what is not rated yet, and build what follows from ratings: `dbt build`, in its words.

    It rates what is in the lake; new raw files come in by `dbt build`.
    """
    given = _given(rater, model, max_usd, max_trajectories, more)
    # What cannot be used is said before dbt starts.
    configured_raters(json.dumps(rater_settings(given)))
    try:
        with open_database() as connection:
            known = connection.execute(
                "select count(*) from duckdb_views() "
                "where view_name in ('trajectories', 'verifications')"
            ).fetchone()
    except UnreadableDatabase as error:
        raise LakeError(f"Nothing can be rated yet: {error}. Run `dbt build`.") from error
    if known != (2,):
        raise LakeError("Nothing can be rated yet: there are no trajectories. Run `dbt build`.")
    dbt = Path(sys.executable).with_name("dbt")
    command = [str(dbt), "build", "--select", *_SELECTED]
    if given:
        command += ["--vars", json.dumps(given)]
    # In the place of this process: dbt alone gets Ctrl-C, and waits for replies that are paid for.
    os.execv(dbt, command)


@app.command("status")
def status_command(as_json: AsJson = False) -> None:
    """Say who has rated how much, with what outcome and cost, and what is left to be rated."""
    settings = rater_settings({})
    raters = _ratings(settings)
    found = _pending(settings)
    if as_json:
        print_json({"raters": raters, "pending": [_described(each) for each in found]})
        return
    console = Console()
    console.print(_status_table(raters))
    for each in found:
        name = _name(each)
        line = f"{name}: {each.unrated:,} contents are not rated"
        if each.waiting:
            line += f", {each.waiting:,} of them wait in a batch"
        console.print(text(f"{line}."), soft_wrap=True)


def rater_settings(given: Mapping[str, Any], project: Path = _PROJECT) -> dict[str, Any]:
    """The settings of the model `ratings`: the vars `rater` and `rater_…` of dbt_project.yml, with
    those given in their place, under the names that `udfs.rater` has for them.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        declared = yaml.safe_load(project.read_text("utf-8"))["vars"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ConfigError(f"{project}: its `vars` cannot be read ({error}). Mend it.") from error
    found = declared | given
    return {
        name.removeprefix("rater_"): value
        for name, value in found.items()
        if name == "rater" or name.startswith("rater_")
    }


def _given(
    rater: str | None,
    model: str | None,
    max_usd: float | None,
    max_trajectories: int | None,
    more: str | None,
) -> dict[str, Any]:
    """Options as dbt's vars."""
    try:
        found = yaml.safe_load(more or "{}")
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"--vars is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise typer.BadParameter("--vars has to be a mapping, such as '{rater_long: shorten}'.")
    named = {
        "rater": rater,
        "rater_model": model,
        "rater_max_usd": max_usd,
        "rater_max_trajectories": max_trajectories,
    }
    return found | {name: value for name, value in named.items() if value is not None}


def _pending(settings: Mapping[str, Any]) -> list[Pending]:
    with open_lake() as connection:
        try:
            trajectories = connection.table("trajectories")
            verifications = connection.table("verifications")
        except duckdb.CatalogException as error:
            raise LakeError(
                "There is nothing to be rated yet: the lake has no trajectories. Run `dbt build`."
            ) from error
        return pending(trajectories, verifications, **settings)


def _ratings(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger, summed up rater by rater, the latest first."""
    ids = [each["rater_id"] for each in json.loads(configured_raters(json.dumps(settings)))]
    with open_lake() as connection:
        try:
            result = connection.execute(
                """
                select
                    rater,
                    rate_model,
                    prompt_version,
                    rater_id,
                    list_contains($ids, rater_id) as is_configured,
                    count(distinct content_sha256) filter (where status <> 'failed') as rated,
                    count(*) as ratings,
                    histogram(status) as statuses,
                    sum(cost_usd) as cost_usd,
                    sum(prompt_tokens) as prompt_tokens,
                    sum(completion_tokens) as completion_tokens,
                    max(rated_at) as last_rated_at,
                from ratings
                group by all
                order by last_rated_at desc, rater_id
                """,
                {"ids": ids},
            )
        except duckdb.CatalogException:
            return []  # nothing has been rated
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _name(each: Pending) -> str:
    identity = each.identity
    name = identity.judge or identity.rate_model
    return f"{name} (tie-breaker)" if each.is_tie_breaker else name


def _described(each: Pending) -> dict[str, Any]:
    """What is left for a rater, as a script reads it."""
    identity, estimate = each.identity, each.estimate
    return {
        "rater": identity.rater,
        "rate_model": identity.rate_model,
        "prompt_version": identity.prompt_version,
        "rater_id": identity.rater_id,
        "judge": identity.judge,
        "is_tie_breaker": each.is_tie_breaker,
        "unrated": each.unrated,
        "taken_up": each.taken_up,
        "waiting": each.waiting,
        "questions": estimate.questions if estimate else 0,
        "prompt_tokens": estimate.prompt_tokens if estimate else 0,
        "least_usd": estimate.least_usd if estimate else 0.0,
        "most_usd": estimate.most_usd if estimate else 0.0,
        "minutes": estimate.minutes if estimate else 0.0,
    }


def _sum_usd(found: list[Pending], name: str) -> float | None:
    """What all raters come to; None where one of them is not known."""
    amounts = [getattr(each.estimate, name) for each in found if each.estimate]
    return None if None in amounts else sum(amounts, 0.0)


def _estimate_table(found: list[Pending]) -> Table:
    shown = table("Still to be rated")
    shown.add_column("rater", overflow="fold")
    for name in (
        "not\nrated",
        "this\nrun",
        "prompt\ntokens",
        "without\nreplies",
        "longest\nreplies",
    ):
        shown.add_column(name, justify="right", no_wrap=True)
    for each in found:
        estimate = each.estimate
        costs = ["free", "free"]
        if estimate:
            amounts = (estimate.least_usd, estimate.most_usd)
            costs = ["–" if amount is None else usd(amount) for amount in amounts]
        tokens = f"{estimate.prompt_tokens:,}" if estimate else "–"
        shown.add_row(text(_name(each)), f"{each.unrated:,}", f"{each.taken_up:,}", tokens, *costs)
    return shown


def _remarks(
    found: list[Pending], least: float | None, most: float | None, settings: Mapping[str, Any]
) -> list[str]:
    """What a reader of the estimate should know."""
    asking = [each for each in found if each.estimate]
    if not asking:
        return ["These raters ask nobody: it costs nothing."]
    lines = [
        "Tokens are characters / 4. Each trajectory is asked about once; a reply that cannot be "
        "read is asked for again. Nothing was sent."
    ]
    if len(asking) > 1 and least is not None and most is not None:
        lines.append(f"Together {usd(least)} without replies, {usd(most)} with the longest.")
    unknown = {e.identity.rate_model for e in asking if e.estimate and e.estimate.least_usd is None}
    if unknown:
        lines.append(
            f"The var rater_prices does not have {', '.join(sorted(unknown))}, so the cost is not "
            "known. Add USD per million tokens to dbt_project.yml."
        )
    if waiting := sum(each.waiting for each in asking):
        lines.append(f"{waiting:,} more wait in a batch, and are not asked about again.")
    if any(each.is_tie_breaker for each in asking):
        lines.append("The tie-breaker is asked about what is in dispute then: counted as of now.")
    if settings.get("max_usd") is not None:
        lines.append(f"A run stops before {usd(float(settings['max_usd']))}.")
    return lines


def _status_table(raters: list[dict[str, Any]]) -> Table:
    shown = table("Ratings")
    shown.add_column("rater", overflow="fold")
    shown.add_column("outcomes", overflow="fold")
    for name in ("cost", "tokens in", "out"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("last (UTC)", no_wrap=True)
    for each in raters:
        cost = each["cost_usd"]
        name = f"{each['rate_model']} {each['rater_id'][:6]}"
        shown.add_row(
            text(f"{name} *" if each["is_configured"] else name),
            text(", ".join(f"{n:,} {status}" for status, n in each["statuses"].items())),
            "–" if cost is None else usd(cost),
            *(
                "–" if each[name] is None else f"{each[name]:,}"
                for name in ("prompt_tokens", "completion_tokens")
            ),
            f"{each['last_rated_at']:%Y-%m-%d %H:%M}",
        )
    shown.caption = "* rates by the vars of dbt_project.yml" if raters else "no rating yet"
    shown.caption_justify = "left"
    return shown
