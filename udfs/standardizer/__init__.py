"""The LLM standardizer (¶34, ¶81, claim 4): records of a format that nobody wrote a parser for.

`learn_mappings` asks once for each shape of such records where things are in it, tries the answer
on a sample, and keeps it. `read_records` asks about single records what their turns are, and
keeps what stands in the record to the letter. The dbt models `format_mappings` and
`standardized_records` call them; what is accepted is applied by the formats `mapped` and
`model_read` like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import duckdb
import pyarrow as pa

from udfs.errors import ConfigError
from udfs.llm import Endpoint
from udfs.standardizer.ledger import MAPPINGS_SCHEMA, RECORDS_SCHEMA

MODES = ("mapping", "record", "both")


def learn_mappings(
    record_shapes: duckdb.DuckDBPyRelation,
    raw_records: duckdb.DuckDBPyRelation,
    *,
    mode: str,
    **settings: Any,
) -> pa.RecordBatchReader:
    """Ask for a mapping for every shape of unknown records that has none.

    Args:
        record_shapes: the table of that name.
        raw_records: likewise.
        mode: `mapping` or `both`; with `record` nothing is asked here.
        settings: those of `_endpoint`.

    Returns:
        Rows of the ledger `format_mappings`, as they come; none where no model is named.

    Raises:
        ConfigError: a setting that cannot be used.
        EndpointError: while rows are read, where the model cannot be asked further.
    """
    endpoint = _endpoint(mode, settings)
    if endpoint is None or mode == "record":
        return MAPPINGS_SCHEMA.empty_table().to_reader()
    from udfs.standardizer.learning import learn

    return learn(record_shapes, raw_records, endpoint)


def read_records(
    record_shapes: duckdb.DuckDBPyRelation,
    raw_records: duckdb.DuckDBPyRelation,
    format_mappings: duckdb.DuckDBPyRelation,
    *,
    mode: str,
    max_records: int | None = None,
    **settings: Any,
) -> pa.RecordBatchReader:
    """Ask about every unknown record that no accepted mapping reads what its turns are.

    Args:
        record_shapes: the table of that name.
        raw_records: likewise.
        format_mappings: likewise.
        mode: `record`, or `both`, where only records whose mapping was rejected are asked about;
            with `mapping` nothing is asked here.
        max_records: ask about at most so many in this run.
        settings: those of `_endpoint`.

    Returns:
        Rows of the ledger `standardized_records`, as they come; none where no model is named.

    Raises:
        ConfigError: a setting that cannot be used.
        EndpointError: while rows are read, where the model cannot be asked further.
    """
    endpoint = _endpoint(mode, settings)
    if max_records is not None and max_records < 0:
        raise ConfigError(
            f"standardizer_max_records is {max_records}. Set 0 or more, or null for no limit."
        )
    if endpoint is None or mode == "mapping":
        return RECORDS_SCHEMA.empty_table().to_reader()
    from udfs.standardizer.reading import read

    return read(record_shapes, raw_records, format_mappings, endpoint, mode == "both", max_records)


def _endpoint(mode: str, settings: Mapping[str, Any]) -> Endpoint | None:
    """Who is asked: `model`, `parameters`, `prices` and the limits of `udfs.llm.Endpoint`.

    None where no model is named: then nothing is asked.
    """
    if mode not in MODES:
        raise ConfigError(f"standardizer_mode '{mode}' is not one of {', '.join(MODES)}.")
    if not settings["model"]:
        return None
    return Endpoint(prefix="standardizer", count_variable="standardizer_max_records", **settings)
