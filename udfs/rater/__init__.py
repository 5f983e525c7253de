"""Rating trajectories: raters, the committee of several, the ledger of what they said.

`rate` is what the dbt model `ratings` calls; everything else here serves it. `RATERS` says what
the var `rater` may name: another rater is one more entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from udfs.errors import ConfigError
from udfs.llm import Budget, Estimate, Journal
from udfs.rater import rules
from udfs.rater.committee import Committee, Settings, chosen, disputed, rate_in_portions
from udfs.rater.ledger import (
    SCHEMA,
    TABLE,
    Asking,
    Identity,
    Rater,
    Unrated,
    rate_unrated,
    record_batch,
    unsettled,
)

# Rules are quick and cost nothing: large batches, so few commits.
_RULES_READ_ROWS = 2_000
_RULES_COMMIT_ROWS = 20_000

# What says of a rating whether it settles anything, and what is in dispute.
_SETTLING = (
    "rating_id",
    "content_sha256",
    "rater_id",
    "rater_score",
    "status",
    "attempt",
    "rated_at",
    "long_rule",
)


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
    trajectories = _allowed(trajectories, verifications, given)
    if committee.alone:
        return rate_unrated(trajectories, committee.alone, given.max_trajectories)
    return rate_in_portions(trajectories, committee, budget)


@dataclass(frozen=True)
class Pending:
    """What one rater has still to do, and what the next run of `rate` would do of it.

    `estimate` is of the questions that are new; null for raters that ask nobody. The tie-breaker
    is asked about what is in dispute by then: here it is what is in dispute now.
    """

    identity: Identity
    is_tie_breaker: bool
    unrated: int  # contents that it has not settled
    taken_up: int  # of these, within rater_max_trajectories
    waiting: int  # of these, submitted to a batch that is not collected yet
    estimate: Estimate | None


def pending(
    trajectories: duckdb.DuckDBPyRelation,
    verifications: duckdb.DuckDBPyRelation | None = None,
    **settings: Any,
) -> list[Pending]:
    """What `rate` would do with the same arguments, rater by rater. Nobody is asked.

    Ratings that wait in the journal of an interrupted or running build count as made.

    Raises:
        ConfigError: a setting that cannot be used.
        EndpointError: something else wrote into the journal.
    """
    given = Settings.of(settings)
    committee = Committee(given, lambda each: _rater(each, Budget(None)))
    trajectories = _allowed(trajectories, verifications, given)
    recovered = Journal(TABLE, SCHEMA, "rating_id").glance(_SETTLING)
    taken_up, _ = chosen(trajectories, committee, recovered)
    found = []
    for rater in committee.raters:
        is_tie_breaker = rater is committee.tie_breaker

        def due(
            among: duckdb.DuckDBPyRelation, rater: Rater = rater, is_last: bool = is_tie_breaker
        ) -> Unrated:
            if is_last:
                among = disputed(among, committee, recovered)
            return Unrated(among, unsettled(among, rater.identity, recovered))

        unrated = len(due(trajectories))
        some = due(taken_up)
        estimate, waiting = rater.estimate(some) if isinstance(rater, Asking) else (None, 0)
        found.append(Pending(rater.identity, is_tie_breaker, unrated, len(some), waiting, estimate))
    return found


def _allowed(
    trajectories: duckdb.DuckDBPyRelation,
    verifications: duckdb.DuckDBPyRelation | None,
    settings: Settings,
) -> duckdb.DuckDBPyRelation:
    """The trajectories that a rater may be asked about."""
    if not settings.skip_refuted or verifications is None:
        return trajectories
    refuted = verifications.filter("not format_ok").select("trajectory_id")
    return trajectories.join(refuted, "trajectory_id", how="anti")


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
