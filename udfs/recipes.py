"""Filter expressions of recipes: what one may say, and the SQL that comes of it.

A recipe's filter is a boolean SQL expression over one row of `measured_trajectories`, such as
``rater_score >= 4.0 and len(steps) <= 40``. It ends up inside a model's SQL, so it is parsed, and
only what is listed here passes: the columns of `FILTER_COLUMNS` and the operators and functions
of `FILTER_FUNCTIONS`, which depend on their arguments alone. Everything else is refused by not
being listed: subqueries, file functions, aggregates, windows, lambdas, parameters, `now()`.
"""

from __future__ import annotations

import re
from typing import NoReturn

import duckdb
import pyarrow as pa
import sqlglot
from sqlglot import Token, TokenType, exp
from sqlglot.errors import ParseError, TokenError

from udfs.errors import ConfigError
from udfs.schema import STEP

FILTER_COLUMNS = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("raw_record_id", pa.string()),
        ("raw_record_ids", pa.list_(pa.string())),
        ("content_sha256", pa.string()),
        ("source", pa.string()),
        ("environment", pa.string()),
        ("task_type", pa.string()),
        ("task_id", pa.string()),
        ("user_query", pa.string()),
        ("system_prompt", pa.string()),
        ("tools", pa.string()),
        ("model_name", pa.string()),
        ("score", pa.float64()),  # the environment's, on its own scale
        ("steps", pa.list_(STEP)),  # for len(steps)
        ("other_information", pa.string()),  # JSON: other_information ->> '$.em'
        ("license", pa.string()),
        ("is_synthetic", pa.bool_()),
        ("generator", pa.string()),
        ("raw_file", pa.string()),
        ("raw_position", pa.int64()),
        ("raw_sha256", pa.string()),
        ("format", pa.string()),
        ("format_confidence", pa.float64()),
        ("parser_version", pa.string()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
        ("rater_id", pa.string()),
        ("rate_model", pa.string()),
        ("rater_score", pa.float64()),  # 0..5; a row without one is never kept
        ("success_probability", pa.float64()),  # 0..1; null where nothing is calibrated
        ("rating_status", pa.string()),
        ("rating_explanation", pa.string()),
        ("rated_at", pa.timestamp("us", tz="UTC")),
        ("rater_votes", pa.int64()),
        ("rater_spread", pa.float64()),  # null for a rater alone
        ("rater_stddev", pa.float64()),
        ("shown_share", pa.float64()),  # 1 where the rater read all of the trajectory
        ("calls", pa.int32()),
        ("calls_checked", pa.int32()),
        ("format_ok", pa.bool_()),  # null where no call could be checked
        ("first_failed_step", pa.int32()),
        ("error_observations", pa.int32()),
        ("error_classes", pa.list_(pa.string())),  # contains(error_classes, 'timeout')
        ("task_key", pa.string()),
        ("estimated_tokens", pa.int64()),
        ("step_count", pa.int32()),
        ("trainable_step_count", pa.int32()),
        ("flagged_step_count", pa.int32()),
        ("repeated_step_count", pa.int32()),
        ("self_correction_count", pa.int32()),
        ("first_error_step", pa.int32()),  # null where no step is an error
        ("has_loop", pa.bool_()),
        ("is_finished", pa.bool_()),
        ("flag_names", pa.list_(pa.string())),  # contains(flag_names, 'repeated_action')
        ("near_duplicate_cluster", pa.string()),  # null where nothing is nearly the same
        ("near_duplicate_cluster_size", pa.int64()),
        ("benchmarks", pa.list_(pa.string())),  # null where none was looked for
        ("personal_data_kinds", pa.list_(pa.string())),
        ("personal_data_count", pa.int32()),
    ]
)

# By the name under which a message lists them.
FILTER_FUNCTIONS: dict[str, tuple[type[exp.Expr], ...]] = {
    "and": (exp.And, exp.Paren),
    "or": (exp.Or,),
    "not": (exp.Not,),
    "=": (exp.EQ,),
    "<>": (exp.NEQ,),
    "<": (exp.LT,),
    "<=": (exp.LTE,),
    ">": (exp.GT,),
    ">=": (exp.GTE,),
    "is null": (exp.Is, exp.Null),
    "is distinct from": (exp.NullSafeEQ, exp.NullSafeNEQ),
    "between": (exp.Between,),
    "in": (exp.In,),
    "like": (exp.Like, exp.ILike, exp.Escape),
    "+": (exp.Add,),
    "-": (exp.Sub, exp.Neg),
    "*": (exp.Mul,),
    "/": (exp.Div,),
    "//": (exp.IntDiv,),
    "%": (exp.Mod,),
    "||": (exp.DPipe,),
    "case": (exp.Case, exp.If),
    "cast": (exp.Cast, exp.TryCast, exp.DataType),
    "->>": (exp.JSONExtractScalar, exp.JSONPath, exp.JSONPathPart),
    "coalesce": (exp.Coalesce,),
    "nullif": (exp.Nullif,),
    "greatest": (exp.Greatest,),
    "least": (exp.Least,),
    "abs": (exp.Abs,),
    "round": (exp.Round,),
    "len": (exp.Length,),
    "lower": (exp.Lower,),
    "upper": (exp.Upper,),
    "trim": (exp.Trim,),
    "contains": (exp.Contains,),
    "starts_with": (exp.StartsWith,),
    "regexp_matches": (exp.RegexpLike,),
}

_ALLOWED: tuple[type[exp.Expr], ...] = (
    exp.Literal,
    exp.Boolean,
    exp.Column,
    exp.Identifier,
    *(node for nodes in FILTER_FUNCTIONS.values() for node in nodes),
)

_CAST_TYPES = (
    *exp.DataType.INTEGER_TYPES,
    *exp.DataType.REAL_TYPES,
    *exp.DataType.TEXT_TYPES,
    exp.DType.BOOLEAN,
    exp.DType.DATE,
    exp.DType.TIMESTAMPTZ,
)


def checked_filter(recipe: str | None, column: str | None, expression: str | None) -> str:
    """Check a recipe's filter and give the SQL to put into a model.

    Comments go. A cast of a column becomes a `try_cast`: a row whose value cannot be cast gets
    null there and is filtered out, instead of ending the build.

    Args:
        recipe: the recipe's name, for messages.
        column: the column of `recipes.csv` that the filter stands in, for messages.
        expression: the filter, in DuckDB's dialect.

    Returns:
        A boolean SQL expression over `FILTER_COLUMNS`.

    Raises:
        ConfigError: the expression does not parse, is more than one, uses a column or function
            that is not listed, or is not a condition.
    """
    text = expression or ""
    return checked_condition(
        text,
        FILTER_COLUMNS,
        what=f"Recipe '{recipe or ''}': the {column or 'filter'} `{text}`",
        remedy=" Change it in dbt_project/seeds/recipes.csv.",
    )


def checked_condition(expression: str, columns: pa.Schema, *, what: str, remedy: str = "") -> str:
    """Check a condition on one row and give its SQL; `checked_filter` says what is done to it.

    Args:
        expression: the condition, in DuckDB's dialect.
        columns: what it may name.
        what: the condition as messages call it.
        remedy: what messages end with.

    Raises:
        ConfigError: it may not be used; the message says where the fault is.
    """
    check = _Check(expression, columns, what, remedy)
    tree = check.parse()
    for node in tree.walk():
        check.node(node)
    sql = tree.transform(_forgiving).sql(dialect="duckdb", comments=False)
    check.binds(sql)
    return sql


def _forgiving(node: exp.Expr) -> exp.Expr:
    if type(node) is exp.Cast and not isinstance(node.this, exp.Literal):
        return exp.TryCast(this=node.this, to=node.to)
    return node


class _Check:
    """One filter under test; every method raises `ConfigError` with the place of the fault."""

    def __init__(self, expression: str, columns: pa.Schema, what: str, remedy: str) -> None:
        self._expression = expression
        self._columns = columns
        self._what = what
        self._remedy = remedy
        self._tokens: list[Token] = []

    def parse(self) -> exp.Expr:
        try:
            self._tokens = sqlglot.tokenize(self._expression, dialect="duckdb")
        except TokenError as error:
            self._refuse(f"it cannot be read, perhaps for a missing quote ({error})")
        if not self._tokens:
            self._refuse("it is empty. Write `true` to keep every rated trajectory")
        for token in self._tokens:
            if token.token_type == TokenType.SEMICOLON:
                self._refuse("a second statement is not allowed: remove the `;`", token.start)
            if token.token_type == TokenType.SELECT:
                self._refuse("a subquery is not allowed: a filter sees one row", token.start)
        try:
            return sqlglot.parse_one(self._expression, dialect="duckdb")
        except ParseError as error:
            if not error.errors:
                self._refuse(f"it does not parse ({error})")
            fault = error.errors[0]
            word = fault["highlight"]
            self._refuse(f"it does not parse at `{word}`", self._find(word, fault["line"]))

    def node(self, node: exp.Expr) -> None:
        """Refuse a node of the tree that is not listed."""
        if isinstance(node, exp.Column):
            if node.table or node.name.lower() not in self._columns.names:
                self._refuse(
                    f"`{node.sql(dialect='duckdb')}` is not a column that a filter may use. "
                    f"The columns are {', '.join(self._columns.names)}",
                    self._start(node),
                )
        elif isinstance(node, exp.DataType):
            if not node.is_type(*_CAST_TYPES):
                self._refuse(
                    f"a cast to {node.sql(dialect='duckdb')} is not allowed; cast to a number, "
                    "varchar, boolean, date or timestamptz",
                    self._start(node.parent or node),
                )
        elif not isinstance(node, _ALLOWED):
            word = node.sql(dialect="duckdb")
            if "start" in node.meta:  # a function: its name as it is written
                word = self._expression[node.meta["start"] : node.meta["end"] + 1]
            self._refuse(
                f"`{word}` is not allowed. A filter may use {', '.join(FILTER_FUNCTIONS)}",
                self._start(node),
            )

    def binds(self, sql: str) -> None:
        """Let DuckDB check the types, on one row of nulls."""
        nulls = pa.table([pa.nulls(1, field.type) for field in self._columns], self._columns)
        with duckdb.connect() as connection:
            connection.register("measured_trajectories", nulls)
            try:
                result = connection.sql(f"select ({sql}) from measured_trajectories")
                result.fetchall()
            except duckdb.Error as error:
                self._refuse(str(error).splitlines()[0].rstrip("."))
        if result.types[0] != "BOOLEAN":
            self._refuse(f"it gives {result.types[0]}; a filter is a condition, true or false")

    def _refuse(self, fault: str, start: int | None = None) -> NoReturn:
        place = ""
        if start is not None:
            before = self._expression[:start].split("\n")
            place = f" at line {len(before)}, column {len(before[-1]) + 1}"
        raise ConfigError(f"{self._what} cannot be used{place}: {fault}.{self._remedy}")

    def _start(self, node: exp.Expr) -> int | None:
        """Where a node's text begins: its own place, that of its first word, of what is in it."""
        if "start" in node.meta:
            return int(node.meta["start"])
        word = re.match(r"\w+", node.sql(dialect="duckdb"))
        if word and (place := self._find(word.group())) is not None:
            return place
        return min((n.meta["start"] for n in node.walk() if "start" in n.meta), default=None)

    def _find(self, word: str, line: int = 1) -> int | None:
        """Where a word of the expression stands, from a line on."""
        for token in self._tokens:
            if token.line >= line and token.text.lower() == word.lower():
                return token.start
        return None
