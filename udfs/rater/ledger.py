"""The `ratings` ledger: its columns, what is still to be rated, and the rating of it.

A rating belongs to a content and a rater (`content_sha256` × `rater_id`). The ledger only grows;
a status other than `failed` settles its key:

| status         | settled | means                                                             |
|----------------|---------|-------------------------------------------------------------------|
| `ok`           | yes     | a score was given                                                 |
| `unparseable`  | yes     | a reply came whose first line is no score                         |
| `out_of_range` | yes     | a reply came whose score is outside 0 to 5                        |
| `refused`      | yes     | the judge gave no text                                            |
| `too_long`     | yes     | the trajectory does not fit the judge's context                   |
| `failed`       | no      | no reply came (time-out, server error); the next build asks again |

The settled ones were answered: the same question at the same parameters was paid for, and is not
asked twice. Another model, template or parameter is another rater and asks again. Another context
or rule for long trajectories is the same rater, which asks again only about those that were too
long or shortened (`long_rule`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, runtime_checkable

import duckdb
import pyarrow as pa

from udfs import lake
from udfs.llm import Estimate, Journal
from udfs.llm.progress import say

TABLE = "ratings"

STEP_SCORE = pa.struct(
    [("step_id", pa.int32()), ("score", pa.float64()), ("critique", pa.string())]
)

SCHEMA = pa.schema(
    [
        ("rating_id", pa.string()),
        ("content_sha256", pa.string()),
        ("rater_id", pa.string()),
        ("rater", pa.string()),
        ("rate_model", pa.string()),
        ("rate_parameters", pa.string()),
        ("prompt_version", pa.string()),
        ("rater_score", pa.float64()),
        ("explanation", pa.string()),
        ("status", pa.string()),
        ("raw_response", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("latency_ms", pa.int64()),
        ("attempt", pa.int32()),
        ("judge", pa.string()),
        ("rated_at", pa.timestamp("us", tz="UTC")),
        ("requests", pa.int32()),
        ("earlier_responses", pa.list_(pa.string())),
        ("shown_share", pa.float64()),
        ("long_rule", pa.string()),
        ("step_scores", pa.list_(STEP_SCORE)),
        ("first_error_step", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Identity:
    """Who rates."""

    rater: str
    rate_model: str
    rate_parameters: str  # JSON object, keys in order
    prompt_version: str
    decided_by: str  # everything that can change a score, as one text
    judge: str | None = None  # its name within a committee
    long_rule: str = ""  # what it does with a trajectory that is too long; decides no other score

    @property
    def rater_id(self) -> str:
        """The hash that stands for this rater in the ledger's key."""
        return hashlib.sha256(self.decided_by.encode()).hexdigest()

    def rating_id(self, content_sha256: str, attempt: int) -> str:
        """A rating's own key: the same rating written twice has the same, and is stored once."""
        key = f"{content_sha256}\n{self.rater_id}\n{attempt}"
        return hashlib.sha256(key.encode()).hexdigest()

    def row(self, content_sha256: str, attempt: int, **values: Any) -> dict[str, Any]:
        """A ledger row; columns that are not given are null."""
        return {
            **dict.fromkeys(SCHEMA.names),
            "rating_id": self.rating_id(content_sha256, attempt),
            "content_sha256": content_sha256,
            "rater_id": self.rater_id,
            "rater": self.rater,
            "rate_model": self.rate_model,
            "rate_parameters": self.rate_parameters,
            "prompt_version": self.prompt_version,
            "attempt": attempt,
            "judge": self.judge,
            "rated_at": datetime.now(UTC),
            **values,
        }


class Rater(Protocol):
    """What rates trajectories: the rules, a judge behind an endpoint, a model trained here."""

    identity: Identity

    def rate(self, unrated: Unrated, journal: Journal) -> Iterator[pa.RecordBatch]:
        """Rate everything in `unrated`, in ledger rows (`SCHEMA`), as they come."""
        ...


@runtime_checkable
class Asking(Protocol):
    """A rater that asks someone who may want money for it."""

    def estimate(self, unrated: Unrated) -> tuple[Estimate, int]:
        """What the new questions will take, and how many are with a batch already."""
        ...


class Unrated:
    """The trajectories that a rater has still to rate, one for each content."""

    def __init__(self, trajectories: duckdb.DuckDBPyRelation, wanted: pa.Table) -> None:
        self._trajectories = trajectories
        self._wanted = wanted

    def __len__(self) -> int:
        return int(self._wanted.num_rows)

    def attempts(self) -> Iterator[tuple[str, int]]:
        """The content and the attempt of each."""
        columns = self._wanted.select(["content_sha256", "attempt"])
        for batch in columns.to_batches():
            yield from zip(*(column.to_pylist() for column in batch), strict=True)

    def characters(self) -> int:
        """The characters that a judge would be shown, all trajectories together."""
        (total,) = self._query(
            """
            select sum(
                coalesce(length(system_prompt), 0)
                + coalesce(list_sum(list_transform(
                    steps,
                    lambda s: coalesce(length(s.input), 0)
                        + coalesce(length(s.output), 0)
                        + coalesce(length(s.next_observation), 0)
                )), 0)
            )
            from given
            inner join wanted using (trajectory_id)
            """
        ).fetchone() or (0,)
        return int(total or 0)

    def batches(self, rows: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most `rows` rows: content_sha256, attempt, user_query, system_prompt,
        steps, score."""
        return iter(
            self._query(
                """
                select
                    wanted.content_sha256,
                    wanted.attempt,
                    given.user_query,
                    given.system_prompt,
                    given.steps,
                    wanted.score,
                from given
                inner join wanted using (trajectory_id)
                """
            ).to_arrow_reader(rows)
        )

    def _query(self, sql: str) -> duckdb.DuckDBPyRelation:
        wanted = self._wanted  # noqa: F841  DuckDB finds the table by this name
        return self._trajectories.query("given", sql)


def rate_unrated(
    trajectories: duckdb.DuckDBPyRelation, rater: Rater, max_trajectories: int | None = None
) -> pa.RecordBatchReader:
    """Rate what the ledger has no settled rating for.

    First come the ratings that an earlier, interrupted build left in the journal; then those
    that the rater makes, as it makes them. Nothing is read or asked before the first batch is.

    Args:
        trajectories: the `trajectories` table, on a connection with the Delta extension.
        rater: who rates.
        max_trajectories: rate at most so many in this run; the rest stays unrated. Contents
            tried less often come first, then those with the smaller hash: a fair sample.

    Returns:
        Ledger rows (`SCHEMA`), each one new to the table.

    Raises:
        EndpointError: while batches are read, where the rater cannot go on.
    """
    journal = Journal(TABLE, SCHEMA, "rating_id")

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        due = unsettled(trajectories, rater.identity, recovered)
        wanted = due if max_trajectories is None else due.slice(0, max_trajectories)
        if wanted.num_rows:
            yield from rater.rate(Unrated(trajectories, wanted), journal)
        say_left(due.num_rows - wanted.num_rows)

    return journal.stream(make)


def say_left(trajectories: int) -> None:
    """Say how many are left for later builds because of `rater_max_trajectories`, if any."""
    if trajectories:
        say(
            f"rating: {trajectories:,} trajectories stay unrated because of "
            "rater_max_trajectories. Raise it, or build again to go on."
        )


def record_batch(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Ledger rows in Arrow."""
    return pa.RecordBatch.from_pylist(list(rows), schema=SCHEMA)


def ledger_sql() -> str:
    """The ledger as it is now, as SQL to select from."""
    if lake.open_table(TABLE) is None:
        nothing = ", ".join(f"null as {name}" for name in SCHEMA.names)
        return f"(select {nothing} limit 0)"
    return lake.table_scan(TABLE)


def unsettled(
    trajectories: duckdb.DuckDBPyRelation, identity: Identity, recovered: pa.Table
) -> pa.Table:
    """What is still to be rated: content_sha256, trajectory_id, score, attempt.

    In the order of `attempt`, then of the hash. Ratings just recovered count, whether or not they
    are committed by now. Where trajectories of one content disagree on the environment's score,
    the lowest counts. What was too long, or shortened, is settled only under the rule that it was
    so by (`long_rule`).
    """
    # A ledger from before these columns were there has none of them, but recovered rows do.
    rule = lake.sql_text(identity.long_rule)
    return trajectories.query(
        "given",
        f"""
        with tried as (
            select
                content_sha256,
                max(attempt) as attempts,
                bool_or(
                    status = 'too_long' and coalesce(long_rule, 'too_long:endpoint') = {rule}
                    or status not in ('too_long', 'failed') and coalesce(long_rule, {rule}) = {rule}
                ) as is_settled,
            from (
                from {ledger_sql()}
                union all by name
                from recovered
            )
            where rater_id = '{identity.rater_id}'
            group by content_sha256
        )

        select
            content_sha256,
            min(trajectory_id) as trajectory_id,
            min(score) as score,
            coalesce(max(attempts), 0) + 1 as attempt,
        from given
        left join tried using (content_sha256)
        where is_settled is not true
        group by content_sha256
        order by attempt, content_sha256
        """,
    ).to_arrow_table()
