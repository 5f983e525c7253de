{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set key = step_rules_key() %}
{{ rebuild_on(key) }}

with verifications as (

    select * from {{ ref("verifications") }}

),

pending as (

    select
        trajectory_id,
        content_sha256,
        score,
        steps,
    from {{ pending_trajectories(key) }}

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
