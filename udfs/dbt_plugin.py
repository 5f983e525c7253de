"""The dbt-duckdb plugin: our functions in SQL, and the `delta` materialization's writes.

Named in `profiles.yml`; dbt-duckdb calls the hooks of `Plugin`. What a model's configuration may
say is documented in `udfs.lake`.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa
from dbt.adapters.duckdb.credentials import DuckDBCredentials
from dbt.adapters.duckdb.plugins import BasePlugin
from dbt.adapters.duckdb.utils import TargetConfig
from dbt.adapters.events.logging import AdapterLogger
from dbt_common.exceptions import DbtDatabaseError, DbtRuntimeError

from udfs import lake
from udfs.errors import LakeError, TrajlakeError
from udfs.functions import register_functions
from udfs.locks import lock_holder

# Rows in flight between DuckDB and the Delta writer: DuckDB's own vector size, so that rows of
# megabytes do not pile up.
_BATCH_ROWS = 2_048

_logger = AdapterLogger("trajlake")


class Plugin(BasePlugin):
    """Hooks that dbt-duckdb calls on the one connection of a run."""

    def update_connection_config(
        self, creds: DuckDBCredentials, config: Mapping[str, object]
    ) -> None:
        """Make the folder of the database file, which DuckDB does not, and see that it is free.

        Raises:
            DbtDatabaseError: the file cannot be opened. (An error of dbt's own is printed as one
                line, any other as a traceback.)
        """
        database = Path(creds.path)
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            holder = lock_holder(database) if database.exists() else None
        except OSError as error:
            raise DbtDatabaseError(
                f"TRAJLAKE_DB is {database}, which cannot be opened ({error.strerror}). Set it to "
                "a file in a folder that you may write."
            ) from error
        if holder:
            raise DbtDatabaseError(
                f"{database} is open in another process ({holder}): another build, or a program "
                "that reads it. Start again when that is closed. `trajlake sql` holds nothing."
            )

    def configure_connection(self, conn: duckdb.DuckDBPyConnection) -> None:
        """Load the Delta extension, register every function that models call, and have a table of
        the tests that passed (dbt_project/macros/tests.sql)."""
        self._connection = conn
        lake.load_delta_extension(conn)
        register_functions(conn)
        conn.execute("create schema if not exists builds")
        conn.execute(
            "create table if not exists builds.passed_tests (test varchar primary key, key varchar)"
        )

    def store(self, target_config: TargetConfig) -> None:
        """Run an SQL model's compiled SQL and write what it returns.

        `target_config.config` is what the `delta` materialization gives: `options` for the
        write, the compiled `sql`, `inputs` (upstream Delta tables by name, seeds with their
        checksums), `vars` that the views among them depend on, `full_refresh`. A model whose SQL
        and inputs are those of the newest commit is left as it is.
        """
        config = target_config.config
        name = str(target_config.relation.identifier)
        options = lake.WriteOptions.from_config(name, config["options"])
        inputs = _input_versions(config["inputs"])
        fingerprint = hashlib.sha256((config["sql"] + inputs).encode()).hexdigest()
        rebuild_key = _rebuild_key(config["sql"])
        made_by = config["vars"]
        last = lake.commit_metadata(name)
        if last.get(lake.FINGERPRINT) == fingerprint and not config["full_refresh"]:
            _logger.debug(f"{name}: SQL and inputs are those of the newest version, left as it is")
            return
        metadata = {lake.FINGERPRINT: fingerprint, lake.INPUTS: inputs}
        if rebuild_key:
            metadata[lake.REBUILD_KEY] = rebuild_key
        if made_by:
            metadata[lake.VARS] = json.dumps(made_by, sort_keys=True)
        rebuild = bool(config["full_refresh"]) or last.get(lake.REBUILD_KEY) != rebuild_key
        with self._connection.cursor() as cursor, _rows_of(cursor, config["sql"]) as rows:
            try:
                lake.write(
                    name, rows, options, rebuild=rebuild, metadata=metadata, report=_logger.info
                )
            except TrajlakeError as error:
                # One of dbt's own is printed as one line or two, any other with its traceback.
                raise DbtRuntimeError(str(error)) from None


@contextmanager
def _rows_of(cursor: duckdb.DuckDBPyConnection, sql: str) -> Iterator[pa.RecordBatchReader]:
    """A query's rows as a stream.

    DuckDB 1.5 can wait forever for the reader of a stream that it has not handed over yet: one
    branch of a `union` has filled the buffer, another one waits for that to end (duckdb/duckdb,
    issue 22215). So a query with a union goes through a temporary file, which never is full.
    """
    (_, plan) = cursor.execute(f"explain {sql}").fetchall()[0]
    if "UNION" not in plan:
        yield cursor.execute(sql).to_arrow_reader(_BATCH_ROWS)
        return
    with tempfile.TemporaryDirectory(prefix="trajlake-") as folder:
        file = lake.sql_text(f"{folder}/rows.parquet")
        cursor.execute(f"copy ({sql}) to {file} (format parquet, row_group_size 8192)")
        yield cursor.execute(f"from read_parquet({file})").to_arrow_reader(_BATCH_ROWS)


def store_python_model(
    result: pa.RecordBatchReader | pa.Table | None, name: str, config: str
) -> None:
    """Write what a Python model returned; the `delta` materialization calls it.

    Args:
        result: rows, as a stream or a table; None adds nothing.
        name: the table.
        config: JSON of `options` and of `columns`, the declared name → SQL type.

    Raises:
        LakeError: the columns are not those that the model's YAML declares.
    """
    given = json.loads(config)
    options = lake.WriteOptions.from_config(name, given["options"])
    if result is None:
        if lake.open_table(name) is None:
            raise LakeError(
                f"Model '{name}' returned nothing and has no table yet. Return an empty reader "
                "with the model's schema instead of None."
            )
        return
    reader = result.to_reader() if isinstance(result, pa.Table) else result
    _check_contract(name, reader.schema, given["columns"])
    try:
        lake.write(name, reader, options, report=_logger.info)
    except TrajlakeError as error:
        # dbt prints the whole traceback, and an error of ours says all there is to know.
        raise error.with_traceback(None) from None


def _check_contract(name: str, schema: pa.Schema, declared: Mapping[str, str]) -> None:
    """Compare an Arrow schema with the columns declared in YAML (dbt itself checks SQL models)."""
    with lake.in_memory() as connection:
        empty = connection.from_arrow(schema.empty_table())
        given = dict(zip(empty.columns, (str(t) for t in empty.types), strict=True))
        wanted = {
            column: str(connection.sql(f"select null::{sql_type} as c").types[0])
            for column, sql_type in declared.items()
        }
    pairs = {
        column: (wanted.get(column, "nothing"), given.get(column, "nothing"))
        for column in [*wanted, *given]
    }
    wrong = [
        f"{column}: declared {want}, returned {got}"
        for column, (want, got) in pairs.items()
        if want != got
    ]
    if wrong:
        raise LakeError(
            f"Model '{name}' breaks its contract: {'; '.join(wrong)}. "
            "Change the model or the columns in the YAML beside it."
        )


def _input_versions(inputs: Mapping[str, str | None]) -> str:
    """The versions of all that an SQL model reads, as JSON: Delta tables by the number of the last
    that changed rows, views and seeds by their checksum."""
    versions: dict[str, int | str | None] = {}
    for name, checksum in inputs.items():
        versions[name] = lake.rows_version(name) if checksum is None else checksum
    return json.dumps(versions, sort_keys=True)


def _rebuild_key(sql: str) -> str | None:
    """The key that the macro `rebuild_on` left in a model's SQL, if it was called."""
    found = re.search(r"trajlake:rebuild_key=(\w+)", sql)
    return found.group(1) if found else None
