"""The functions that SQL models call, by the name they have in SQL.

Logic is elsewhere, as pure functions over Arrow arrays or plain values; here is only which of
them a DuckDB connection gets, and with which types. A Spark session registers the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import duckdb
import pyarrow as pa
from duckdb.func import ARROW, NATIVE, SPECIAL
from duckdb.sqltypes import DuckDBPyType

from udfs import lake, settings, sources
from udfs.benchmarks import overlap
from udfs.curation import near_duplicates, personal_data, step_rules
from udfs.curation.interleaving import interleave
from udfs.formats.arrow import merge_parts, parse_records, parser_versions, part_groups
from udfs.pinning import pin_tables
from udfs.rater import configured_raters, verification
from udfs.recipes import checked_filter
from udfs.schema import PARSED_RECORD, PART_GROUP, STEP, TRAJECTORY
from udfs.standardizer.ledger import state
from udfs.standardizer.shape import record_shapes
from udfs.workers import Workers


@dataclass(frozen=True)
class Function:
    """One function in SQL: Arrow arrays in and out, or (`is_scalar`) plain values.

    `is_slow`: it costs time per row, so that workers are worth their pipes.
    """

    name: str
    python: Callable[..., Any]
    parameters: tuple[pa.DataType, ...]
    returns: pa.DataType
    is_scalar: bool = False
    is_slow: bool = False


FUNCTIONS = (
    Function(
        "parse_record",
        parse_records,
        (pa.binary(), pa.string(), pa.string(), pa.string()),
        PARSED_RECORD,
        is_slow=True,
    ),
    Function(
        "part_group",
        part_groups,
        (pa.binary(), pa.string(), pa.string(), pa.string()),
        PART_GROUP,
        is_slow=True,
    ),
    Function("merge_parts", merge_parts, (pa.list_(TRAJECTORY),), TRAJECTORY, is_slow=True),
    Function("parser_versions", parser_versions, (), pa.string(), is_scalar=True),
    Function(
        "verify",
        verification.verify_trajectories,
        (pa.string(), pa.list_(STEP)),
        verification.VERIFICATION,
        is_slow=True,
    ),
    Function(
        "flag_steps",
        step_rules.flag_steps,
        (
            pa.list_(STEP),
            pa.list_(verification.FAILURE),
            pa.list_(verification.OBSERVED_ERROR),
            pa.float64(),
        ),
        step_rules.STEP_FLAGS,
        is_slow=True,
    ),
    Function("step_rules_version", step_rules.step_rules_version, (), pa.string(), is_scalar=True),
    Function(
        "find_personal_data",
        personal_data.find_personal_data,
        (pa.string(), pa.string(), pa.string(), pa.string(), pa.list_(STEP)),
        personal_data.PERSONAL_DATA,
    ),
    Function("redact", personal_data.redact, (pa.string(),), pa.string()),
    Function(
        "personal_data_version",
        personal_data.personal_data_version,
        (),
        pa.string(),
        is_scalar=True,
    ),
    Function("configured_raters", configured_raters, (pa.string(),), pa.string(), is_scalar=True),
    Function("verifier_version", verification.verifier_version, (), pa.string(), is_scalar=True),
    Function(
        "content_signature",
        near_duplicates.content_signatures,
        (pa.string(), pa.list_(STEP), pa.float64()),
        near_duplicates.CONTENT_SIGNATURE,
    ),
    Function(
        "signature_similarity",
        near_duplicates.signature_similarity,
        (pa.binary(), pa.binary()),
        pa.float64(),
    ),
    Function(
        "signature_version",
        near_duplicates.signature_version,
        (pa.float64(),),
        pa.string(),
        is_scalar=True,
    ),
    Function(
        "connected_components",
        near_duplicates.connected_components,
        (pa.list_(near_duplicates.EDGE),),
        pa.list_(near_duplicates.COMPONENT),
    ),
    Function("record_shape", record_shapes, (pa.binary(),), pa.string(), is_slow=True),
    Function("standardizer_state", state, (), pa.string(), is_scalar=True),
    Function(
        "parser_settings",
        sources.parser_settings,
        (pa.string(), pa.string()),
        sources.PARSER_SETTINGS,
    ),
    Function("source_settings", sources.source_settings, (pa.string(),), sources.SETTINGS),
    Function("source_versions", sources.source_versions, (), pa.string(), is_scalar=True),
    Function("interleave", interleave, (pa.list_(pa.int64()),), pa.list_(pa.int32())),
    Function("checked_filter", checked_filter, (pa.string(),) * 3, pa.string(), is_scalar=True),
    Function("table_scan", lake.table_scan, (pa.string(),), pa.string(), is_scalar=True),
    Function("table_is_pinned", lake.is_pinned, (pa.string(),), pa.bool_(), is_scalar=True),
    Function("pin_tables", pin_tables, (pa.string(),) * 2, pa.string(), is_scalar=True),
    Function(
        "find_overlap",
        overlap.find_overlap,
        (pa.string(), pa.string(), pa.string(), pa.list_(STEP)),
        pa.list_(overlap.MATCH),
    ),
    Function(
        "overlap_settings", overlap.overlap_settings, (pa.string(),), pa.string(), is_scalar=True
    ),
    Function("inputs_state", lake.inputs_state, (pa.string(),), pa.string(), is_scalar=True),
    Function("table_rebuild_key", lake.rebuild_key, (pa.string(),), pa.string(), is_scalar=True),
)


def register_functions(connection: duckdb.DuckDBPyConnection) -> None:
    """Give a connection every function of this page. Nulls reach the functions as they are.

    Raises:
        ConfigError: the number of workers cannot be used.
    """
    workers = Workers(settings.worker_count())
    for function in FUNCTIONS:
        connection.create_function(
            function.name,
            function.python if function.is_scalar else _over_arrays(function, workers),
            [_sql_type(connection, t) for t in function.parameters],
            _sql_type(connection, function.returns),
            type=NATIVE if function.is_scalar else ARROW,
            null_handling=SPECIAL,
        )


def _over_arrays(function: Function, workers: Workers) -> Callable[..., pa.Array]:
    """DuckDB passes chunked arrays, of one chunk each; our functions are over arrays."""

    @wraps(function.python)  # DuckDB counts the parameters
    def over_arrays(*columns: pa.ChunkedArray) -> pa.Array:
        arrays = [column.combine_chunks() for column in columns]
        if function.is_slow:
            return workers.run(function.python, arrays)
        return function.python(*arrays)

    return over_arrays


def _sql_type(connection: duckdb.DuckDBPyConnection, arrow: pa.DataType) -> DuckDBPyType:
    return connection.from_arrow(pa.schema([("c", arrow)]).empty_table()).types[0]
