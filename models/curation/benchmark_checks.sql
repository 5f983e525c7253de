{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
-- depends_on: {{ ref("benchmark_items") }}
{%- set settings = overlap_settings() %}
{%- set key = local_md5(settings) %}
{{ rebuild_on(key) }}

-- Without a benchmark there is nothing to check against, and no row says that somebody has looked.
with pending as (

    select
        trajectory_id,
        content_sha256,
        user_query,
        system_prompt,
        steps,
    from {{ pending_trajectories(key) }}
    where {{ "true" if settings else "false" }}

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
