"""Asking about single records: what their turns are, to the letter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import duckdb
import pyarrow as pa

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.model_read import checked
from udfs.llm import Asker, Endpoint, Journal, Unanswered, run
from udfs.standardizer.ledger import (
    RECORDS,
    RECORDS_SCHEMA,
    Standardizer,
    stored,
    unanswered,
    until_it_ends,
)
from udfs.standardizer.prompt import RECORD_TEMPLATE, RECORD_VERSION, read_reply, record_question

_READ_ROWS = 16


class _Question(NamedTuple):
    """A record to ask about."""

    source: str
    raw_sha256: str
    attempt: int
    raw: bytes


def read(
    record_shapes: duckdb.DuckDBPyRelation,
    raw_records: duckdb.DuckDBPyRelation,
    format_mappings: duckdb.DuckDBPyRelation,
    endpoint: Endpoint,
    only_rejected: bool,
    max_records: int | None,
) -> pa.RecordBatchReader:
    """See `udfs.standardizer.read_records`; `only_rejected` asks only where a mapping was."""
    standardizer = Standardizer.of(endpoint, RECORD_VERSION, RECORD_TEMPLATE)
    journal = Journal(RECORDS, RECORDS_SCHEMA, "question_id")

    async def answer(asker: Asker, question: _Question) -> dict[str, Any]:
        values: dict[str, Any] = {}
        record = from_json(question.raw)  # it was read before: it has a shape
        try:
            reply = await asker.ask(record_question(record))
            told = read_reply(reply.text)
            values["answer"] = to_json(told)
            checked(record, told)
        except Unanswered as error:
            reply, values = error.reply, unanswered(error)
        except RefusedRecord as refused:
            values |= {"status": "rejected", "failed_check": refused.reason}
            values["detail"] = refused.detail
        else:
            values["status"] = "accepted"
        about = question.source, question.raw_sha256
        return standardizer.row(RECORDS_SCHEMA, about, question.attempt, reply, **values)

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        wanted = _wanted(
            record_shapes, format_mappings, standardizer, recovered, only_rejected, max_records
        )
        if not wanted.num_rows:
            return
        characters = sum(wanted["raw_bytes"].to_pylist()) + len(RECORD_TEMPLATE) * wanted.num_rows
        batches = run(
            endpoint,
            _questions(raw_records, wanted),
            answer,
            total=wanted.num_rows,
            journal=journal,
            what="standardizing",
            announcement=endpoint.announcement(
                "standardizer", wanted.num_rows, "records, one by one", characters
            ),
        )
        for rows in until_it_ends(batches):
            yield pa.RecordBatch.from_pylist(rows, schema=RECORDS_SCHEMA)

    return journal.stream(make)


def _wanted(
    record_shapes: duckdb.DuckDBPyRelation,
    format_mappings: duckdb.DuckDBPyRelation,
    standardizer: Standardizer,
    recovered: pa.Table,
    only_rejected: bool,
    max_records: int | None,
) -> pa.Table:
    """The records to ask about, each content once: raw_record_id, source, raw_sha256, attempt,
    raw_bytes."""
    shapes = format_mappings.query(  # noqa: F841  DuckDB finds the table by this name
        "given", "select distinct source, shape_sha256, status from given"
    ).to_arrow_table()
    which = "semi" if only_rejected else "anti"
    status = "rejected" if only_rejected else "accepted"
    return record_shapes.query(
        "given",
        f"""
        with ledger as (
            select source, raw_sha256, standardizer_id, status, attempt
            from {stored(RECORDS, RECORDS_SCHEMA)}
            union all
            select source, raw_sha256, standardizer_id, status, attempt from recovered
        ),

        tried as (
            select
                source,
                raw_sha256,
                max(attempt)::integer as attempts,
                bool_or(status <> 'failed') as is_settled,
            from ledger
            where
                status = 'accepted'
                or standardizer_id = '{standardizer.standardizer_id}'
            group by all
        )

        select
            min(raw_record_id) as raw_record_id,
            source,
            raw_sha256,
            coalesce(any_value(attempts), 0) + 1 as attempt,
            any_value(raw_bytes) as raw_bytes,
        from given
        {which} join (select * from shapes where status = '{status}') using (source, shape_sha256)
        anti join (select * from shapes where status = 'accepted') using (source, shape_sha256)
        left join tried using (source, raw_sha256)
        where shape_sha256 is not null and is_settled is not true
        group by source, raw_sha256
        order by attempt, raw_sha256
        limit {"all" if max_records is None else max_records}
        """,
    ).to_arrow_table()


def _questions(raw_records: duckdb.DuckDBPyRelation, wanted: pa.Table) -> Iterator[_Question]:
    """The wanted records with their bytes."""
    rows = raw_records.query(
        "given",
        """
        select wanted.source, wanted.raw_sha256, wanted.attempt, given.raw
        from given
        inner join wanted using (raw_record_id)
        """,
    ).to_arrow_reader(_READ_ROWS)
    for batch in rows:
        for row in batch.to_pylist():
            yield _Question(**row)
