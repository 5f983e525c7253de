{{ config(
    materialized="delta",
    strategy="upsert",
    unique_key="trajectory_id",
    delete_when_null="steps",
) }}
{%- set key = standardizer_key() %}
{{ rebuild_on(key) }}

with first_copies as (

    select
        raw_record_id,
        landed_at,
    from {{ first_copies(ref("raw_records")) }}

),

pending as (

    select
        raw_record_id,
        landed_at,
    from first_copies
    where {{ is_new_record("raw_record_id", key, among="unnest(raw_record_ids)") }}

),

-- Records that are parts of a trajectory: which one. Only these are put together below; all
-- others pass through one by one, however many there are.
new_parts as materialized (

    select
        raw_record_id,
        landed_at,
        {{ group_id("source", "part") }} as trajectory_id,
    from (
        select
            raw_record_id,
            landed_at,
            source,
            part_group(
                raw, raw_key, settings.format, settings.parser_options
            ) as part,
        from {{ records_of("pending") }}
    )
    where part is not null

),

-- With the parts that came in earlier builds, so that their trajectory is made anew from all.
parts as materialized (

    select
        raw_record_id,
        landed_at,
    from new_parts
    {% if is_delta_incremental(key) -%}
    union
    select
        raw_record_id,
        landed_at,
    from {{ ref("raw_records") }}
    where
        raw_record_id in (
            select unnest(raw_record_ids) from {{ this }}
            where trajectory_id in (select trajectory_id from new_parts)
        )
    {%- endif %}

),

whole_records as (

    select
        raw_record_id,
        landed_at,
    from pending
    where raw_record_id not in (select raw_record_id from new_parts)

),

parsed as (

    {{ parsed_records("whole_records") }}

),

unnested as (

    select
        *,
        unnest(result.trajectories) as trajectory,
        generate_subscripts(result.trajectories, 1) as position_in_record,
    from parsed

),

whole as (

    select
        {{ sha256_hex(
            "concat_ws(chr(10), source, raw_sha256, position_in_record)"
        ) }} as trajectory_id,
        raw_record_id,
        [raw_record_id] as raw_record_ids,
        source,
        raw_file,
        raw_position,
        raw_sha256,
        landed_at,
        result.format,
        result.format_confidence,
        result.parser_version,
        trajectory,
    from unnested

),

parsed_parts as (

    {{ parsed_records("parts") }}

),

placed_parts as (

    select
        *,
        result.trajectories[1] as trajectory,
        result.trajectories[1].part_of.position as place,
        {{ group_id(
            "source",
            "{'format': result.format, 'group_key': result.trajectories[1].part_of.group_key}"
        ) }} as trajectory_id,
    from parsed_parts

),

grouped as (

    {% set order = ["place", "landed_at", "raw_file", "raw_position"] -%}
    select
        trajectory_id,
        source,
        {{ ordered_list("raw_record_id", order) }} as raw_record_ids,
        {{ ordered_list("raw_file", order) }}[1] as raw_file,
        {{ ordered_list("raw_position", order) }}[1] as raw_position,
        {{ ordered_list("raw_sha256", order) }}[1] as raw_sha256,
        max(landed_at) as landed_at,
        min(result.format) as format,
        min(result.format_confidence) as format_confidence,
        min(result.parser_version) as parser_version,
        {{ ordered_list("trajectory", order) }} as trajectories,
        count(place) > count(distinct place) as has_conflict,
    from placed_parts
    group by trajectory_id, source

),

-- Two records that claim the same place are not one run: the group has no steps, which takes an
-- earlier trajectory of it away, and quarantine says why.
merged as (

    select
        trajectory_id,
        raw_record_ids[1] as raw_record_id,
        raw_record_ids,
        source,
        raw_file,
        raw_position,
        raw_sha256,
        landed_at,
        format,
        format_confidence,
        parser_version,
        case when not has_conflict then merge_parts(trajectories) end as trajectory,
    from grouped

),

all_trajectories as (

    select * from whole
    union all
    select * from merged

),

declared as (

    select
        *,
        source_settings(source) as settings,
    from all_trajectories

),

described as (

    select
        trajectory_id,
        raw_record_id,
        raw_record_ids,
        trajectory.content_sha256,
        source,
        settings.environment,
        settings.task_type,
        trajectory.task_id,
        trajectory.user_query,
        trajectory.system_prompt,
        trajectory.tools,
        coalesce(trajectory.model_name, settings.model_name) as model_name,
        trajectory.score,
        trajectory.steps,
        trajectory.other_information,
        settings.license,
        settings.is_synthetic,
        settings.generator,
        raw_file,
        raw_position,
        raw_sha256,
        format,
        format_confidence,
        parser_version,
        landed_at as ingested_at,
    from declared

)

select * from described
