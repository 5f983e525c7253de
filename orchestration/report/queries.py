"""What the report asks of the lake: counts, and the few trajectories that it shows.

Every query is one of Delta tables alone, each at the version that was newest when the lake was
opened: the page is of one state, also while a build runs. All counting is done by DuckDB; what
comes back is as large as the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import duckdb
import pyarrow as pa

from udfs.curation.personal_data import redact
from udfs.errors import LakeError
from udfs.lake import open_table, path_scan, table_names, table_path
from udfs.settings import lake_root
from udfs.views import open_lake

Rows = list[dict[str, Any]]

_WORD = re.compile(r"\w+")

TABLES = (
    "benchmark_checks",
    "benchmark_items",
    "curated_trajectories",
    "funnel",
    "near_duplicates",
    "personal_data",
    "plan_sources",
    "plan_windows",
    "quarantine",
    "quota_settings",
    "recipe_settings",
    "sft_samples",
    "training_plan",
    "trajectories",
    "trajectory_flags",
)

# Rejected trajectories shown for each reason, of as many sources as there are.
SAMPLES = 4

# Candidates for the trajectories that are shown in full.
_DROPPED_CANDIDATES = 2
_KEPT_CANDIDATES = 12

# Characters of a text that are fetched for a table, which shows fewer: what is personal is looked
# for in all of them, so that none of it is cut in two where it is shown.
FETCHED = 2_000

# Query → its columns with texts of strangers.
_TEXTS: Mapping[str, tuple[str, ...]] = {
    "quarantine": ("detail",),
    "rejections": ("query", "last_output"),
    "copy_examples": ("query",),
    "cluster_examples": ("query",),
    "overlap_examples": ("matched_text",),
    "examples": ("system_prompt", "steps"),
}

_BEGINNING_OF_QUERY = f"""
    left(trajectories.user_query, {FETCHED}) as query,
    coalesce(length(trajectories.user_query), 0) as query_length
"""

# The verdicts of the recipe: what nearly every query starts from.
_VERDICTS = """
    verdicts as (
        select * from curated_trajectories where recipe = $recipe
    )
"""

QUERIES: Mapping[str, str] = {
    "settings": """
        select distinct on (matched_by) * exclude (recipe, source, is_excluded)
        from recipe_settings
        where recipe = $recipe
        order by matched_by
    """,
    "excluded_sources": """
        select source from recipe_settings where recipe = $recipe and is_excluded order by source
    """,
    "quotas": """
        select dimension, value, max_trajectories
        from quota_settings
        where recipe = $recipe
        order by dimension, value
    """,
    "funnel": "select * from funnel where recipe = $recipe order by source",
    "quarantine": f"""
        select
            source,
            reason,
            count(*) as records,
            left(min(detail), {FETCHED}) as detail,
            length(min(detail)) as detail_length
        from quarantine
        group by source, reason
        order by source, reason
    """,
    # A few of each reason and source by the smallest ids; then the sources of a reason in turn.
    "rejections": f"""
        with {_VERDICTS},
        smallest as (
            select reason, source, min(trajectory_id, {SAMPLES}) as ids
            from verdicts
            where not is_kept
            group by reason, source
        ),
        numbered as (
            select
                reason,
                source,
                unnest(ids) as trajectory_id,
                generate_subscripts(ids, 1) as turn
            from smallest
        ),
        chosen as (
            select reason, trajectory_id
            from numbered
            qualify
                row_number() over (
                    partition by reason order by turn, md5(concat(reason, source)), source
                ) <= {SAMPLES}
        )
        select
            verdicts.reason,
            verdicts.source,
            trajectory_id,
            left(verdicts.reason_detail, {FETCHED}) as reason_detail,
            coalesce(length(verdicts.reason_detail), 0) as reason_detail_length,
            verdicts.rater_score,
            verdicts.score,
            {_BEGINNING_OF_QUERY},
            left(trajectories.steps[-1].output, {FETCHED}) as last_output,
            coalesce(length(trajectories.steps[-1].output), 0) as last_output_length,
            len(trajectories.steps) as step_count,
            trajectories.raw_file,
            trajectories.raw_position
        from chosen
        inner join verdicts using (trajectory_id)
        inner join trajectories using (trajectory_id)
        order by verdicts.reason, md5(concat(verdicts.reason, verdicts.source)), trajectory_id
    """,
    # Halves of a point of the rater's 0 to 5; the highest has 5 itself.
    "rater_scores": f"""
        with {_VERDICTS}
        select
            source,
            count(*) as trajectories,
            count(rater_score) as known,
            round(avg(rater_score), 6) as mean,
            median(rater_score) as median,
            min(rater_score) as lowest,
            max(rater_score) as highest
        from verdicts
        group by source
        order by source
    """,
    "rater_bins": f"""
        with {_VERDICTS}
        select
            source,
            cast(greatest(0, least(floor(rater_score * 2), 9)) as integer) as bin,
            count(*) as trajectories,
            count(case when is_kept then 1 end) as kept
        from verdicts
        where rater_score is not null
        group by source, bin
        order by source, bin
    """,
    "scores": f"""
        with {_VERDICTS},
        scored as (
            select source, case when isfinite(score) then score end as score, score as any_score
            from verdicts
        )
        select
            source,
            count(*) as trajectories,
            count(score) as known,
            count(any_score) - count(score) as not_finite,
            count(distinct score) as distinct_values,
            round(avg(score), 6) as mean,
            median(score) as median,
            min(score) as lowest,
            max(score) as highest
        from scored
        group by source
        order by source
    """,
    "score_bins": f"""
        with {_VERDICTS},
        scored as (
            select
                source,
                score,
                is_kept,
                min(score) over (partition by source) as lowest,
                max(score) over (partition by source) as highest
            from verdicts
            where isfinite(score)
        )
        select
            source,
            case
                when highest > lowest
                    then
                        cast(
                            least(floor((score - lowest) / (highest - lowest) * 10), 9)
                            as integer
                        )
                else 0
            end as bin,
            count(*) as trajectories,
            count(case when is_kept then 1 end) as kept
        from scored
        group by source, bin
        order by source, bin
    """,
    # Spearman's: ranks, of equal values the mean of their ranks.
    "agreement": f"""
        with {_VERDICTS},
        ranked as (
            select
                source,
                score,
                rank() over (partition by source order by score)
                + (count(*) over (partition by source, score) - 1) / 2 as by_environment,
                rank() over (partition by source order by rater_score)
                + (count(*) over (partition by source, rater_score) - 1) / 2 as by_rater
            from verdicts
            where isfinite(score) and rater_score is not null
        )
        select
            source,
            count(*) as runs,
            case
                when count(distinct by_environment) > 1 and count(distinct by_rater) > 1
                    then round(corr(by_environment, by_rater), 6)
            end as rank_correlation,
            count(distinct by_environment) as environment_values,
            count(distinct by_rater) as rater_values,
            min(score) as lowest,
            max(score) as highest
        from ranked
        group by source
        order by source
    """,
    "agreement_cells": f"""
        with {_VERDICTS},
        scored as (
            select
                source,
                score,
                rater_score,
                min(score) over (partition by source) as lowest,
                max(score) over (partition by source) as highest
            from verdicts
            where isfinite(score) and rater_score is not null
        )
        select
            source,
            case
                when highest > lowest
                    then
                        cast(
                            least(floor((score - lowest) / (highest - lowest) * 5), 4)
                            as integer
                        )
                else 0
            end as score_bin,
            count(*) as runs,
            quantile_cont(rater_score, 0.25) as lower_quartile,
            median(rater_score) as median,
            quantile_cont(rater_score, 0.75) as upper_quartile,
            count(case when rater_score < 1 then 1 end) as rated_0,
            count(case when rater_score >= 1 and rater_score < 2 then 1 end) as rated_1,
            count(case when rater_score >= 2 and rater_score < 3 then 1 end) as rated_2,
            count(case when rater_score >= 3 and rater_score < 4 then 1 end) as rated_3,
            count(case when rater_score >= 4 then 1 end) as rated_4
        from scored
        group by source, score_bin
        order by source, score_bin
    """,
    "plan": "select * from plan_sources where recipe = $recipe order by source",
    # The last window may be shorter, and a share of few tokens says little.
    "windows": """
        with windows as (
            select
                *,
                sum(positions) over (partition by window_number) as window_positions,
                max(window_number) over () as last_window
            from plan_windows
            where recipe = $recipe
        ),
        placed as (
            select
                windows.*,
                abs(windows.positions - plan_sources.realised_share * window_positions)
                    as samples_off,
                window_positions = 1000 or last_window = 0 as is_whole
            from windows
            inner join plan_sources
                on windows.recipe = plan_sources.recipe and windows.source = plan_sources.source
        )
        select
            source,
            count(*) as windows,
            round(max(samples_off), 6) as samples_off,
            arg_min(window_number, (-round(samples_off, 6), window_number)) as worst_window,
            min(trained_token_share) filter (where is_whole) as lowest_token_share,
            max(trained_token_share) filter (where is_whole) as highest_token_share
        from placed
        group by source
        order by source
    """,
    "passes": """
        with repeated as (
            select source, trajectory_id, count(*) as times
            from training_plan
            where recipe = $recipe and split = 'train'
            group by source, trajectory_id
        )
        select source, times, count(*) as trajectories
        from repeated
        group by source, times
        order by source, times
    """,
    "copies": f"""
        with {_VERDICTS},
        contents as (
            select content_sha256, count(*) as copies, count(distinct source) as sources
            from verdicts
            group by content_sha256
            having count(*) > 1
        )
        select
            copies,
            count(*) as contents,
            count(case when sources > 1 then 1 end) as across_sources
        from contents
        group by copies
        order by copies
    """,
    "copy_examples": f"""
        with {_VERDICTS},
        contents as (
            select
                content_sha256,
                count(*) as copies,
                min(trajectory_id) as trajectory_id,
                list(distinct source order by source) as sources
            from verdicts
            group by content_sha256
            having count(*) > 1
            order by copies desc, content_sha256
            limit 5
        )
        select
            contents.copies,
            contents.sources,
            trajectory_id,
            {_BEGINNING_OF_QUERY}
        from contents
        inner join trajectories using (trajectory_id)
        order by contents.copies desc, contents.content_sha256
    """,
    "clusters": """
        select cluster_size, count(distinct cluster_id) as clusters
        from near_duplicates
        group by cluster_size
        order by cluster_size
    """,
    "cluster_examples": f"""
        with {_VERDICTS},
        largest as (
            select cluster_id, any_value(cluster_size) as cluster_size
            from near_duplicates
            group by cluster_id
            order by cluster_size desc, cluster_id
            limit 5
        ),
        members as (
            select
                cluster_id,
                largest.cluster_size,
                unnest(min(content_sha256, 3)) as content_sha256
            from near_duplicates
            inner join largest using (cluster_id)
            group by cluster_id, largest.cluster_size
        ),
        named as (
            select
                members.cluster_id,
                members.cluster_size,
                members.content_sha256,
                min(verdicts.trajectory_id) as trajectory_id
            from members
            inner join verdicts using (content_sha256)
            group by all
        )
        select
            named.cluster_id,
            named.cluster_size,
            near_duplicates.similarity,
            verdicts.source,
            verdicts.reason,
            trajectory_id,
            {_BEGINNING_OF_QUERY}
        from named
        inner join near_duplicates using (content_sha256)
        inner join verdicts using (trajectory_id)
        inner join trajectories using (trajectory_id)
        order by named.cluster_size desc, named.cluster_id, named.content_sha256
    """,
    "benchmarks": """
        select
            benchmark,
            count(distinct item_id) as items,
            count(case when problem is not null then 1 end) as problems
        from benchmark_items
        group by benchmark
        order by benchmark
    """,
    "checked": "select count(*) as trajectories from benchmark_checks",
    "overlap": f"""
        with {_VERDICTS},
        found as (
            select trajectory_id, unnest(matches) as match
            from benchmark_checks
            where len(matches) > 0
        )
        select
            found.match.benchmark as benchmark,
            verdicts.source,
            count(distinct found.match.item_id) as items,
            count(distinct trajectory_id) as trajectories,
            count(distinct case when verdicts.is_kept then trajectory_id end) as kept,
            count(case when found.match.kind = 'exact' then 1 end) as exact,
            count(case when found.match.kind = 'normalised' then 1 end) as normalised,
            count(case when found.match.kind = 'ngram' then 1 end) as ngram
        from found
        inner join verdicts using (trajectory_id)
        group by all
        order by benchmark, verdicts.source
    """,
    "overlap_examples": f"""
        with {_VERDICTS},
        found as (
            select trajectory_id, unnest(matches) as match
            from benchmark_checks
            where len(matches) > 0
        ),
        placed as (
            select
                found.match.benchmark as benchmark,
                found.match.item_id as item_id,
                found.match.kind as kind,
                found.match.where_found as where_found,
                found.match.overlap as overlap,
                left(found.match.matched_text, {FETCHED}) as matched_text,
                length(found.match.matched_text) as matched_text_length,
                verdicts.source,
                trajectory_id,
                row_number() over (
                    partition by found.match.benchmark, verdicts.source
                    order by trajectory_id, found.match.item_id
                ) as turn
            from found
            inner join verdicts using (trajectory_id)
        )
        select *
        from placed
        qualify
            row_number() over (
                partition by benchmark order by turn, source, trajectory_id, item_id
            ) <= 6
        order by benchmark, turn, source, trajectory_id, item_id
    """,
    "steps": f"""
        with {_VERDICTS}
        select
            verdicts.source,
            count(*) as trajectories,
            cast(sum(step_count) as bigint) as steps,
            cast(sum(len(unmasked_steps)) as bigint) as unmasked_steps,
            cast(sum(len(trainable_steps)) as bigint) as trainable_steps,
            count(first_error_step) as with_error,
            count(case when has_loop then 1 end) as with_loop,
            count(case when not is_finished then 1 end) as unfinished
        from trajectory_flags
        inner join verdicts using (trajectory_id)
        group by verdicts.source
        order by verdicts.source
    """,
    "flags": f"""
        with {_VERDICTS},
        found as (
            select trajectory_id, unnest(flags) as flag
            from trajectory_flags
            where len(flags) > 0
        )
        select
            verdicts.source,
            found.flag.flag as flag,
            count(distinct (trajectory_id, found.flag.step_id)) as steps,
            count(distinct trajectory_id) as trajectories
        from found
        inner join verdicts using (trajectory_id)
        group by all
        order by verdicts.source, flag
    """,
    "personal_kinds": f"""
        with {_VERDICTS},
        found as (
            select trajectory_id, unnest(kinds) as kind
            from personal_data
            where finding_count > 0
        )
        select
            verdicts.source,
            found.kind,
            count(*) as trajectories,
            count(case when verdicts.is_kept then 1 end) as kept
        from found
        inner join verdicts using (trajectory_id)
        group by all
        order by verdicts.source, found.kind
    """,
    # Where it is and of which kind; nothing of the excerpt.
    "personal_places": """
        with found as (
            select unnest(findings) as finding
            from personal_data
            where finding_count > 0
        )
        select
            finding.kind as kind,
            finding.field as place,
            count(*) as findings
        from found
        group by all
        order by kind, place
    """,
    "licences": f"""
        with {_VERDICTS}
        select
            trajectories.source,
            trajectories.license,
            trajectories.is_synthetic,
            min(trajectories.generator) as generator,
            count(distinct trajectories.generator) as generators,
            count(*) as trajectories,
            count(case when verdicts.is_kept then 1 end) as kept
        from trajectories
        inner join verdicts using (trajectory_id)
        group by trajectories.source, trajectories.license, trajectories.is_synthetic
        order by trajectories.source, trajectories.license, trajectories.is_synthetic
    """,
    # Dropped ones of each reason and source; kept ones of each source, of the tasks of the
    # dropped ones, and those that a dropped one is a copy of.
    "candidates": f"""
        with {_VERDICTS},
        dropped_ids as (
            select unnest(min(trajectory_id, {_DROPPED_CANDIDATES})) as trajectory_id
            from verdicts
            where not is_kept
            group by reason, source
        ),
        dropped as (
            select verdicts.* from verdicts inner join dropped_ids using (trajectory_id)
        ),
        kept_ids as (
            select unnest(min(trajectory_id, {_KEPT_CANDIDATES})) as trajectory_id
            from verdicts
            where is_kept
            group by source, reason
            union
            select min(trajectory_id)
            from verdicts
            where is_kept and task_key in (select task_key from dropped)
            group by task_key
            union
            select reason_detail
            from dropped
            where reason in ('duplicate_content', 'near_duplicate')
        ),
        kept as (
            select verdicts.* from verdicts inner join kept_ids using (trajectory_id)
            where is_kept
        )
        select trajectory_id, source, reason, reason_detail, task_key, is_kept
        from (select * from dropped union all select * from kept)
        order by trajectory_id
    """,
}

# Queries of which the page cannot do without: a lake without them is no lake of this project.
_NEEDED = ("settings", "funnel")

_EXAMPLES = """
    select
        trajectories.trajectory_id,
        trajectories.source,
        trajectories.environment,
        trajectories.model_name,
        trajectories.license,
        trajectories.system_prompt,
        trajectories.steps,
        trajectories.raw_file,
        trajectories.raw_position,
        verdicts.reason,
        verdicts.reason_detail,
        verdicts.rater_score,
        verdicts.score,
        verdicts.is_kept,
        verdicts.trained_steps
    from trajectories
    inner join curated_trajectories as verdicts
        on
            trajectories.trajectory_id = verdicts.trajectory_id
            and verdicts.recipe = $recipe
    where trajectories.trajectory_id in (select unnest($ids))
    order by trajectories.trajectory_id
"""

_EXAMPLE_FLAGS = """
    select trajectory_id, unmasked_steps, trainable_steps, sound_steps, flags
    from trajectory_flags
    where trajectory_id in (select unnest($ids))
    order by trajectory_id
"""


@dataclass
class Findings:
    """What the lake has answered.

    Attributes:
        recipe: the recipe.
        rows: name of a query → its rows; queries that could not be asked are not there.
        problems: name of a query that could not be asked → why, for a reader.
        versions: table → the Delta version that was read.
    """

    recipe: str
    rows: dict[str, Rows] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)


class Lake:
    """The tables of a lake as they were when this was made, for one recipe."""

    def __init__(self, recipe: str) -> None:
        """Open the lake.

        Raises:
            LakeError: it has not been built yet.
        """
        self._connection = open_lake(report=lambda line: None)  # no view is asked
        self.findings = Findings(recipe)
        there = set(table_names())
        for name in TABLES:
            table = open_table(name) if name in there else None
            if table is None:
                continue
            self.findings.versions[name] = table.version()
            self._connection.execute(
                f"create or replace temp view {name} as select * from "
                f"{path_scan(table_path(name), table.version())}"
            )

    def __enter__(self) -> Lake:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def ask_all(self) -> Findings:
        """Ask every query; one that this lake has no table or column for becomes a problem.

        Raises:
            LakeError: there is no such recipe, or nothing was built yet.
        """
        for name, sql in QUERIES.items():
            self._ask(name, sql, {"recipe": self.findings.recipe})
        for name in _NEEDED:
            if name in self.findings.problems:
                raise LakeError(
                    f"The lake at {lake_root()} cannot be reported on. "
                    f"{self.findings.problems[name]}"
                )
        if not self.findings.rows["settings"]:
            known = self._connection.execute(
                "select distinct recipe from recipe_settings order by recipe"
            ).fetchall()
            raise LakeError(
                f"There is no recipe '{self.findings.recipe}' in the lake; there are: "
                f"{', '.join(name for (name,) in known) or 'none'}. Add it to "
                "dbt_project/seeds/recipes.csv and run `dbt build`."
            )
        return self.findings

    def ask_examples(self, ids: Sequence[str]) -> None:
        """Fetch the trajectories that are shown in full, with their flags."""
        self._ask("examples", _EXAMPLES, {"recipe": self.findings.recipe, "ids": list(ids)})
        self._ask("example_flags", _EXAMPLE_FLAGS, {"ids": list(ids)})

    def _ask(self, name: str, sql: str, parameters: Mapping[str, Any]) -> None:
        words = set(_WORD.findall(sql))
        tables = [table for table in TABLES if table in words]
        for table in tables:
            if table not in self.findings.versions:
                self.findings.problems[name] = (
                    f"This lake has no table {table}. `dbt build` makes it."
                )
                return
        used = {key: value for key, value in parameters.items() if f"${key}" in sql}
        try:
            found = self._connection.execute(sql, used).to_arrow_table()
        except duckdb.BinderException as error:
            self.findings.problems[name] = (
                f"This lake's {' or '.join(tables)} is not as this version of the project makes "
                f"it ({str(error).splitlines()[0]}). `dbt build` makes it anew."
            )
        else:
            self.findings.rows[name] = _redacted(found, _TEXTS.get(name, ())).to_pylist()


def _redacted(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Rows with placeholders where these columns have personal data or secrets."""
    for name in names:
        at = rows.schema.get_field_index(name)
        rows = rows.set_column(at, name, redact(rows[name].combine_chunks()))
    return rows
