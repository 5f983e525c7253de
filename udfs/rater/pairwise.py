"""Comparing: which of two runs at one task is better, by a judge, in both orders.

Judges prefer what they see first, or last. So every pair is asked about twice, the second time
the other way round; a judge that does not say the same both times has said `tie`.

The `pairwise_ratings` ledger is kept like `ratings`: its key is the two contents and the rater, it
only grows, what is settled is not asked again, and what was paid for is in a journal first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from udfs import lake
from udfs.errors import ConfigError
from udfs.llm import Asker, Endpoint, Journal, run
from udfs.rater.judge import Judge

TABLE = "pairwise_ratings"
TEMPLATE = "pairwise-v1"

SCHEMA = pa.schema(
    [
        ("comparison_id", pa.string()),
        ("content_sha256_a", pa.string()),
        ("content_sha256_b", pa.string()),
        ("task_key", pa.string()),
        ("rater_id", pa.string()),
        ("rate_model", pa.string()),
        ("rate_parameters", pa.string()),
        ("prompt_version", pa.string()),
        ("preferred", pa.string()),
        ("preferred_a_first", pa.string()),
        ("preferred_b_first", pa.string()),
        ("explanation_a_first", pa.string()),
        ("explanation_b_first", pa.string()),
        ("status", pa.string()),
        ("raw_responses", pa.list_(pa.string())),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("cost_usd", pa.float64()),
        ("latency_ms", pa.int64()),
        ("requests", pa.int32()),
        ("shown_share", pa.float64()),
        ("long_rule", pa.string()),
        ("attempt", pa.int32()),
        ("compared_at", pa.timestamp("us", tz="UTC")),
    ]
)

# Pairs read from the lake at a time.
_READ_ROWS = 16

_SWAPPED = {"a": "b", "b": "a", "tie": "tie"}


def compare(
    trajectories: duckdb.DuckDBPyRelation,
    task_keys: duckdb.DuckDBPyRelation,
    *,
    max_pairs: int,
    context_tokens: int | None = None,
    long: str = "too_long",
    **endpoint: Any,
) -> pa.RecordBatchReader:
    """Compare runs at the same task that have not been compared yet.

    The runs of a task stand in a ring, in the order of their hashes, and each is compared with
    its neighbours: as many pairs as runs, and every run is reached.

    Args:
        trajectories: the `trajectories` table, on a connection with the Delta extension.
        task_keys: which trajectories are of one task, as `task_key`.
        max_pairs: compare at most so many in this run.
        context_tokens: as in `Judge`; both runs have to fit together.
        long: as in `Judge`.
        endpoint: the fields of `udfs.llm.Endpoint`.

    Returns:
        Rows of the ledger (`SCHEMA`), as they come.

    Raises:
        ConfigError: a setting that cannot be used.
        EndpointError: the judge cannot go on; while batches are read.
    """
    if max_pairs < 0:
        raise ConfigError(f"pairwise_max_pairs is {max_pairs}. Set 0 or more.")
    comparer = _Comparer(
        Endpoint(count_variable="pairwise_max_pairs", **endpoint), context_tokens, long
    )
    journal = Journal(TABLE, SCHEMA, "comparison_id")

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        # One connection reads trajectories while the pairs are chosen from the same ones.
        run_tasks = task_keys.select("trajectory_id, task_key").to_arrow_table()
        wanted = _wanted(trajectories, run_tasks, comparer, recovered, max_pairs)
        if wanted.num_rows:
            yield from comparer.compare_all(_pairs(trajectories, wanted), wanted.num_rows, journal)

    return journal.stream(make)


class _Comparer:
    """A judge at an endpoint, with the pairwise template."""

    def __init__(self, endpoint: Endpoint, context_tokens: int | None, long: str) -> None:
        self._endpoint = endpoint
        self._judge = Judge(
            TEMPLATE,
            context_tokens=context_tokens,
            long=long,
            reply_tokens=endpoint.max_reply_tokens,
            compares=True,
        )
        self._parameters = json.dumps(dict(endpoint.parameters), sort_keys=True)
        decided_by = [TABLE, self._judge.decided_by, endpoint.model, self._parameters]
        self.rater_id = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()
        self.long_rule = self._judge.long_rule

    def compare_all(
        self, pairs: Iterator[dict[str, Any]], count: int, journal: Journal
    ) -> Iterator[pa.RecordBatch]:
        for rows in run(
            self._endpoint,
            pairs,
            self._compare,
            total=count,
            journal=journal,
            what="comparing",
            announcement=[
                f"pairwise_ratings: {count:,} pairs for {self._endpoint.model} ({TEMPLATE}), each "
                f"in both orders, {self._endpoint.concurrency} at a time."
            ],
        ):
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)

    async def _compare(self, asker: Asker, pair: dict[str, Any]) -> dict[str, Any]:
        """Ask in both orders; where the first has no answer, the second is not paid for."""
        first = await self._judge.rate(asker, pair["a"], pair["b"])
        answers = [first]
        if first["status"] == "ok":
            answers.append(await self._judge.rate(asker, pair["b"], pair["a"]))
        last = answers[-1]
        a_first, b_first = first.get("preferred"), None
        if len(answers) == 2 and last["status"] == "ok":
            b_first = _SWAPPED[last["preferred"]]
        is_ok = a_first is not None and b_first is not None
        key = "\n".join(
            [
                pair["content_sha256_a"],
                pair["content_sha256_b"],
                self.rater_id,
                str(pair["attempt"]),
            ]
        )
        shares = [a["shown_share"] for a in answers if a["shown_share"] is not None]
        return {
            "comparison_id": hashlib.sha256(key.encode()).hexdigest(),
            "content_sha256_a": pair["content_sha256_a"],
            "content_sha256_b": pair["content_sha256_b"],
            "task_key": pair["task_key"],
            "rater_id": self.rater_id,
            "rate_model": self._endpoint.model,
            "rate_parameters": self._parameters,
            "prompt_version": TEMPLATE,
            "preferred": (a_first if a_first == b_first else "tie") if is_ok else None,
            "preferred_a_first": a_first,
            "preferred_b_first": b_first,
            "explanation_a_first": first["explanation"],
            "explanation_b_first": last["explanation"] if len(answers) == 2 else None,
            "status": last["status"],
            "raw_responses": [
                body
                for answer in answers
                for body in (*(answer["earlier_responses"] or []), answer["raw_response"])
                if body is not None
            ],
            **{name: _sum(answers, name) for name in _SUMS},
            "shown_share": min(shares, default=None),
            "long_rule": last["long_rule"] or first["long_rule"],
            "attempt": pair["attempt"],
            "compared_at": datetime.now(UTC),
        }


_SUMS = ("prompt_tokens", "completion_tokens", "cost_usd", "latency_ms", "requests")


def _sum(answers: list[dict[str, Any]], name: str) -> Any:
    """What both orders took together; null where a part is unknown."""
    values = [answer[name] for answer in answers if answer["requests"]]
    return None if not values or None in values else sum(values)


def _wanted(
    trajectories: duckdb.DuckDBPyRelation,
    run_tasks: pa.Table,
    comparer: _Comparer,
    recovered: pa.Table,
    max_pairs: int,
) -> pa.Table:
    """The pairs still to be compared: content_sha256_a < content_sha256_b, a run of each."""
    ledger = "(from recovered)"
    if lake.open_table(TABLE) is not None:
        table = lake.table_scan(TABLE)
        ledger = f"(from {table} union all by name from recovered)"
    rule = lake.sql_text(comparer.long_rule)
    return trajectories.query(
        "given",
        f"""
        with runs as (
            select
                task_key,
                content_sha256,
                min(trajectory_id) as trajectory_id,
            from given
            inner join run_tasks using (trajectory_id)
            group by all
        ),

        seated as (
            select
                *,
                row_number() over tasks as seat,
                lead(content_sha256) over tasks as next_sha256,
                lead(trajectory_id) over tasks as next_id,
                first(content_sha256) over tasks as first_sha256,
                first(trajectory_id) over tasks as first_id,
            from runs
            window tasks as (partition by task_key order by content_sha256)
        ),

        -- The last one's neighbour is the first, where there are more than two.
        pairs as (
            select
                task_key,
                case when next_id is null then first_sha256 else content_sha256 end
                    as content_sha256_a,
                case when next_id is null then content_sha256 else next_sha256 end
                    as content_sha256_b,
                case when next_id is null then first_id else trajectory_id end as id_a,
                case when next_id is null then trajectory_id else next_id end as id_b,
            from seated
            where next_id is not null or seat > 2
        ),

        tried as (
            select
                content_sha256_a,
                content_sha256_b,
                max(attempt) as attempts,
                bool_or(status <> 'failed' and coalesce(long_rule, {rule}) = {rule}) as is_settled,
            from {ledger}
            where rater_id = '{comparer.rater_id}'
            group by all
        )

        select
            pairs.*,
            coalesce(attempts, 0) + 1 as attempt,
        from pairs
        left join tried using (content_sha256_a, content_sha256_b)
        where is_settled is not true
        qualify row_number() over (
            partition by content_sha256_a, content_sha256_b order by task_key
        ) = 1
        order by attempt, md5(content_sha256_a || content_sha256_b)
        limit {max_pairs}
        """,
    ).to_arrow_table()


def _pairs(
    trajectories: duckdb.DuckDBPyRelation, wanted: pa.Table
) -> Iterator[dict[str, Mapping[str, Any]]]:
    rows = trajectories.query(
        "given",
        """
        select
            wanted.* exclude (id_a, id_b),
            {'system_prompt': a.system_prompt, 'steps': a.steps} as a,
            {'system_prompt': b.system_prompt, 'steps': b.steps} as b,
        from wanted
        inner join given as a on wanted.id_a = a.trajectory_id
        inner join given as b on wanted.id_b = b.trajectory_id
        """,
    )
    for batch in rows.to_arrow_reader(_READ_ROWS):
        yield from batch.to_pylist()
