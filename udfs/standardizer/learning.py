"""Asking for mappings: round by round, one shape of each source at a time.

A round asks about the most frequent shape of every source that has one to be settled. A mapping
that fails a check is asked for again with the check shown, three times at most. One that is
accepted is tried on the other shapes of its source before anything more is asked, since shapes of
one format often differ in fields that some records lack. So a source of one format costs one
question, whatever its size.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.mapped import mapping_id
from udfs.llm import Asker, Budget, Endpoint, Journal, Reply, Unanswered, run
from udfs.standardizer.checks import Sample, check
from udfs.standardizer.ledger import (
    MAPPINGS,
    MAPPINGS_SCHEMA,
    Standardizer,
    replied_text,
    stored,
    unanswered,
    until_it_ends,
)
from udfs.standardizer.prompt import (
    MAPPING_TEMPLATE,
    MAPPING_VERSION,
    Message,
    mapping_question,
    read_reply,
    with_failed_check,
)
from udfs.standardizer.shape import shape_of

# Records that a mapping is tried on, and how long they may be together; one in any case.
_SAMPLED = 40
_SAMPLED_BYTES = 16_000_000
# How often a shape is asked about, and about how many shapes of a source in one build. On how
# many an accepted mapping is tried; those with most records come first.
_ATTEMPTS = 3
_ASKED_OF_A_SOURCE = 8
_SHAPES_OF_A_SOURCE = 50

_logger = logging.getLogger("trajlake.standardizer")


@dataclass
class _Shape:
    """A shape of a source that has no accepted mapping, with what is known of it."""

    source: str
    shape_sha256: str
    records: int
    raws: list[tuple[bytes, str | None]] = field(default_factory=list)
    tried: list[Mapping[str, Any]] = field(default_factory=list)  # ledger rows, in order
    is_asked: bool = False  # in this build
    is_given_up: bool = False  # likewise

    @property
    def samples(self) -> list[Sample]:
        return [Sample(from_json(raw), key) for raw, key in self.raws]

    @property
    def about(self) -> tuple[str, str]:
        return self.source, self.shape_sha256

    @property
    def attempt(self) -> int:
        """The number of the next question."""
        return max((row["attempt"] for row in self.tried), default=0) + 1

    @property
    def unfit(self) -> list[Mapping[str, Any]]:
        return [row for row in self.tried if row["status"] == "unfit"]

    @property
    def is_open(self) -> bool:
        is_settled = any(row["status"] in ("accepted", "rejected") for row in self.tried)
        return not is_settled and not self.is_given_up

    def messages(self) -> list[Message]:
        """The conversation so far, and the next question."""
        shape = shape_of([sample.record for sample in self.samples])[0]
        found = mapping_question(shape, self.samples)
        for row in self.unfit:
            found = with_failed_check(
                found, replied_text(row), row["failed_check"], row["detail"] or ""
            )
        return found


def learn(
    record_shapes: duckdb.DuckDBPyRelation,
    raw_records: duckdb.DuckDBPyRelation,
    endpoint: Endpoint,
) -> pa.RecordBatchReader:
    """See `udfs.standardizer.learn_mappings`."""
    standardizer = Standardizer.of(endpoint, MAPPING_VERSION, MAPPING_TEMPLATE)
    journal = Journal(MAPPINGS, MAPPINGS_SCHEMA, "question_id")

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        learning = _Learning(record_shapes, raw_records, standardizer, recovered)
        for rows in until_it_ends(learning.rows(endpoint, journal)):
            yield pa.RecordBatch.from_pylist(rows, schema=MAPPINGS_SCHEMA)

    return journal.stream(make)


class _Learning:
    """What is to be asked about, and what was learnt."""

    def __init__(
        self,
        record_shapes: duckdb.DuckDBPyRelation,
        raw_records: duckdb.DuckDBPyRelation,
        standardizer: Standardizer,
        recovered: pa.Table,
    ) -> None:
        self._standardizer = standardizer
        self._accepted: dict[str, dict[str, Any]] = defaultdict(dict)  # source → id → mapping
        open_shapes = self._open_shapes(record_shapes, recovered)
        self._shapes: dict[str, list[_Shape]] = {}
        self._beyond: dict[str, int] = {}
        for source, shapes in itertools.groupby(open_shapes, key=lambda shape: shape.source):
            found = list(shapes)
            self._shapes[source] = found[:_SHAPES_OF_A_SOURCE]
            self._beyond[source] = len(found[_SHAPES_OF_A_SOURCE:])
        self._sample(raw_records, record_shapes)

    def rows(self, endpoint: Endpoint, journal: Journal) -> Iterator[list[dict[str, Any]]]:
        """Ask until every shape is settled or given up, and hand on ledger rows."""
        budget = Budget(endpoint.max_usd)
        said = False
        reused = self._reused()
        if reused:
            yield self._kept(reused, journal)
        while not budget.is_over and (asked := self._next()):
            questions = [json.dumps(shape.messages()) for shape in asked]
            announcement = endpoint.announcement(
                "standardizer",
                len(asked),
                "shapes of unknown records to begin with, a mapping each",
                sum(map(len, questions)),
            )
            batches = run(
                endpoint,
                iter(asked),
                self._answer,
                total=len(asked),
                journal=journal,
                what="standardizing",
                announcement=iter(()) if said else announcement,
                budget=budget,
            )
            said = True
            before = [len(shape.tried) for shape in asked]
            for shape in asked:
                shape.is_asked = True
            yield from batches
            for shape, count in zip(asked, before, strict=True):
                # One that was not asked, as the money is spent, waits for the next build too.
                is_new = len(shape.tried) > count
                shape.is_given_up = not is_new or shape.tried[-1]["status"] == "failed"
            reused = self._reused()
            if reused:
                yield self._kept(reused, journal)

        for source, shapes in self._shapes.items():
            left = sum(shape.is_open for shape in shapes) + self._beyond[source]
            if left and not budget.is_over:
                _logger.warning(
                    "Source %s has %d more shapes of unknown records than the %d that one build "
                    "asks about; the next build asks on.",
                    source,
                    left,
                    _ASKED_OF_A_SOURCE,
                )

    def _next(self) -> list[_Shape]:
        """One open shape of every source that has not been asked about too many."""
        found = []
        for shapes in self._shapes.values():
            may_begin = sum(shape.is_asked for shape in shapes) < _ASKED_OF_A_SOURCE
            open_shapes = (each for each in shapes if each.is_open and (each.is_asked or may_begin))
            found += list(itertools.islice(open_shapes, 1))
        return found

    async def _answer(self, asker: Asker, shape: _Shape) -> dict[str, Any]:
        """Ask about a shape; the row that comes of it."""
        try:
            reply = await asker.ask(shape.messages())
        except Unanswered as error:
            reply, values = error.reply, unanswered(error)
        else:
            values = self._tried(shape, reply)
        row = self._row(shape, shape.attempt, reply, **values)
        shape.tried.append(row)
        return row

    def _tried(self, shape: _Shape, reply: Reply) -> dict[str, Any]:
        """What comes of trying the mapping in a reply on the shape's records."""
        values: dict[str, Any]
        try:
            mapping = read_reply(reply.text)
        except RefusedRecord as refused:
            values = {"failed_check": refused.reason, "detail": refused.detail}
        else:
            verdict = check(mapping, shape.samples)
            values = {
                "mapping_id": mapping_id(mapping),
                "mapping": to_json(mapping),
                "failed_check": verdict.failed_check,
                "detail": verdict.detail,
                "sampled_records": verdict.sampled,
                "covered_records": verdict.covered,
            }
            if verdict.failed_check is None:
                self._accepted[shape.source][values["mapping_id"]] = mapping
                return values | {"status": "accepted"}
        is_last = len(shape.unfit) + 1 >= _ATTEMPTS
        return values | {"status": "rejected" if is_last else "unfit"}

    def _reused(self) -> list[dict[str, Any]]:
        """Rows of shapes that a mapping of another shape of their source fits."""
        rows = []
        for source, shapes in self._shapes.items():
            for shape, (name, mapping) in itertools.product(shapes, self._accepted[source].items()):
                if not shape.is_open:
                    continue
                verdict = check(mapping, shape.samples, is_reused=True)
                if verdict.failed_check is None:
                    row = self._row(
                        shape,
                        shape.attempt,
                        Reply(),
                        status="accepted",
                        detail="taken over from another shape of the source",
                        mapping_id=name,
                        mapping=to_json(mapping),
                        sampled_records=verdict.sampled,
                        covered_records=verdict.covered,
                    )
                    shape.tried.append(row)
                    rows.append(row)
        return rows

    def _kept(self, rows: list[dict[str, Any]], journal: Journal) -> list[dict[str, Any]]:
        for row in rows:
            journal.append(row)
        return rows

    def _row(self, shape: _Shape, attempt: int, reply: Reply, **values: Any) -> dict[str, Any]:
        return self._standardizer.row(MAPPINGS_SCHEMA, shape.about, attempt, reply, **values)

    def _open_shapes(
        self, record_shapes: duckdb.DuckDBPyRelation, recovered: pa.Table
    ) -> list[_Shape]:
        """Shapes with neither an accepted mapping nor a rejection by this standardizer, by
        source, the most frequent first."""
        ledger = f"""
            select * from {stored(MAPPINGS, MAPPINGS_SCHEMA)}
            union all by name
            select * from recovered
        """
        rows = (
            record_shapes.query(
                "given",
                f"""
                select distinct on (question_id) * from ({ledger})
                where status = 'accepted'
                    or standardizer_id = '{self._standardizer.standardizer_id}'
                order by question_id
                """,
            )
            .to_arrow_table()
            .to_pylist()
        )
        tried: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for row in sorted(rows, key=lambda row: int(row["attempt"])):
            tried[row["source"], row["shape_sha256"]].append(row)
            if row["status"] == "accepted":
                self._accepted[row["source"]][row["mapping_id"]] = json.loads(row["mapping"])
        counts = record_shapes.query(
            "given",
            """
            select source, shape_sha256, count(*) from given
            where shape_sha256 is not null
            group by all
            order by source, count(*) desc, shape_sha256
            """,
        ).fetchall()
        found = [
            _Shape(source, sha256, records, tried=tried[source, sha256])
            for source, sha256, records in counts
        ]
        return [shape for shape in found if shape.is_open]

    def _sample(
        self, raw_records: duckdb.DuckDBPyRelation, record_shapes: duckdb.DuckDBPyRelation
    ) -> None:
        """Read some records of every shape, in turn from all files that have it."""
        by_key = {shape.about: shape for shapes in self._shapes.values() for shape in shapes}
        wanted = pa.table(
            {
                "source": pa.array([source for source, _ in by_key], pa.string()),
                "shape_sha256": pa.array([sha256 for _, sha256 in by_key], pa.string()),
            }
        )
        if not wanted.num_rows:
            return
        picked = record_shapes.query(
            "given",
            f"""
            with placed as (
                select
                    *,
                    row_number() over (
                        partition by source, shape_sha256, raw_file order by raw_sha256
                    ) as place,
                from given
                semi join wanted using (source, shape_sha256)
            )

            select raw_record_id, source, shape_sha256
            from placed
            window in_turn as (
                partition by source, shape_sha256
                order by place, raw_sha256, raw_record_id
                rows unbounded preceding
            )
            qualify
                row_number() over in_turn = 1
                or (
                    row_number() over in_turn <= {_SAMPLED}
                    and sum(raw_bytes) over in_turn <= {_SAMPLED_BYTES}
                )
            """,
        ).to_arrow_table()
        found = raw_records.query(
            "given",
            """
            select picked.source, picked.shape_sha256, given.raw, given.raw_key
            from given
            inner join picked using (raw_record_id)
            order by given.raw_record_id
            """,
        ).fetchall()
        assert picked.num_rows == len(found)
        for source, sha256, raw, raw_key in found:
            by_key[source, sha256].raws.append((bytes(raw), raw_key))
