{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set key = personal_data_key() %}
{{ rebuild_on(key) }}

with trajectories as (

    select * from {{ ref("trajectories") }}

),

-- New ones, and runs that have grown since they were gone through.
pending as (

    select
        trajectory_id,
        content_sha256,
        user_query,
        system_prompt,
        tools,
        other_information,
        steps,
    from trajectories
    {% if is_delta_incremental(key) -%}
    where
        not exists (
            select 1
            from {{ this }} as searched
            where
                searched.trajectory_id = trajectories.trajectory_id
                and searched.content_sha256 = trajectories.content_sha256
        )
    {%- endif %}

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
