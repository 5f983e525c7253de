"""Rating trajectories: raters, the committee of several, the ledger of what they said.

`rate` is what the dbt model `ratings` calls; everything else here serves it. `RATERS` says what
the var `rater` may name: another rater is one more entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from udfs.errors import ConfigError
from udfs.llm import Budget, Journal
from udfs.rater import rules
from udfs.rater.committee import Committee, Settings, rate_in_portions
from udfs.rater.ledger import Identity, Rater, Unrated, rate_unrated, record_batch

# Rules are quick and cost nothing: large batches, so few commits.
_RULES_READ_ROWS = 2_000
_RULES_COMMIT_ROWS = 20_000


def rate(
    trajectories: duckdb.DuckDBPyRelation,
    verifications: duckdb.DuckDBPyRelation | None = None,
    **settings: Any,
) -> pa.RecordBatchReader:
    """Rate every trajectory that has no settled rating by the chosen rater or committee.

    Args:
        trajectories: the `trajectories` table.
        verifications: the `verifications` table; needed where `skip_refuted` is set.
        settings: the fields of `udfs.rater.committee.Settings`.

    Returns:
        Rows of the `ratings` ledger, as they come.

    Raises:
        ConfigError: a setting that cannot be used.
        RatingError, EndpointError: the rater cannot go on; while the rows are read.
    """
    given = Settings.of(settings)
    budget = Budget(given.max_usd)
    committee = Committee(given, lambda each: _rater(each, budget))
    if given.skip_refuted and verifications is not None:
        refuted = verifications.filter("not format_ok").select("trajectory_id")
        trajectories = trajectories.join(refuted, "trajectory_id", how="anti")
    if committee.alone:
        return rate_unrated(trajectories, committee.alone, given.max_trajectories)
    return rate_in_portions(trajectories, committee, budget)


def configured_raters(settings: str) -> str:
    """Whose ratings count under given settings, for the view `raters`.

    Args:
        settings: JSON object with the fields of `udfs.rater.committee.Settings`.

    Returns:
        JSON list of objects, as `udfs.rater.committee.Committee.rows` gives them.

    Raises:
        ConfigError: a setting that cannot be used.
    """
    given = Settings.of(orjson.loads(settings))
    return json.dumps(Committee(given, lambda each: _rater(each, Budget(None))).rows())


def _rater(settings: Settings, budget: Budget) -> Rater:
    make = RATERS.get(settings.rater)
    if make is None:
        raise ConfigError(
            f"rater '{settings.rater}' is not known. Set the var `rater` to {' or '.join(RATERS)}."
        )
    return make(settings, budget)


class RulesRater:
    """The rules, as a rater of the ledger. Its `rate_model` says plainly what it is."""

    def __init__(self) -> None:
        self.identity = Identity(
            rater="rules",
            rate_model="rules",
            rate_parameters="{}",
            prompt_version=rules.RULES_VERSION,
            decided_by=rules.RULES_VERSION,
        )

    def rate(self, unrated: Unrated, journal: Journal) -> Iterator[pa.RecordBatch]:
        """Rate by rules. Nothing is journaled: what is lost costs nothing to make again."""
        rows: list[dict[str, Any]] = []
        for batch in unrated.batches(_RULES_READ_ROWS):
            rated = rules.rate_batch(batch)
            columns = (*batch.select(["content_sha256", "attempt"]), *rated)
            for sha256, attempt, score, why in zip(*(c.to_pylist() for c in columns), strict=True):
                row = self.identity.row(sha256, attempt)
                rows.append(row | {"status": "ok", "rater_score": score, "explanation": why})
            if len(rows) >= _RULES_COMMIT_ROWS:
                yield record_batch(rows)
                rows = []
        if rows:
            yield record_batch(rows)


def _rules(settings: Settings, budget: Budget) -> Rater:
    return RulesRater()


def _openai(settings: Settings, budget: Budget) -> Rater:
    # Imported here: the offline default does without a client.
    from udfs.llm import Endpoint
    from udfs.rater.judge import Judge
    from udfs.rater.openai_rater import OpenAIRater
    from udfs.rater.prompt import DEFAULT_TEMPLATE

    endpoint = Endpoint(
        model=settings.model,
        parameters=settings.parameters,
        prices=settings.prices,
        concurrency=settings.concurrency,
        requests_per_minute=settings.requests_per_minute,
        tokens_per_minute=settings.tokens_per_minute,
        transport=settings.transport,
        max_usd=settings.max_usd,
        base_url=settings.base_url,
        key_variable=settings.key_variable,
    )
    judge = Judge(
        settings.template or DEFAULT_TEMPLATE,
        context_tokens=settings.context_tokens,
        long=settings.long,
        reply_tokens=endpoint.max_reply_tokens,
    )
    return OpenAIRater(endpoint, judge, budget)


def _local(settings: Settings, budget: Budget) -> Rater:
    from udfs.rater.local_rater import LocalRater

    if not settings.model:
        raise ConfigError(
            "rater 'local' needs a trained rater. Set the var rater_model to the folder that "
            "`python -m train.rater` wrote."
        )
    return LocalRater(Path(settings.model))


# What the var `rater`, or a member of a committee, may name.
RATERS: Mapping[str, Callable[[Settings, Budget], Rater]] = {
    "rules": _rules,
    "openai": _openai,
    "local": _local,
}
