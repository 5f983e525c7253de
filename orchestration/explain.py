"""Everything that the lake knows of one trajectory, from the raw bytes to what trained on it.

    trajlake explain 0b918943        the beginning of an id is enough where only one has it
    trajlake explain logs/run.jsonl:12

`QUESTIONS` has the SQL, one query for each thing that is told; what prints comes after. A table or
column that a lake is too old to have is told, and the rest goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import duckdb
import typer
from rich.console import Console

from orchestration.manifests import Exported, manifest_files
from orchestration.printing import AsJson, cut, line, print_json
from udfs import lake
from udfs.errors import ConfigError, LakeError
from udfs.pinning import read_manifest
from udfs.settings import exports_folder, lake_root

# Of a raw record, so many bytes are shown.
_RAW_BYTES = 600

# Of a text such as an explanation or an instruction, so many characters; --json has all of it.
_TEXT_CHARACTERS = 600

# Candidates named where a beginning fits several trajectories, and rows shown of a long list.
_NAMED = 8

# name → tables, and SQL over $id (the trajectory) and $content (its content_sha256).
QUESTIONS: dict[str, tuple[tuple[str, ...], str]] = {
    "raw_records": (
        ("raw_records", "trajectories"),
        f"""
        select
            raw_record_id, source, raw_file, raw_position, raw_offset, raw_bytes, raw_sha256,
            file_sha256, landed_at, raw[1:{_RAW_BYTES}] as excerpt,
        from raw_records
        where raw_record_id in (
            select unnest(coalesce(raw_record_ids, [raw_record_id]))
            from trajectories
            where trajectory_id = $id
        )
        order by raw_file, raw_position
        """,
    ),
    "same_content": (
        ("trajectories",),
        """
        select trajectory_id, source
        from trajectories
        where content_sha256 = $content and trajectory_id <> $id
        order by trajectory_id
        """,
    ),
    "ratings": (
        ("ratings",),
        """
        select
            rated_at, rater, rate_model, rater_id, attempt, status, rater_score, explanation,
            * exclude (
                rated_at, rater, rate_model, rater_id, attempt, status, rater_score, explanation,
                content_sha256
            ),
        from ratings
        where content_sha256 = $content
        order by rated_at, rating_id
        """,
    ),
    "verification": (
        ("verifications",),
        "select * exclude (trajectory_id, content_sha256) from verifications "
        "where trajectory_id = $id",
    ),
    "flags": (
        ("trajectory_flags",),
        "select * exclude (trajectory_id, content_sha256) from trajectory_flags "
        "where trajectory_id = $id",
    ),
    "near_duplicates": (
        ("near_duplicates", "trajectories"),
        """
        select cluster_id, cluster_size, similarity, trajectory_id, source
        from near_duplicates
        inner join trajectories using (content_sha256)
        where
            trajectory_id <> $id
            and cluster_id in (
                select cluster_id from near_duplicates where content_sha256 = $content
            )
        order by content_sha256 <> $content, trajectory_id
        """,
    ),
    "benchmark_overlap": (
        ("benchmark_checks",),
        """
        select found.*
        from (select unnest(matches) as found from benchmark_checks where trajectory_id = $id)
        order by found.benchmark, found.item_id
        """,
    ),
    "personal_data": (
        ("personal_data",),
        "select * exclude (trajectory_id, content_sha256) from personal_data "
        "where trajectory_id = $id",
    ),
    "recipes": (
        ("curated_trajectories",),
        """
        select recipe, is_kept, reason, reason_detail, rater_score, score, trained_steps, task_key
        from curated_trajectories
        where trajectory_id = $id
        order by recipe
        """,
    ),
    "samples": (
        ("sft_samples",),
        """
        select * exclude (trajectory_id)
        from sft_samples
        where trajectory_id = $id
        order by recipe
        """,
    ),
    "plan": (
        ("training_plan",),
        """
        select
            recipe,
            split,
            count(*) as positions,
            list(distinct epoch order by epoch) as epochs,
            list(position order by position)[1:8] as first_positions,
        from training_plan
        where trajectory_id = $id
        group by recipe, split
        order by recipe, split desc
        """,
    ),
    "preference_pairs": (
        ("preference_pairs",),
        """
        select
            case when chosen_id = $id then 'chosen' else 'rejected' end as role,
            case when chosen_id = $id then rejected_id else chosen_id end as against,
            * exclude (chosen_id, rejected_id),
        from preference_pairs
        where $id in (chosen_id, rejected_id)
        order by recipe, pair_id
        """,
    ),
    "training_lineage": (
        ("training_lineage", "training_runs"),
        """
        select
            runs.run,
            runs.status,
            runs.recipe,
            coalesce(runs.objective, 'sft') as objective,
            seen.side,
            count(distinct seen.step) as steps,
            list(distinct seen.step order by seen.step)[1:8] as first_steps,
            arg_min(seen.nll / seen.weight, seen.step) as first_loss,
            arg_max(seen.nll / seen.weight, seen.step) as last_loss,
        from training_lineage as seen
        left join training_runs as runs using (run_id)
        where seen.trajectory_id = $id
        group by all
        order by runs.run, seen.side
        """,
    ),
}

# What an export's rows are made from: table, what is told of them, which are of a trajectory.
_EXPORTED = (
    (
        "training_plan",
        "'position' as unit, count(*) as rows, min(epoch) as first_epoch, max(epoch) as last_epoch",
        "trajectory_id = $id",
    ),
    ("preference_pairs", "'pair' as unit, count(*) as rows", "$id in (chosen_id, rejected_id)"),
)


@dataclass(frozen=True)
class Explained:
    """All that is known of a trajectory.

    Args:
        trajectory: its row in `trajectories`.
        facts: by the names of `QUESTIONS`; a question that could not be asked is not there.
        exports: those that have it, with how often.
        missing: what could not be told, and why.
    """

    trajectory: Mapping[str, Any]
    facts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    exports: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def explain_command(
    trajectory: Annotated[
        str,
        typer.Argument(metavar="ID", help="An id or its beginning, or raw_file:position."),
    ],
    as_json: AsJson = False,
) -> None:
    """Where a trajectory is from, what was found in it, and what came of it."""
    with lake.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        explained = explain(connection, trajectory)
    if as_json:
        print_json(_as_json(explained))
    else:
        _print(explained)


def explain(connection: duckdb.DuckDBPyConnection, named: str) -> Explained:
    """Ask a lake all about a trajectory.

    Args:
        connection: has a view over every table of the lake.
        named: an id or its beginning, or raw_file:position.

    Raises:
        ConfigError: no trajectory or several are called so.
        LakeError: there are no trajectories yet.
    """
    tables = set(lake.table_names())
    if "trajectories" not in tables:
        raise LakeError(
            f"The lake at {lake_root()} has not been built yet. Run `make build`, or `dbt build` "
            "in an active environment."
        )
    row = _find(connection, named, tables)
    explained = Explained(row)
    asked = {"id": row["trajectory_id"], "content": row["content_sha256"]}
    for name, (needed, sql) in QUESTIONS.items():
        if absent := [table for table in needed if table not in tables]:
            explained.missing[name] = f"this lake has no table {', '.join(absent)}"
            continue
        try:
            explained.facts[name] = _rows(
                connection, sql, {key: value for key, value in asked.items() if f"${key}" in sql}
            )
        except duckdb.BinderException as error:
            explained.missing[name] = (
                f"its table is from another version of the code ({str(error).splitlines()[0]})"
            )
        except duckdb.IOException as error:
            explained.missing[name] = f"it cannot be read ({str(error).splitlines()[0]})"
    for name, file in manifest_files():
        try:
            export = Exported(name, file, read_manifest(file))
            explained.exports.extend(in_export(connection, export, row["trajectory_id"], tables))
        except (duckdb.Error, ConfigError) as error:
            explained.missing[f"export {name}"] = str(error).splitlines()[0]
    return explained


def _rows(
    connection: duckdb.DuckDBPyConnection, sql: str, parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    result = connection.execute(sql, dict(parameters))
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def _find(connection: duckdb.DuckDBPyConnection, named: str, tables: set[str]) -> dict[str, Any]:
    """The row of the trajectory that is called so, its steps counted only.

    Raises:
        ConfigError: no trajectory or several are called so.
    """
    file, _, position = named.rpartition(":")
    is_place = bool(file) and position.isdecimal()
    if is_place:
        where, asked = _of_record(tables), {"file": file, "position": int(position)}
    else:
        where, asked = "starts_with(trajectory_id, $named)", {"named": named.lower()}
    found = _rows(
        connection,
        f"select * exclude (steps), len(steps) as step_count from trajectories where {where} "
        f"order by trajectory_id limit {_NAMED + 1}",
        asked,
    )
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(row["trajectory_id"][: max(16, len(named) + 4)] for row in found[:_NAMED])
        more = " and more" if len(found) > _NAMED else ""
        raise ConfigError(
            f"Several trajectories are called '{named}': {ids}{more}. Give more of the id."
        )
    raise ConfigError(_why_none(connection, named, asked if is_place else None, tables))


def _of_record(tables: set[str]) -> str:
    """The condition that a trajectory is made from the record at $file and $position."""
    if "raw_records" not in tables:
        return "raw_file = $file and raw_position = $position"
    return """
        list_has_any(coalesce(raw_record_ids, [raw_record_id]), (
            select list(raw_record_id)
            from raw_records
            where raw_file = $file and raw_position = $position
        ))
    """


def _why_none(
    connection: duckdb.DuckDBPyConnection,
    named: str,
    place: Mapping[str, Any] | None,
    tables: set[str],
) -> str:
    if place is not None and "quarantine" in tables:
        refused = _rows(
            connection,
            "select reason, detail from quarantine "
            "where raw_file = $file and raw_position = $position",
            place,
        )
        if refused:
            return (
                f"The record {named} is no trajectory, it is in quarantine: "
                f"{refused[0]['reason']}: {refused[0]['detail']}"
            )
    return (
        f"No trajectory of {lake_root()} is called '{named}'. Give a trajectory_id or its "
        "beginning, or a raw file below the raw folder with the record's number, such as "
        "logs/run.jsonl:12."
    )


def in_export(
    connection: duckdb.DuckDBPyConnection, export: Exported, trajectory_id: str, tables: set[str]
) -> list[dict[str, Any]]:
    """How often an export has a trajectory, by the plan or the pairs that its manifest names."""
    found = []
    for table, columns, condition in _EXPORTED:
        version = export.tables.get(table)
        if version is None or table not in tables:
            continue
        scan = lake.path_scan(lake.table_path(table), version)
        found += _rows(
            connection,
            f"""
            select split, {columns}
            from {scan}
            where recipe = $recipe and {condition}
            group by split
            order by split desc
            """,
            {"recipe": export.recipe, "id": trajectory_id},
        )
    return [
        {"export": export.name, "recipe": export.recipe, "manifest": str(export.file)} | row
        for row in found
    ]


def _as_json(explained: Explained) -> dict[str, Any]:
    facts = {
        name: [_with_text(row) if name == "raw_records" else row for row in rows]
        for name, rows in explained.facts.items()
    }
    return {
        "trajectory": explained.trajectory,
        **facts,
        "exports": explained.exports,
        "missing": explained.missing,
    }


def _with_text(row: Mapping[str, Any]) -> dict[str, Any]:
    """A raw record with its excerpt as text; bytes that are none are escaped."""
    return {**row, "excerpt": _decoded(row["excerpt"])}


def _decoded(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="backslashreplace")


class _Page:
    """Prints the parts of an explanation; whatever it is given is text and nothing else."""

    def __init__(self, explained: Explained) -> None:
        self._console = Console(highlight=False)
        self._explained = explained

    @property
    def facts(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """What was found out, by the names of `QUESTIONS`."""
        return self._explained.facts

    def title(self, text: str) -> None:
        self._console.print(line(text, style="bold"))

    def say(self, name: str, value: object) -> None:
        """A name and what it is; nothing where it is nothing."""
        if value not in (None, "", []):
            self.line(f"{name}: {_worded(value)}")

    def text(self, name: str, value: str | None) -> None:
        """A longer text, cut, with its line breaks."""
        if value:
            self.line(f"{name}:")
            for each in cut(value, _TEXT_CHARACTERS).split("\n"):
                self.line(f"    {each}")

    def rows(self, name: str) -> Sequence[Mapping[str, Any]] | None:
        """What was found out; None, and a line that says why, where it could not be."""
        if name in self._explained.missing:
            self.line(f"not known: {self._explained.missing[name]}")
            return None
        return self._explained.facts[name]

    def few(self, rows: Sequence[Mapping[str, Any]], none: str) -> Sequence[Mapping[str, Any]]:
        """The first rows; the number of the rest, or that there are none, is said."""
        if not rows:
            self.line(none)
        elif len(rows) > _NAMED:
            self.line(f"{len(rows):,}, of which the first {_NAMED} (all: --json)")
        return rows[:_NAMED]

    def line(self, text: str) -> None:
        """One line; where it is long, the terminal breaks it."""
        self._console.print(line(f"  {text}"), soft_wrap=True)


def _worded(value: object) -> str:
    """A value for a reader."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_worded, value))
    if isinstance(value, Mapping):
        return " ".join(f"{key} {_worded(each)}" for key, each in value.items() if each is not None)
    return str(value)


def _print(explained: Explained) -> None:
    page = _Page(explained)
    row = explained.trajectory
    page.title(f"trajectory {row['trajectory_id']}")
    for name in ("source", "environment", "task_type", "task_id", "model_name", "step_count"):
        page.say(name, row.get(name))
    for name in ("score", "license", "is_synthetic", "generator", "content_sha256"):
        page.say(name, row.get(name))
    page.text("user_query", row.get("user_query"))

    page.title("raw records")
    _print_raw(page, row)

    page.title("standardized")
    parsed = f"{row.get('format')} {row.get('parser_version')}"
    page.say("parser and version", parsed)
    page.say("confidence of the format", row.get("format_confidence"))
    page.say("landed at", row.get("ingested_at"))

    page.title("ratings")
    _print_ratings(page)

    page.title("verification")
    for found in page.rows("verification") or ():
        for name, value in found.items():
            page.say(name, value)

    page.title("flags")
    _print_flags(page)

    page.title("duplicates")
    for found in page.few(page.rows("same_content") or (), "no other has the same content"):
        page.line(f"the same content: {found['trajectory_id']} of {found['source']}")
    near = page.rows("near_duplicates")
    if near is not None:
        for found in page.few(near, "no near duplicate is known"):
            page.line(
                f"nearly the same: {found['trajectory_id']} of {found['source']}, "
                f"similarity {found['similarity']}"
            )

    page.title("benchmark overlap")
    overlap = page.rows("benchmark_overlap")
    if overlap is not None:
        for found in page.few(overlap, "none found"):
            page.line(_worded(found))

    page.title("personal data")
    for found in page.rows("personal_data") or ():
        page.say("kinds", found.get("kinds") or "none found")
        page.say("findings", found.get("finding_count"))
        for finding in (found.get("findings") or [])[:_NAMED]:
            page.line(f"  {_worded(finding)}")

    page.title("recipes")
    _print_recipes(page)

    page.title("preference pairs")
    pairs = page.rows("preference_pairs")
    if pairs is not None:
        for pair in page.few(pairs, "in none"):
            page.line(
                f"{pair['recipe']}: {pair['role']} against {pair['against']} "
                f"({pair['level']}, by {pair['margin_on']} {pair['margin']})"
            )

    page.title("exports")
    for found in page.few(explained.exports, f"in none of {exports_folder()}"):
        page.line(
            f"{found['export']}: {found['rows']:,} {found['split']} {found['unit']}"
            f"{'s' if found['rows'] > 1 else ''} ({found['manifest']})"
        )
    for name, why in explained.missing.items():
        if name.startswith("export "):
            page.line(f"{name}: not known: {why}")

    page.title("training runs")
    if "training_lineage" in explained.missing:
        page.line(f"none recorded ({explained.missing['training_lineage']})")
    else:
        for found in page.few(explained.facts["training_lineage"], "none recorded"):
            page.line(_worded(found))


def _print_raw(page: _Page, row: Mapping[str, Any]) -> None:
    records = page.rows("raw_records")
    if records is None:
        page.say("record", f"{row.get('raw_file')}:{row.get('raw_position')}")
        page.say("sha256", row.get("raw_sha256"))
        return
    for record in page.few(records, "the lake has them no longer"):
        page.line(f"{record['raw_file']}:{record['raw_position']}")
        page.say("  bytes", record["raw_bytes"])
        page.say("  first byte in the file", record["raw_offset"])
        page.say("  sha256", record["raw_sha256"])
        page.say("  file's sha256", record["file_sha256"])
        page.text("  begins", _decoded(record["excerpt"]))


def _print_ratings(page: _Page) -> None:
    ratings = page.rows("ratings")
    if ratings is None:
        return
    if not ratings:
        page.line("none: no rater was asked")
    for rating in ratings:
        said = rating["status"] if rating["rater_score"] is None else rating["rater_score"]
        judge = f" ({rating['judge']})" if rating.get("judge") else ""
        page.line(
            f"{said} by {rating['rate_model']}{judge}, attempt {rating['attempt']}, "
            f"{rating['rated_at']}"
        )
        page.text("  explanation", rating["explanation"])


def _print_flags(page: _Page) -> None:
    for found in page.rows("flags") or ():
        for name in ("trainable_steps", "first_error_step", "has_loop", "is_finished"):
            page.say(name, found.get(name))
        flags = found.get("flags") or []
        if not flags:
            page.line("no step has a flag")
        for flag in flags[:_NAMED]:
            page.line(f"step {flag['step_id']}: {flag['flag']}: {cut(flag['detail'] or '', 200)}")
        if len(flags) > _NAMED:
            page.line(f"{len(flags) - _NAMED:,} more (all: --json)")


def _print_recipes(page: _Page) -> None:
    verdicts = page.rows("recipes")
    if verdicts is None:
        return
    if not verdicts:
        page.line("no recipe has judged it yet: run `dbt build`")
    facts = page.facts
    for verdict in verdicts:
        detail = f": {verdict['reason_detail']}" if verdict["reason_detail"] else ""
        page.line(f"{verdict['recipe']}: {verdict['reason']}{detail}")
        page.say("  rater_score", verdict["rater_score"])
        page.say("  trained steps", verdict["trained_steps"])
        for sample in facts.get("samples", ()):
            if sample["recipe"] == verdict["recipe"]:
                page.say("  trained tokens", sample.get("trained_tokens"))
        for plan in facts.get("plan", ()):
            if plan["recipe"] == verdict["recipe"]:
                first = ", ".join(map(str, plan["first_positions"]))
                more = " …" if plan["positions"] > len(plan["first_positions"]) else ""
                page.say(
                    f"  {plan['split']} plan",
                    f"{plan['positions']:,} positions in epochs {_worded(plan['epochs'])}: "
                    f"{first}{more}",
                )
        is_planned = any(each["recipe"] == verdict["recipe"] for each in facts.get("plan", ()))
        if verdict["is_kept"] and "plan" in facts and not is_planned:
            page.line("  kept, and the plan has no place for it")
