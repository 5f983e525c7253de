{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
-- depends_on: {{ ref("benchmark_items") }}
{%- set settings = overlap_settings() %}
{%- set key = local_md5(settings) %}
{{ rebuild_on(key) }}

with trajectories as (

    select * from {{ ref("trajectories") }}

),

-- New ones, and runs that have grown since they were checked. Without a benchmark there is
-- nothing to check against, and no row says that somebody has looked.
pending as (

    select
        trajectory_id,
        content_sha256,
        user_query,
        system_prompt,
        steps,
    from trajectories
    {% if not settings -%}
    where false
    {%- elif is_delta_incremental(key) -%}
    where
        not exists (
            select 1
            from {{ this }} as checked
            where
                checked.trajectory_id = trajectories.trajectory_id
                and checked.content_sha256 = trajectories.content_sha256
        )
    {%- endif %}

),

checked as (

    select
        trajectory_id,
        content_sha256,
        find_overlap({{ text_literal(settings) }}, user_query, system_prompt, steps) as matches,
    from pending

),

described as (

    select
        trajectory_id,
        content_sha256,
        {{ benchmarks_of("matches") }} as benchmarks,
        matches,
    from checked

)

select * from described
