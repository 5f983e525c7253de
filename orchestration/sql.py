"""A question to the lake in SQL, from the command line.

One query, which reads. It runs on a read-only copy of the views (`udfs.views`), and only
statements that give rows are run at all: neither the lake nor a file beside it can be written. What
a query may read is what DuckDB can: also files of your own, as in `read_csv('labels.csv')`.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console
from rich.table import Table

from orchestration.printing import AsJson, plain, print_json_rows, text
from udfs.errors import LakeError
from udfs.views import open_lake

_SHOWN_ROWS = 40
_FETCHED_ROWS = 1_000

# EXPLAIN, with what may stand between it and the statement that it explains.
_EXPLAIN = re.compile(r"\s*explain\b(?:\s+analyze\b)?(?:\s*\([^)]*\))?", re.IGNORECASE)


def sql_command(
    query: Annotated[
        str, typer.Argument(help="One SQL query over the models' views; `-` reads it from stdin.")
    ],
    rows: Annotated[
        int | None,
        typer.Option(help="At most so many rows; a table has 40, if nothing is said.", min=1),
    ] = None,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else.")] = False,
) -> None:
    """Run a query over the lake, read-only, and print its rows. A build may be running."""
    if as_json and as_csv:
        raise typer.BadParameter("--json and --csv are two formats. Give one of them.")
    if query == "-":
        query = sys.stdin.read()
    with open_lake() as connection:
        try:
            _check_reads(connection, query)
            result = connection.execute(query)
            columns = [column[0] for column in result.description]
            if as_json:
                _check_names(columns)
                print_json_rows(dict(zip(columns, row, strict=True)) for row in _rows(result, rows))
            elif as_csv:
                writer = csv.writer(sys.stdout, lineterminator="\n")
                writer.writerow(columns)
                writer.writerows(map(_csv_cell, row) for row in _rows(result, rows))
            else:
                _print_table(columns, result.fetchmany((rows or _SHOWN_ROWS) + 1), rows)
        except duckdb.Error as error:
            raise LakeError(f"DuckDB refuses the query: {error}") from error


def _rows(result: duckdb.DuckDBPyConnection, most: int | None) -> Iterator[tuple[Any, ...]]:
    """Rows as they come, at most so many."""
    left = sys.maxsize if most is None else most
    while left and (found := result.fetchmany(min(left, _FETCHED_ROWS))):
        yield from found
        left -= len(found)


def _check_reads(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Refuse what is not one statement that gives rows and changes nothing.

    Raises:
        LakeError: it is something else.
        duckdb.Error: it does not parse.
    """
    statements = connection.extract_statements(query)
    if not statements:
        raise LakeError("There is no query. Write one, such as `select * from trajectories`.")
    types = [statement.type for statement in statements]
    select = duckdb.StatementType.SELECT
    # PIVOT is a SELECT behind the making of a temporary type; these have no text of their own.
    if types[-1] == select and all(not each.query for each in statements[:-1]):
        return
    if len(statements) > 1:
        raise LakeError(f"These are {len(statements)} statements. Give one query at a time.")
    if types[0] == duckdb.StatementType.EXPLAIN:
        _check_reads(connection, _EXPLAIN.sub("", query, count=1))
    elif types[0] != select:
        raise LakeError(
            f"`trajlake sql` only reads, and this is {types[0].name}. It runs SELECT, WITH, FROM, "
            "PIVOT, DESCRIBE, SHOW, SUMMARIZE and EXPLAIN. To write results into a file, use "
            "--csv or --json."
        )


def _check_names(columns: list[str]) -> None:
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise LakeError(
            f"Two columns are called {', '.join(twice)}, and a JSON object has a key once. Name "
            "one of them anew with `as`."
        )


def _csv_cell(value: object) -> object:
    nested = plain(value)
    if isinstance(nested, dict | list):
        return json.dumps(nested, ensure_ascii=False, allow_nan=False)
    return nested


def _print_table(columns: list[str], found: list[tuple[Any, ...]], asked: int | None) -> None:
    shown = asked or _SHOWN_ROWS
    table = Table()
    for column in columns:
        table.add_column(text(column))
    for row in found[:shown]:
        table.add_row(*map(text, row))
    console = Console()
    console.print(table)
    if len(found) > shown:
        console.print(f"more rows are there; this shows {shown} (--rows)")
