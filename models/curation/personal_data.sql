{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set key = personal_data_key() %}
{{ rebuild_on(key) }}

with pending as (

    select
        trajectory_id,
        content_sha256,
        user_query,
        system_prompt,
        tools,
        other_information,
        steps,
    from {{ pending_trajectories(key) }}

),

searched as (

    select
        trajectory_id,
        content_sha256,
        find_personal_data(
            user_query, system_prompt, tools, other_information, steps
        ) as result,
    from pending

),

described as (

    select
        trajectory_id,
        content_sha256,
        result.kinds,
        result.finding_count,
        result.findings,
    from searched

)

select * from described
