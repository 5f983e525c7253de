{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set key = step_rules_key() %}
{{ rebuild_on(key) }}

with trajectories as (

    select * from {{ ref("trajectories") }}

),

verifications as (

    select * from {{ ref("verifications") }}

),

-- New ones, and runs that have grown since they were flagged.
pending as (

    select
        trajectory_id,
        content_sha256,
        score,
        steps,
    from trajectories
    {% if is_delta_incremental(key) -%}
    where
        not exists (
            select 1
            from {{ this }} as flagged
            where
                flagged.trajectory_id = trajectories.trajectory_id
                and flagged.content_sha256 = trajectories.content_sha256
        )
    {%- endif %}

),

-- Only what is verified as it is now: flags without its failures would stay.
flagged as (

    select
        pending.trajectory_id,
        pending.content_sha256,
        flag_steps(
            pending.steps, verifications.failures, verifications.errors, pending.score
        ) as result,
    from pending
    inner join verifications
        on
            pending.trajectory_id = verifications.trajectory_id
            and pending.content_sha256 = verifications.content_sha256

),

described as (

    select
        trajectory_id,
        content_sha256,
        result.step_count,
        result.unmasked_steps,
        result.trainable_steps,
        result.sound_steps,
        result.flags,
        result.flag_names,
        result.flagged_step_count,
        result.first_error_step,
        result.repeated_step_count,
        result.self_correction_count,
        result.has_loop,
        result.is_finished,
    from flagged

)

select * from described
