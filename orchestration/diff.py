"""What differs between two exports, trajectory by trajectory, and why.

    trajlake diff default@previous default

Both plans are read from the lake at the versions that the manifests name, and so is all that says
why: verdicts, ratings, flags, raw files. The exports' own files are not needed. All is one chain
of queries in DuckDB; of trajectories, nothing but ids and what has changed is ever in Python.

| cause                | why a trajectory came, went or weighs otherwise                          |
|----------------------|--------------------------------------------------------------------------|
| `new_raw_file`       | its raw file was not in the lake before                                  |
| `new_record`         | it is new, though its raw file is not: it grew, or is read otherwise     |
| `gone`               | the lake has it no longer: its record is read otherwise, or not at all   |
| `filter`             | the recipe's filter is another one                                       |
| `measures`           | what the filter looks at is another one (`rater_score`, `step_count` …)  |
| `filter_and_measures`| both                                                                     |
| `plan`               | kept both times; the plan had a place for it only once                   |
| `times`              | it comes more or less often                                              |
| `split`              | it changed between training and evaluation                               |
| `content`            | the run has grown, or is read otherwise                                  |
| `loss`               | other parts of it are learned from, or with another weight               |
| a verdict            | the verdict itself: `near_duplicate`, `source_excluded`, `over_quota` …  |
| `unknown`            | the filter looks at something that no table of then has                  |
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import duckdb
import sqlglot
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from sqlglot import exp

from orchestration.manifests import Exported, find_export
from orchestration.printing import AsJson, cut, line, print_json_with_rows
from udfs import lake
from udfs.errors import ConfigError, LakeError
from udfs.lake import VARS, load_delta_extension, sql_text
from udfs.pinning import CURATED, recorded_at

_MEMORY_LIMIT = "2GB"
_FETCHED_ROWS = 1_000

# Absent in a manifest that is older than the setting; a source or quota that a recipe has no entry
# for is none.
_NOT_RECORDED = "not recorded"
_NONE = "none"

# What a filter may look at and where it is stored: column of `measured_trajectories` → table and
# expression. What is not here is in views alone, and gone with the day.
_STORED = {
    "trajectories": """
        content_sha256 environment task_type task_id user_query system_prompt tools model_name
        other_information license is_synthetic generator raw_file raw_position raw_sha256 format
        format_confidence parser_version ingested_at
    """,
    "verifications": """
        calls calls_checked format_ok first_failed_step error_observations error_classes
    """,
    "trajectory_flags": """
        step_count flagged_step_count repeated_step_count self_correction_count first_error_step
        has_loop is_finished flag_names
    """,
    "conversations": "estimated_tokens",
    "benchmark_checks": "benchmarks",
    CURATED: "rater_score score task_key",
}
_MEASURES: dict[str, tuple[str, str]] = {
    **{name: (table, name) for table, names in _STORED.items() for name in names.split()},
    "steps": ("trajectories", "len(steps)"),
    "trainable_step_count": ("trajectory_flags", "len(trainable_steps)"),
    "near_duplicate_cluster": ("near_duplicates", "cluster_id"),
    "near_duplicate_cluster_size": ("near_duplicates", "cluster_size"),
    "personal_data_kinds": ("personal_data", "kinds"),
    "personal_data_count": ("personal_data", "finding_count"),
}

# A value in the text of a reason is cut here.
_VALUE_CHARACTERS = 80

# The settings that decide how often a trajectory comes and where, and those that decide the split.
_PLAN_SETTINGS = ("seed", "epochs", "temperature", "agent_share", "token_budget", "sources.")
_SPLIT_SETTINGS = ("seed", "eval_fraction")


@dataclass(frozen=True)
class Difference:
    """A setting that is not the same in both exports."""

    setting: str
    then: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.setting} {self.then} → {self.now}"


def diff_command(
    then: Annotated[
        str, typer.Argument(help="A recipe, `recipe@previous`, an export's folder or manifest.")
    ],
    now: Annotated[str, typer.Argument(help="The other export.")],
    examples: Annotated[
        int, typer.Option(min=0, help="Trajectories shown of each change and cause.")
    ] = 3,
    as_json: AsJson = False,
) -> None:
    """Which trajectories two exports do not share, which weigh otherwise, and why."""
    first, second = find_export(then), find_export(now)
    with compare(first, second) as comparison:
        if as_json:
            head = {
                "then": _named(first),
                "now": _named(second),
                "settings": [vars(each) for each in comparison.settings],
                "tables": [vars(each) for each in comparison.tables],
                "totals": comparison.totals(),
                "summary": comparison.summary(),
                "notes": comparison.notes,
            }
            print_json_with_rows(head, "trajectories", comparison.changes())
        else:
            _print(comparison, examples)


class Comparison:
    """Two exports side by side, with a temporary table `changes` of what is not the same."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, then: Exported, now: Exported
    ) -> None:
        self.then, self.now = then, now
        self.settings = settings_that_differ(then, now)
        self.tables = _differences(dict(then.tables), dict(now.tables))
        self.notes: list[str] = []
        self._connection = connection
        self._open_tables()
        self._check_plans()
        self._compare()

    def totals(self) -> dict[str, int]:
        """How many trajectories came, went, weigh otherwise and stayed as they are."""
        rows = dict(
            self._connection.execute("select change, count(*) from changes group by all").fetchall()
        )
        (both,) = self._connection.execute(
            "select count(*) from planned_then inner join planned_now using (trajectory_id)"
        ).fetchall()
        changed = ("added", "removed", "re-weighted")
        return {name: rows.get(name, 0) for name in changed} | {
            "unchanged": both[0] - rows.get("re-weighted", 0)
        }

    def summary(self) -> list[dict[str, Any]]:
        """The changes counted by kind, cause, source and verdicts."""
        return self._rows(
            """
            select
                change,
                cause,
                source,
                reason_then,
                reason_now,
                count(*) as trajectories,
                cast(coalesce(sum(times_then), 0) as bigint) as positions_then,
                cast(coalesce(sum(times_now), 0) as bigint) as positions_now,
            from changes
            group by all
            order by change, trajectories desc, cause, source, reason_then, reason_now
            """
        )

    def changes(self) -> Iterator[dict[str, Any]]:
        """Every change, in the order of kind, cause and id."""
        result = self._connection.execute(
            "select * from changes order by change, cause, trajectory_id"
        )
        names = [column[0] for column in result.description]
        while rows := result.fetchmany(_FETCHED_ROWS):
            for row in rows:
                yield _as_json(dict(zip(names, row, strict=True)))

    def examples(self, count: int) -> list[dict[str, Any]]:
        """A few changes of each kind and cause."""
        return self._rows(
            """
            select *
            from changes
            qualify row_number() over (partition by change, cause order by trajectory_id) <= $n
            order by change, cause, trajectory_id
            """,
            n=count,
        )

    def _rows(self, sql: str, **parameters: Any) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = (
            self._connection.execute(sql, parameters or None).to_arrow_table().to_pylist()
        )
        return rows

    def _open_tables(self) -> None:
        """A view `<table>_then` and one `<table>_now` over each table that is looked at.

        Raises:
            ConfigError: an export is made from something else.
            LakeError: a version is not there any more.
        """
        measured = {table for table, _ in _MEASURES.values()}
        for side, export in (("then", self.then), ("now", self.now)):
            if "training_plan" not in export.tables:
                raise ConfigError(
                    f"'{export.name}' is not made from a training plan (its tables are "
                    f"{', '.join(export.tables)}). Only plans are compared."
                )
            for name in sorted({"training_plan", "sft_samples", "raw_records"} | measured):
                version = export.tables.get(name)
                if version is None:
                    continue
                path = lake.table_path(name)
                try:
                    self._connection.execute(
                        f"create view {name}_{side} as select * from "
                        f"{lake.path_scan(path, version)}"
                    )
                except duckdb.Error as error:
                    raise LakeError(
                        f"'{export.name}' was made from version {version} of {path}, which cannot "
                        f"be read ({str(error).splitlines()[0]}). What was vacuumed cannot be "
                        "compared."
                    ) from error

    def _check_plans(self) -> None:
        """Raise where a plan is not the one that the manifest tells of.

        Raises:
            LakeError: the export is from another lake.
        """
        for side, export in (("then", self.then), ("now", self.now)):
            self._connection.execute(
                f"""
                create temp table planned_{side} as
                select trajectory_id, source, split, count(*) as times,
                from training_plan_{side}
                where recipe = $recipe
                group by all
                """,
                {"recipe": export.recipe},
            )
            # Layouts that have a trajectory once do not tell positions.
            counts = export.manifest["counts"].items()
            unit = "positions" if all("positions" in n for _, n in counts) else "trajectories"
            count = "sum(times)" if unit == "positions" else "count(*)"
            counted = dict(
                self._connection.execute(
                    f"select split, cast({count} as bigint) from planned_{side} group by split"
                ).fetchall()
            )
            told = {split: n[unit] for split, n in counts}
            if counted != told:
                raise LakeError(
                    f"'{export.name}' has {told} {unit} by its manifest, and {counted} by the "
                    f"plan that it names in {lake.table_path('training_plan')}. It is an export of "
                    "another lake: set TRAJLAKE_LAKE to that."
                )

    def _compare(self) -> None:
        is_measured = self._measure()
        self._connection.execute(
            _CHANGES.format(is_measured=is_measured, new_files=self._new_files()),
            {
                "recipe_then": self.then.recipe,
                "recipe_now": self.now.recipe,
                "filter": self._said("filter", "salvage_filter"),
                "plan_settings": self._said(*_PLAN_SETTINGS),
                "split_settings": self._said(*_SPLIT_SETTINGS),
                "loss_settings": self._said("masks_bad_steps"),
            },
        )

    def _said(self, *settings: str) -> str | None:
        """The differences in some settings, or in all that begin so, as a text."""
        found = [
            str(each)
            for each in self.settings
            if any(
                each.setting == name or (name.endswith(".") and each.setting.startswith(name))
                for name in settings
            )
        ]
        return "; ".join(found) or None

    def _new_files(self) -> str:
        """SQL of the raw files that the first export's lake had."""
        columns = [c[0] for c in self._connection.sql("describe raw_records_then").fetchall()]
        if "raw_file" not in columns:
            return "select distinct source, raw_file from trajectories_then"
        return "select distinct source, raw_file from raw_records_then"

    def _measure(self) -> str:
        """Make `measures_then` and `measures_now`, of the columns that the filters look at.

        Returns:
            The SQL text of what differs between the two.
        """
        named = sorted(
            {
                column
                for export in (self.then, self.now)
                for key in ("filter", "salvage_filter")
                if (text := export.manifest["settings"].get(key))
                for column in _columns(text)
            }
        )
        tables = {
            name
            for name, _ in _MEASURES.values()
            if name in self.then.tables and name in self.now.tables
        }
        known = [name for name in named if name in _MEASURES and _MEASURES[name][0] in tables]
        if lost := [name for name in named if name not in known and name != "source"]:
            self.notes.append(
                f"the filters look at {', '.join(lost)} too; no table has what they were then"
            )
        for side, export in (("then", self.then), ("now", self.now)):
            is_of_recipe = f"where recipe = {sql_text(export.recipe)}"
            self._connection.execute(_measures(known, side, is_of_recipe))
        return ", ".join(
            f"case when a.{name} is distinct from b.{name} then concat('{name} ', "
            f"coalesce(left(a.{name}, {_VALUE_CHARACTERS}), 'null'), ' → ', "
            f"coalesce(left(b.{name}, {_VALUE_CHARACTERS}), 'null')) end"
            for name in known
        )


@contextmanager
def compare(then: Exported, now: Exported) -> Iterator[Comparison]:
    """Compare two exports of this lake.

    Raises:
        LakeError: a version that one of them names is gone, or is another lake's.
    """
    with (
        tempfile.TemporaryDirectory(prefix="trajlake-diff-") as spill,
        duckdb.connect(
            config={"memory_limit": _MEMORY_LIMIT, "temp_directory": spill}
        ) as connection,
    ):
        load_delta_extension(connection)
        try:
            yield Comparison(connection, then, now)
        except duckdb.IOException as error:
            raise LakeError(
                f"A table cannot be read as it was then ({str(error).splitlines()[0]}). What was "
                "vacuumed cannot be compared."
            ) from error


def settings_that_differ(then: Exported, now: Exported) -> list[Difference]:
    """All that decides what is in an export, beside the data: recipe, rater's vars, code."""
    return [
        difference
        for a, b in (
            ({"recipe": then.recipe}, {"recipe": now.recipe}),
            (_flat(then.manifest["settings"]), _flat(now.manifest["settings"])),
            (_vars(then), _vars(now)),
            (_made_by(then), _made_by(now)),
        )
        for difference in _differences(a, b)
    ]


def _vars(export: Exported) -> dict[str, Any]:
    version = export.tables.get(CURATED)
    if version is None:
        return {}
    return _flat({"vars": recorded_at(lake.table_path(CURATED), version, VARS)})


def _made_by(export: Exported) -> dict[str, Any]:
    return {key: export.manifest.get(key) for key in ("code_version", "written_by")}


def _flat(settings: Mapping[str, Any], within: str = "") -> dict[str, Any]:
    """Nested objects as one, with dotted names; a list of objects by what they are of."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{within}{key}"
        if key == "quotas":
            for quota in value:
                of = f"{name}.{quota['dimension']}.{quota['value']}"
                found[of] = quota["max_trajectories"]
        elif isinstance(value, Mapping):
            found |= _flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def _differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    found = []
    for name in [*then, *(each for each in now if each not in then)]:
        absent = _NONE if name.startswith(("sources.", "quotas.")) else _NOT_RECORDED
        difference = Difference(name, then.get(name, absent), now.get(name, absent))
        if difference.then != difference.now:
            found.append(difference)
    return found


def _columns(expression: str) -> set[str]:
    """The columns that a filter looks at."""
    tree = sqlglot.parse_one(expression, dialect="duckdb")
    return {column.name.lower() for column in tree.find_all(exp.Column)}


def _measures(names: Sequence[str], side: str, is_of_recipe: str) -> str:
    """SQL for what the filters look at, as text, of every trajectory that is in either plan."""
    columns = [f"cast({table}.{name} as varchar) as {name}" for name, table in _placed(names)]
    tables = sorted({table for _, table in _placed(names)})
    joins = "".join(
        f"""
        left join (
            select {_key(table)}{_of(table, names)}
            from {table}_{side}
            {is_of_recipe if table == CURATED else ""}
        ) as {table} on {table}.{_key(table)} = identified.{_key(table)}"""
        for table in tables
    )
    return f"""
        create temp table measures_{side} as
        with identified as (
            select trajectory_id, content_sha256
            from trajectories_{side}
            where
                trajectory_id in (select trajectory_id from planned_then)
                or trajectory_id in (select trajectory_id from planned_now)
        )
        select {", ".join(["identified.trajectory_id", *columns])}
        from identified{joins}
    """


def _placed(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, _MEASURES[name][0]) for name in names]


def _of(table: str, names: Sequence[str]) -> str:
    return "".join(
        f", {_MEASURES[name][1]} as {name}"
        for name, placed in _placed(names)
        if placed == table and name != _key(table)
    )


def _key(table: str) -> str:
    return "content_sha256" if table == "near_duplicates" else "trajectory_id"


# {is_measured}: expressions over measures a and b. {new_files}: the raw files of then.
_CHANGES = """
create temp table changes as
with samples_then as (
    select
        planned_then.trajectory_id,
        planned_then.source,
        planned_then.split,
        planned_then.times,
        sft_samples.loss_flags,
        sft_samples.weight,
        sft_samples.metadata_prefix,
        sft_samples.trained_tokens,
    from planned_then
    inner join sft_samples_then as sft_samples using (trajectory_id)
    where sft_samples.recipe = $recipe_then
),

samples_now as (
    select
        planned_now.trajectory_id,
        planned_now.source,
        planned_now.split,
        planned_now.times,
        sft_samples.loss_flags,
        sft_samples.weight,
        sft_samples.metadata_prefix,
        sft_samples.trained_tokens,
    from planned_now
    inner join sft_samples_now as sft_samples using (trajectory_id)
    where sft_samples.recipe = $recipe_now
),

verdicts_then as (
    select * from curated_trajectories_then where recipe = $recipe_then
),

verdicts_now as (
    select * from curated_trajectories_now where recipe = $recipe_now
),

source_positions as (
    select
        source,
        concat(
            'source ', source, ': ',
            coalesce(a.positions, 0), ' positions of ', coalesce(a.trajectories, 0),
            ' trajectories → ',
            coalesce(b.positions, 0), ' of ', coalesce(b.trajectories, 0)
        ) as said,
    from (
        select source, sum(times) as positions, count(*) as trajectories
        from planned_then where split = 'train' group by source
    ) as a
    full join (
        select source, sum(times) as positions, count(*) as trajectories
        from planned_now where split = 'train' group by source
    ) as b using (source)
),

files_then as ({new_files}),

joined as (
    select
        trajectory_id,
        coalesce(b.source, a.source) as source,
        case
            when a.source is null then 'added'
            when b.source is null then 'removed'
            else 're-weighted'
        end as change,
        a.split as split_then,
        b.split as split_now,
        a.times as times_then,
        b.times as times_now,
        a.trained_tokens as trained_tokens_then,
        b.trained_tokens as trained_tokens_now,
        a.weight as weight_then,
        b.weight as weight_now,
        a.loss_flags is distinct from b.loss_flags as has_other_loss,
        a.metadata_prefix is distinct from b.metadata_prefix as has_other_prefix,
        va.reason as reason_then,
        vb.reason as reason_now,
        va.reason_detail as reason_detail_then,
        vb.reason_detail as reason_detail_now,
        va.rater_score as rater_score_then,
        vb.rater_score as rater_score_now,
        va.score as score_then,
        vb.score as score_now,
        va.content_sha256 as content_sha256_then,
        vb.content_sha256 as content_sha256_now,
        va.trained_steps as trained_steps_then,
        vb.trained_steps as trained_steps_now,
        va.task_key as task_key_then,
        vb.task_key as task_key_now,
    from samples_then as a
    full join samples_now as b using (trajectory_id)
    left join verdicts_then as va using (trajectory_id)
    left join verdicts_now as vb using (trajectory_id)
    where
        (a.split, a.times, a.loss_flags, a.weight, a.metadata_prefix, va.content_sha256)
        is distinct from
        (b.split, b.times, b.loss_flags, b.weight, b.metadata_prefix, vb.content_sha256)
),

measured as (
    select
        joined.*,
        source_positions.said as source_said,
        nullif(concat_ws('; ', null, {is_measured}), '') as measures,
        coalesce(now_read.raw_file, then_read.raw_file) as raw_file,
        coalesce(now_read.raw_position, then_read.raw_position) as raw_position,
        files_then.raw_file is null as is_new_file,
        -- Of one that came or went, the verdict that kept it out.
        case change when 'added' then reason_then when 'removed' then reason_now end as refusal,
        case change
            when 'added' then reason_detail_then
            when 'removed' then reason_detail_now
        end as refusal_detail,
    from joined
    left join source_positions using (source)
    left join measures_then as a using (trajectory_id)
    left join measures_now as b using (trajectory_id)
    left join trajectories_then as then_read using (trajectory_id)
    left join trajectories_now as now_read using (trajectory_id)
    left join files_then
        on joined.source = files_then.source
        and coalesce(now_read.raw_file, then_read.raw_file) = files_then.raw_file
),

named as (
    select
        *,
        case
            when change = 'added' and refusal is null
                then case when is_new_file then 'new_raw_file' else 'new_record' end
            when change = 'removed' and refusal is null then 'gone'
            when refusal in ('kept', 'salvaged') then 'plan'
            when refusal = 'filtered'
                then case
                    when $filter is not null and measures is not null then 'filter_and_measures'
                    when $filter is not null then 'filter'
                    when measures is not null then 'measures'
                    else 'unknown'
                end
            when refusal is not null then refusal
            when split_then <> split_now then 'split'
            when times_then <> times_now then 'times'
            when content_sha256_then <> content_sha256_now then 'content'
            else 'loss'
        end as cause,
    from measured
)

select
    trajectory_id,
    source,
    change,
    cause,
    case
        when cause = 'new_raw_file' then concat('new raw file ', raw_file)
        when cause = 'new_record'
            then concat('record ', raw_position, ' of ', raw_file, ' is new, or read otherwise')
        when cause = 'gone'
            then concat('record ', raw_position, ' of ', raw_file, ' is read otherwise, or refused')
        when cause = 'plan'
            then concat_ws(
                '; ',
                concat(
                    'kept both times, but the plan ',
                    case change when 'added' then 'had' else 'has' end,
                    ' no place for it'
                ),
                source_said,
                $plan_settings
            )
        when cause in ('filter', 'measures', 'filter_and_measures')
            then concat_ws('; ', measures, $filter)
        when cause = 'unknown'
            then concat('filtered by ', refusal_detail, ', of which nothing else is recorded')
        when change <> 're-weighted'
            then concat(
                case change when 'added' then 'was ' else 'is ' end,
                case refusal
                    when 'source_excluded' then 'excluded with its source (exclude_sources)'
                    when 'source_not_in_recipe' then 'of a source that the recipe leaves out'
                    when 'not_rated' then concat('not rated: ', refusal_detail)
                    when 'benchmark_overlap' then concat('part of a benchmark: ', refusal_detail)
                    when 'duplicate_content' then concat('the same as ', refusal_detail)
                    when 'near_duplicate' then concat('a near duplicate of ', refusal_detail)
                    when 'over_quota' then concat('over the quota ', refusal_detail)
                    when 'no_trainable_output' then 'without output to train on'
                    else concat(refusal, ' ', refusal_detail)
                end
            )
        else concat_ws(
            '; ',
            case
                when split_then <> split_now
                    then concat(
                        'split ', split_then, ' → ', split_now, ' (',
                        case
                            when task_key_then <> task_key_now then 'it is of another task now'
                            else coalesce($split_settings, 'nothing recorded differs')
                        end,
                        ')'
                    )
            end,
            case
                when times_then <> times_now
                    then concat(
                        'times ', times_then, ' → ', times_now, ' (',
                        concat_ws('; ', source_said, $plan_settings), ')'
                    )
            end,
            case
                when content_sha256_then <> content_sha256_now then 'it has another content'
            end,
            case
                when has_other_loss
                    then concat(
                        'trained tokens ', trained_tokens_then, ' → ', trained_tokens_now, ' (',
                        concat_ws(
                            '; ',
                            case
                                when reason_then <> reason_now
                                    then concat('verdict ', reason_then, ' → ', reason_now)
                            end,
                            case
                                when trained_steps_then is distinct from trained_steps_now
                                    then concat(
                                        'trained steps ',
                                        coalesce(cast(trained_steps_then as varchar), 'none'),
                                        ' → ',
                                        coalesce(cast(trained_steps_now as varchar), 'none')
                                    )
                                else 'the steps are told in other messages'
                            end,
                            $loss_settings
                        ),
                        ')'
                    )
            end,
            case
                when weight_then <> weight_now
                    then concat('weight ', weight_then, ' → ', weight_now)
            end,
            case when has_other_prefix then 'the model is told other metadata' end
        )
    end as why,
    raw_file,
    raw_position,
    * exclude (
        trajectory_id, source, change, cause, raw_file, raw_position, is_new_file, refusal,
        refusal_detail, measures, source_said, has_other_loss, has_other_prefix, task_key_then,
        task_key_now
    ),
from named
"""


def _as_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A change with what was and what is in objects of their own."""
    found: dict[str, Any] = {"then": {}, "now": {}}
    plain: dict[str, Any] = {}
    for key, value in row.items():
        side = next((side for side in found if key.endswith(f"_{side}")), None)
        if side is None:
            plain[key] = value
        else:
            found[side][key.removesuffix(f"_{side}")] = value
    return plain | found


def _named(export: Exported) -> dict[str, Any]:
    return {"export": export.name, "manifest": str(export.file), "recipe": export.recipe}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, collapse_padding=True)
    for column in columns:
        table.add_column(column)
    return table


def _print(comparison: Comparison, examples: int) -> None:
    console = Console(highlight=False)
    then, now = comparison.then, comparison.now
    console.print(line(f"then: {then.name} ({then.file})"), soft_wrap=True)
    console.print(line(f"now:  {now.name} ({now.file})"), soft_wrap=True)
    if comparison.settings:
        table = _table("Settings that differ", "setting", "then", "now")
        for each in comparison.settings:
            table.add_row(line(each.setting), line(each.then), line(each.now))
        console.print(table)
    else:
        console.print("No setting differs.")
    moved = ", ".join(f"{each.setting} {each.then} → {each.now}" for each in comparison.tables)
    console.print(line(f"Tables: {moved or 'all at the same versions'}."), soft_wrap=True)
    totals = comparison.totals()
    console.print(", ".join(f"{count:,} {name}" for name, count in totals.items()), style="bold")
    summary = comparison.summary()
    if summary:
        table = _table("By cause and source", "change", "cause", "source", "verdict")
        for column in table.columns[:3]:
            column.no_wrap = True
        for name in ("trajectories", "positions"):
            table.add_column(name, justify="right")
        for row in summary:
            verdict = f"{row['reason_then'] or 'not there'} → {row['reason_now'] or 'not there'}"
            table.add_row(
                row["change"],
                line(row["cause"]),
                line(row["source"]),
                line(verdict),
                f"{row['trajectories']:,}",
                f"{row['positions_then']:,} → {row['positions_now']:,}",
            )
        console.print(table)
    before = None
    for row in comparison.examples(examples):
        if before != (before := (row["change"], row["cause"])):
            console.print(line(f"{row['change']}: {row['cause']}"), style="bold")
        console.print(
            line(f"  {row['trajectory_id'][:16]}  {cut(row['why'] or '', 400)}"), soft_wrap=True
        )
    for note in comparison.notes:
        console.print(line(f"note: {note}"), soft_wrap=True)
    if sum(totals.values()) > totals["unchanged"]:
        console.print("All of them: --json. One of them: trajlake explain ID.")
