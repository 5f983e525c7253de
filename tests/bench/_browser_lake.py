"""A lake for the browser's benchmark: synthetic trajectories, and the tables that a build makes.

    python tests/bench/_browser_lake.py 1000000 lake

The trajectories are those of `_synthetic`; verdicts, flags, ratings and the plan are derived from
them by SQL, with the columns that dbt's models have, so that nothing has to be built.
"""

from __future__ import annotations

import sys
from pathlib import Path

import duckdb
from _synthetic import reader
from deltalake import WriterProperties, write_deltalake

from udfs.lake import load_delta_extension

_WRITER = WriterProperties(compression="ZSTD", compression_level=1, max_row_group_size=65_536)

# From 0 to 5, four in five of them 4 or more.
_SCORE = "case when score < 0.2 then 1.25 + 10 * score else 4.5 end"

TABLES = {
    "ratings": f"""
        select distinct on (content_sha256)
            content_sha256 as rating_id,
            content_sha256,
            'rules-1' as rater_id,
            'rules' as rater,
            'rules' as rate_model,
            '{{}}' as rate_parameters,
            '1' as prompt_version,
            {_SCORE} as rater_score,
            'Nothing to complain of.' as explanation,
            'ok' as status,
            cast(null as varchar) as raw_response,
            cast(900 as bigint) as prompt_tokens,
            cast(120 as bigint) as completion_tokens,
            cast(0.0004 as double) as cost_usd,
            cast(1 as integer) as attempt,
            cast(null as varchar) as judge,
            timestamptz '2026-01-01 00:00:00+00' + interval (raw_position % 30) day as rated_at,
            cast(1 as double) as shown_share,
            cast(null as struct(step_id integer, score double, critique varchar)[]) as step_scores,
            cast(null as integer) as first_error_step
        from trajectories
    """,
    "curated_trajectories": f"""
        select
            'default' as recipe,
            trajectory_id,
            content_sha256,
            source,
            md5(concat(source, task_id)) as task_key,
            case when {_SCORE} < 4 then 'filtered' else 'kept' end as reason,
            case when {_SCORE} < 4 then 'rater_score >= 4.0' end as reason_detail,
            {_SCORE} as rater_score,
            score,
            case when {_SCORE} >= 4 then range(1, len(steps) + 1)::integer[] end as trained_steps,
            {_SCORE} >= 4 as is_kept
        from trajectories
    """,
    "trajectory_flags": """
        select
            trajectory_id,
            content_sha256,
            cast(len(steps) as integer) as step_count,
            range(1, len(steps) + 1)::integer[] as unmasked_steps,
            range(1, len(steps) + 1)::integer[] as trainable_steps,
            range(1, len(steps) + 1)::integer[] as sound_steps,
            cast([] as struct(step_id integer, flag varchar, detail varchar)[]) as flags,
            cast([] as varchar[]) as flag_names,
            cast(raw_position % 7 // 6 as integer) as flagged_step_count,
            cast(null as integer) as first_error_step,
            cast(0 as integer) as repeated_step_count,
            cast(0 as integer) as self_correction_count,
            raw_position % 50 = 0 as has_loop,
            raw_position % 30 > 0 as is_finished
        from trajectories
    """,
    "conversations": """
        select
            trajectory_id,
            content_sha256,
            cast(300 + hash(trajectory_id) % 900 as bigint) as estimated_tokens
        from trajectories
    """,
    "verifications": """
        select
            trajectory_id,
            content_sha256,
            cast(len(steps) as integer) as calls,
            cast(len(steps) as integer) as calls_checked,
            true as format_ok,
            cast(null as integer) as first_failed_step,
            cast([] as struct(step_id integer, call_number integer)[]) as failures,
            cast(0 as integer) as error_observations,
            cast([] as varchar[]) as error_classes,
            cast([] as struct(step_id integer, error_class varchar, detail varchar)[]) as errors
        from trajectories
    """,
    "personal_data": """
        select
            trajectory_id,
            content_sha256,
            cast([] as varchar[]) as kinds,
            cast(0 as integer) as finding_count,
            cast([] as struct(step_id integer, field varchar, kind varchar)[]) as findings
        from trajectories
    """,
    "benchmark_checks": """
        select
            trajectory_id,
            content_sha256,
            cast(['quiz'] as varchar[]) as benchmarks,
            cast([] as struct(benchmark varchar, item_id varchar, kind varchar)[]) as matches
        from trajectories
    """,
    "near_duplicates": """
        select content_sha256, any_value(content_sha256) as cluster_id,
            cast(2 as bigint) as cluster_size, cast(0.9 as double) as similarity
        from trajectories
        where raw_position % 12 = 0
        group by content_sha256
    """,
    "task_keys": """
        select trajectory_id, content_sha256, md5(concat(source, task_id)) as task_key
        from trajectories
    """,
    "training_plan": f"""
        select
            'default' as recipe,
            'train' as split,
            cast(epoch as integer) as epoch,
            raw_position * 2 + epoch as position,
            trajectory_id,
            source,
            cast(1 as integer) as pass
        from trajectories
        cross join range(2) as epochs (epoch)
        where {_SCORE} >= 4
    """,
    "sft_samples": f"""
        select
            'default' as recipe,
            trajectory_id,
            source,
            'train' as split,
            license,
            cast([] as boolean[]) as loss_flags,
            cast(1 as double) as weight,
            cast(500 as bigint) as estimated_tokens,
            cast(200 as bigint) as trained_tokens,
            cast(null as varchar) as metadata_prefix
        from trajectories
        where {_SCORE} >= 4
    """,
    "raw_records": """
        select
            raw_record_id,
            source,
            raw_file,
            raw_position,
            cast(0 as bigint) as raw_offset,
            cast(octet_length(encode(to_json(steps)::varchar)) as bigint) as raw_bytes,
            raw_sha256,
            raw_sha256 as file_sha256,
            ingested_at as landed_at,
            encode(to_json(steps)::varchar) as raw
        from trajectories
    """,
    "funnel": f"""
        select
            'default' as recipe,
            source,
            count(*) as raw_records,
            cast(0 as bigint) as quarantined,
            count(*) as trajectories,
            count(*) as rated,
            count(case when {_SCORE} < 4 then 1 end) as filtered,
            count(case when {_SCORE} >= 4 then 1 end) as kept,
            cast(0 as bigint) as salvaged,
            count(*) as kept_tasks,
            count(case when {_SCORE} >= 4 then 1 end) as train_trajectories,
            2 * count(case when {_SCORE} >= 4 then 1 end) as train_positions,
            cast(0 as bigint) as eval_trajectories
        from trajectories
        group by source
    """,
    "quarantine": """
        select source, trajectory_id as raw_record_id, 'invalid_json' as reason, 'no' as detail
        from trajectories
        limit 0
    """,
    "human_labels": """
        select
            trajectory_id as human_label_id, content_sha256, trajectory_id, 'human' as label,
            cast(4 as double) as value, 'ada' as labelled_by, '' as note,
            ingested_at as labelled_at
        from trajectories
        where raw_position % 5000 = 0
    """,
}


def write_lake(rows: int, lake: Path) -> None:
    """Write the tables of a lake of so many trajectories."""
    write_deltalake(lake / "trajectories", reader(rows), writer_properties=_WRITER)
    with duckdb.connect() as connection:
        load_delta_extension(connection)
        connection.execute(
            f"create view trajectories as select * from delta_scan('{lake}/trajectories')"
        )
        connection.execute("set timezone = 'UTC'")
        for name, sql in TABLES.items():
            stream = connection.execute(sql).to_arrow_reader(65_536)
            write_deltalake(lake / name, stream, writer_properties=_WRITER)


if __name__ == "__main__":
    write_lake(int(sys.argv[1]), Path(sys.argv[2]))
