{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set key = verifier_key() %}
{{ rebuild_on(key) }}

with pending as (

    select
        trajectory_id,
        content_sha256,
        tools,
        steps,
    from {{ pending_trajectories(key) }}

),

verified as (

    select
        trajectory_id,
        content_sha256,
        verify(tools, steps) as result,
    from pending

),

described as (

    select
        trajectory_id,
        content_sha256,
        result.calls,
        result.calls_checked,
        result.format_ok,
        result.first_failed_step,
        result.failures,
        result.error_observations,
        result.error_classes,
        result.errors,
    from verified

)

select * from described
