"""The two ledgers of the standardizer: what models were asked and what came of it.

Both only grow and are never rebuilt: their rows were paid for.

`format_mappings` has a row for every mapping that was asked for, or taken over from another shape
of the same source:

| status     | settled | means                                                                 |
|------------|---------|-----------------------------------------------------------------------|
| `accepted` | yes     | it passed every check; all records of the shape are read by it        |
| `unfit`    | no      | it failed a check, which the next question shows                      |
| `rejected` | yes     | the last attempt failed a check, or the model declined                |
| `failed`   | no      | no reply came; the next build asks again                              |

`standardized_records` has a row for every record that was asked about: `accepted`, `rejected`
(settled) and `failed`.

What is accepted counts whoever was asked; a rejection counts for that model, prompt and
parameters (`standardizer_id`), so another model may try.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa

from udfs import lake
from udfs.errors import EndpointError
from udfs.llm import Endpoint, Failed, Reply, TooLong, Unanswered

_logger = logging.getLogger("trajlake.standardizer")

MAPPINGS, RECORDS = "format_mappings", "standardized_records"

_ASKED = [
    ("standardizer_id", pa.string()),
    ("model", pa.string()),
    ("parameters", pa.string()),
    ("prompt_version", pa.string()),
    ("attempt", pa.int32()),
    ("status", pa.string()),
    ("failed_check", pa.string()),
    ("detail", pa.string()),
]
_ANSWERED = [
    ("raw_response", pa.string()),
    ("prompt_tokens", pa.int64()),
    ("completion_tokens", pa.int64()),
    ("cost_usd", pa.float64()),
    ("latency_ms", pa.int64()),
    ("created_at", pa.timestamp("us", tz="UTC")),
]

MAPPINGS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("source", pa.string()),
        ("shape_sha256", pa.string()),
        *_ASKED,
        ("mapping_id", pa.string()),
        ("mapping", pa.string()),
        ("sampled_records", pa.int64()),
        ("covered_records", pa.int64()),
        *_ANSWERED,
    ]
)

RECORDS_SCHEMA = pa.schema(
    [
        ("question_id", pa.string()),
        ("source", pa.string()),
        ("raw_sha256", pa.string()),
        *_ASKED,
        ("answer", pa.string()),
        *_ANSWERED,
    ]
)


class Standardizer(NamedTuple):
    """Who is asked: a model with a prompt and parameters."""

    model: str
    parameters: str  # JSON object, keys in order
    prompt_version: str
    standardizer_id: str

    @classmethod
    def of(cls, endpoint: Endpoint, prompt_version: str, template: str) -> Standardizer:
        """The one behind an endpoint."""
        parameters = json.dumps(dict(endpoint.parameters), sort_keys=True)
        decided_by = json.dumps([template, prompt_version, endpoint.model, parameters])
        standardizer_id = hashlib.sha256(decided_by.encode()).hexdigest()
        return cls(endpoint.model, parameters, prompt_version, standardizer_id)

    def row(
        self, schema: pa.Schema, about: tuple[str, str], attempt: int, reply: Reply, **values: Any
    ) -> dict[str, Any]:
        """A ledger row about a source and its shape or record; columns not given are null."""
        key = "\n".join([*about, self.standardizer_id, str(attempt)])
        source, subject = about
        return {
            **dict.fromkeys(schema.names),
            **self._asdict(),
            "question_id": hashlib.sha256(key.encode()).hexdigest(),
            "source": source,
            schema.names[2]: subject,
            "attempt": attempt,
            "raw_response": reply.raw,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "cost_usd": reply.cost_usd,
            "latency_ms": reply.latency_ms,
            "created_at": datetime.now(UTC),
            **values,
        }


def unanswered(error: Unanswered) -> dict[str, Any]:
    """The columns of a row whose question has no usable answer."""
    if isinstance(error, Failed):
        return {"status": "failed", "detail": str(error)}
    check = "too_long" if isinstance(error, TooLong) else "declined"
    return {"status": "rejected", "failed_check": check, "detail": str(error)}


def replied_text(row: Mapping[str, Any]) -> str:
    """The text of the reply that a row keeps."""
    try:
        return str(json.loads(row["raw_response"])["choices"][0]["message"]["content"] or "")
    except (TypeError, ValueError, LookupError):
        return ""


def until_it_ends(batches: Iterator[list[dict[str, Any]]]) -> Iterator[list[dict[str, Any]]]:
    """Rows as they come; where the model cannot be asked further, a warning and no error.

    What is asked here is upstream of all trajectories: records of known formats do not wait for a
    model that is down. Those that were to be asked about stay in quarantine.
    """
    try:
        yield from batches
    except EndpointError as error:
        _logger.warning("The standardizer stops asking. %s", error)


def stored(table: str, schema: pa.Schema) -> str:
    """A ledger as it is now, as SQL to select from."""
    if lake.open_table(table) is None:
        nothing = ", ".join(f"null as {name}" for name in schema.names)
        return f"(select {nothing} limit 0)"
    return lake.table_scan(table)


def state() -> str:
    """A short text that changes whenever a ledger does; empty while both are."""
    tables = [lake.open_table(name) for name in (MAPPINGS, RECORDS)]
    if not any(table is not None and table.count() for table in tables):
        return ""
    # Not the newest version: putting small files together is no change.
    return ",".join(str(lake.rows_version(name) or "") for name in (MAPPINGS, RECORDS))
