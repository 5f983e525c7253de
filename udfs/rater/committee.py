"""The committee: who rates, and the asking of all of them.

One rater alone is a committee of one. Every member, and every sample of a member, is a rater of
its own with its own ratings in the ledger (`ratings.judge` names it), so none is paid for twice
and a rating made alone counts in a committee too. What their votes come to is SQL
(`rated_trajectories`): a changed aggregate asks nobody again.

The members rate a portion of the trajectories after each other, so that a budget that runs out
leaves most trajectories with all votes or none. The tie-breaker is asked about those of a portion
whose scores lie too far apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from udfs import lake
from udfs.errors import ConfigError
from udfs.llm import Budget, Journal
from udfs.rater.ledger import SCHEMA, TABLE, Rater, Unrated, ledger_sql, say_left, unsettled

AGGREGATES = ("mean", "median", "majority")

# Trajectories that all members rate before the next are taken up.
_PORTION_ROWS = 2_000


@dataclass(frozen=True)
class Settings:
    """The vars `rater` and `rater_…` of dbt_project.yml, under their names without `rater_`.

    A member of the committee may set anew what stands before `committee`.
    """

    rater: str = "rules"
    model: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    context_tokens: int | None = None
    long: str = "too_long"
    concurrency: int = 16
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    transport: str = "online"
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    committee: Sequence[Mapping[str, Any]] = ()
    tie_breaker: Mapping[str, Any] | None = None
    aggregate: str = "mean"
    min_votes: int | None = None
    skip_refuted: bool = False
    prices: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    max_usd: float | None = None
    max_trajectories: int | None = None

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Settings:
        """Check settings.

        Raises:
            ConfigError: one that does not exist or cannot be used.
        """
        names = [f.name for f in fields(cls)]
        if unknown := sorted(given.keys() - set(names)):
            raise ConfigError(
                f"The rater has no setting {', '.join(unknown)}. There are {', '.join(names)}."
            )
        # A var that is null counts as not set.
        settings = cls(**{name: value for name, value in given.items() if value is not None})
        if settings.max_trajectories is not None and settings.max_trajectories < 0:
            raise ConfigError(
                f"rater_max_trajectories is {settings.max_trajectories}. Set 0 or more, or null."
            )
        if settings.aggregate not in AGGREGATES:
            raise ConfigError(
                f"rater_aggregate is '{settings.aggregate}'. Set it to {', '.join(AGGREGATES)}."
            )
        return settings


class Seat(NamedTuple):
    """One vote: a rater's settings, what it is called, and which of its samples it is."""

    settings: Settings
    judge: str | None  # null where one rater rates alone
    sample: int = 1
    is_tie_breaker: bool = False

    def take(self, rater: Rater) -> Rater:
        """The rater in this seat. Its first sample is the rater itself, as it would rate alone."""
        identity = replace(rater.identity, judge=self.judge)
        if self.sample > 1:
            decided_by = json.dumps([identity.decided_by, "sample", self.sample])
            identity = replace(identity, decided_by=decided_by)
        rater.identity = identity
        return rater


def seats(settings: Settings) -> list[Seat]:
    """Everyone who may have a vote, the tie-breaker last.

    Raises:
        ConfigError: a member or tie-breaker that cannot be used.
    """
    if not settings.committee:
        if settings.tie_breaker:
            raise ConfigError(
                "rater_tie_breaker is set, and rater_committee is empty: one judge does not "
                "disagree. Name the judges in rater_committee."
            )
        return [Seat(settings, None)]
    found: list[Seat] = []
    for member in settings.committee:
        samples = member.get("samples", 1)
        seat = _seat(settings, member, "rater_committee", {"judge", "samples"})
        if not isinstance(samples, int) or samples < 1:
            raise ConfigError(f"rater_committee: samples of '{seat.judge}' is {samples!r}. Set 1+.")
        if samples > 1 and seat.settings.parameters.get("temperature") == 0:
            raise ConfigError(
                f"rater_committee: '{seat.judge}' is to give {samples} samples at temperature 0, "
                "which are one answer paid for again. Give it parameters with a temperature."
            )
        found += [
            seat._replace(sample=n, judge=f"{seat.judge} #{n}" if samples > 1 else seat.judge)
            for n in range(1, samples + 1)
        ]
    votes = len(found)
    if settings.min_votes is not None and not 1 <= settings.min_votes <= votes:
        raise ConfigError(f"rater_min_votes is {settings.min_votes}; there are {votes} votes.")
    if settings.tie_breaker:
        if not isinstance(settings.tie_breaker.get("when_spread_over"), int | float) or votes < 2:
            raise ConfigError(
                "rater_tie_breaker needs when_spread_over, a number of points from 0 to 5, and a "
                "committee of two votes or more."
            )
        allowed = {"judge", "when_spread_over"}
        seat = _seat(settings, settings.tie_breaker, "rater_tie_breaker", allowed)
        found.append(seat._replace(is_tie_breaker=True))
    names = [seat.judge for seat in found]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"rater_committee: {', '.join(twice)} is there twice. Give each a name with `judge`, "
            "or one of them `samples`."
        )
    return found


def _seat(settings: Settings, member: Mapping[str, Any], var: str, further: set[str]) -> Seat:
    own = [f.name for f in fields(Settings)]
    own = own[: own.index("committee")]
    if unknown := sorted(member.keys() - {*own, *further}):
        raise ConfigError(
            f"{var}: {', '.join(unknown)} cannot be set for a member. It may have "
            f"{', '.join([*own, *sorted(further)])}."
        )
    # Members are judges unless they say otherwise, whatever rates alone.
    given = {name: member[name] for name in own if member.get(name) is not None}
    changed = {"rater": "openai", **given}
    of_member = replace(settings, committee=(), tie_breaker=None, **changed)
    name = member.get("judge") or of_member.model or of_member.rater
    return Seat(of_member, str(name))


class Committee:
    """Everyone who may vote, in their seats. Nobody is asked yet, and no key is needed.

    Args:
        settings: the vars.
        make: a rater by its settings.

    Raises:
        ConfigError: a setting that cannot be used.
    """

    def __init__(self, settings: Settings, make: Callable[[Settings], Rater]) -> None:
        raters = [(seat, seat.take(make(seat.settings))) for seat in seats(settings)]
        ids = [rater.identity.rater_id for _, rater in raters]
        if len(set(ids)) < len(ids):
            judges = [str(seat.judge) for seat, r in raters if ids.count(r.identity.rater_id) > 1]
            raise ConfigError(
                f"rater_committee: {', '.join(judges)} are one rater: the same model, parameters "
                "and template. Change one of them, or give one `samples`."
            )
        self.settings = settings
        self.members = [rater for seat, rater in raters if not seat.is_tie_breaker]
        self.tie_breaker = next((rater for seat, rater in raters if seat.is_tie_breaker), None)

    @property
    def alone(self) -> Rater | None:
        """The one rater, where there is only one."""
        return self.members[0] if len(self.members) == 1 and not self.tie_breaker else None

    @property
    def raters(self) -> list[Rater]:
        """Everyone who may vote, the tie-breaker last."""
        return [*self.members, *([self.tie_breaker] if self.tie_breaker else [])]

    @property
    def limit(self) -> float | None:
        """How far scores may lie apart before the tie-breaker is asked."""
        tie_breaker = self.settings.tie_breaker
        return tie_breaker["when_spread_over"] if tie_breaker else None

    def rows(self) -> list[dict[str, Any]]:
        """Who may vote, as rows of the view `raters`; `committee_id` stands for all of them."""
        raters = self.raters
        first = raters[0].identity
        committee_id, name = first.rater_id, first.rate_model
        if not self.alone:
            rules = [self.settings.aggregate, self.settings.min_votes, self.limit]
            text = json.dumps([*rules, *(rater.identity.rater_id for rater in raters)])
            committee_id = hashlib.sha256(text.encode()).hexdigest()
            judges = ", ".join(str(rater.identity.judge) for rater in raters)
            name = f"{self.settings.aggregate} of {judges}"
        return [
            {
                "rater_id": rater.identity.rater_id,
                "rater": rater.identity.rater,
                "rate_model": rater.identity.rate_model,
                "judge": rater.identity.judge,
                "is_tie_breaker": rater is self.tie_breaker,
                "committee_id": committee_id,
                "committee_name": name,
            }
            for rater in raters
        ]


def rate_in_portions(
    trajectories: duckdb.DuckDBPyRelation, committee: Committee, budget: Budget
) -> pa.RecordBatchReader:
    """Let several raters rate what they have not settled, then the tie-breaker what is disputed.

    Args:
        trajectories: the `trajectories` table, on a connection with the Delta extension.
        committee: who votes.
        budget: what all of them may spend together.

    Returns:
        Ledger rows (`SCHEMA`), as they come.
    """
    journal = Journal(TABLE, SCHEMA, "rating_id")

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        for portion in _portions(trajectories, committee, recovered):
            known = [recovered]
            with lake.in_memory() as connection:  # the other one is busy reading portions
                given = connection.from_arrow(portion)
                for rater in committee.members:
                    yield from _rated(rater, given, known, journal, budget)
                if committee.tie_breaker:
                    in_dispute = disputed(given, committee, pa.concat_tables(known))
                    yield from _rated(committee.tie_breaker, in_dispute, known, journal, budget)

    return journal.stream(make)


def _rated(
    rater: Rater,
    given: duckdb.DuckDBPyRelation,
    known: list[pa.Table],
    journal: Journal,
    budget: Budget,
) -> Iterator[pa.RecordBatch]:
    """What a rater says about trajectories that it has not settled; adds it to what is known."""
    wanted = unsettled(given, rater.identity, pa.concat_tables(known))
    if wanted.num_rows and not budget.is_over:
        for batch in rater.rate(Unrated(given, wanted), journal):
            known.append(pa.Table.from_batches([batch]))
            yield batch


def _portions(
    trajectories: duckdb.DuckDBPyRelation, committee: Committee, recovered: pa.Table
) -> Iterator[pa.Table]:
    """The trajectories about which anyone has still to be asked, one for each content."""
    rows, left = chosen(trajectories, committee, recovered)
    for batch in rows.to_arrow_reader(_PORTION_ROWS):
        yield pa.Table.from_batches([batch])
    say_left(left)


def chosen(
    trajectories: duckdb.DuckDBPyRelation, committee: Committee, recovered: pa.Table
) -> tuple[duckdb.DuckDBPyRelation, int]:
    """The trajectories that a run takes up, one for each content; and how many it leaves because
    of `rater_max_trajectories`."""
    due = [unsettled(trajectories, rater.identity, recovered) for rater in committee.members]
    if committee.tie_breaker:
        in_dispute = disputed(trajectories, committee, recovered)
        due.append(unsettled(in_dispute, committee.tie_breaker.identity, recovered))
    wanted = pa.concat_tables(due)  # DuckDB finds the table by this name
    most = committee.settings.max_trajectories
    # Neither `given` nor `all_given`: these are names that others give what comes of it.
    rows = trajectories.query(
        "everything_given",
        f"""
        with chosen as (
            select
                trajectory_id,
                any_value(score) as score,
            from wanted
            group by trajectory_id
            order by min(attempt), min(content_sha256)
            limit {"all" if most is None else most}
        )

        select everything_given.* replace (chosen.score as score)
        from everything_given
        inner join chosen using (trajectory_id)
        """,
    )
    count = pc.count_distinct(wanted["trajectory_id"]).as_py()
    return rows, 0 if most is None else max(0, count - most)


def disputed(
    trajectories: duckdb.DuckDBPyRelation, committee: Committee, recovered: pa.Table
) -> duckdb.DuckDBPyRelation:
    """The trajectories on which the members' scores lie further apart than the limit.

    Of each member the latest score counts, as in the model `committee_ratings`.
    """
    ids = ", ".join(f"'{rater.identity.rater_id}'" for rater in committee.members)
    # `given` is the name that others give what comes of it.
    contents = trajectories.query(  # noqa: F841  DuckDB finds it by this name
        "all_given",
        f"""
        with known as (
            from {ledger_sql()}
            union all by name
            from recovered
        ),

        votes as (
            select
                content_sha256,
                rater_score as vote,
            from known
            where rater_id in ({ids}) and status = 'ok'
            qualify row_number() over (
                partition by content_sha256, rater_id
                order by rated_at desc, attempt desc, rating_id asc
            ) = 1
        )

        select content_sha256
        from votes
        group by content_sha256
        having round(max(vote) - min(vote), 6) > {committee.limit}
        """,
    ).to_arrow_table()
    return trajectories.query(
        "all_given", "select all_given.* from all_given semi join contents using (content_sha256)"
    )
