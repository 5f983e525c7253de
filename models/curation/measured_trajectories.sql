with rated_trajectories as (

    select * from {{ ref("rated_trajectories") }}

),

task_keys as (

    select * from {{ ref("task_keys") }}

),

conversations as (

    select * from {{ ref("conversations") }}

),

trajectory_flags as (

    select * from {{ ref("trajectory_flags") }}

),

near_duplicates as (

    select * from {{ ref("near_duplicates") }}

),

benchmark_checks as (

    select * from {{ ref("benchmark_checks") }}

),

personal_data as (

    select * from {{ ref("personal_data") }}

),

measured as (

    select
        rated_trajectories.*,
        task_keys.task_key,
        conversations.estimated_tokens,
        trajectory_flags.step_count,
        {{ length_of("trajectory_flags.trainable_steps") }} as trainable_step_count,
        trajectory_flags.flagged_step_count,
        trajectory_flags.repeated_step_count,
        trajectory_flags.self_correction_count,
        trajectory_flags.first_error_step,
        trajectory_flags.has_loop,
        trajectory_flags.is_finished,
        trajectory_flags.flag_names,
        near_duplicates.cluster_id as near_duplicate_cluster,
        near_duplicates.cluster_size as near_duplicate_cluster_size,
        benchmark_checks.benchmarks,
        personal_data.kinds as personal_data_kinds,
        personal_data.finding_count as personal_data_count,
    from rated_trajectories
    left join task_keys on rated_trajectories.trajectory_id = task_keys.trajectory_id
    left join conversations -- noqa: ST11
        on rated_trajectories.trajectory_id = conversations.trajectory_id
    left join trajectory_flags -- noqa: ST11
        on rated_trajectories.trajectory_id = trajectory_flags.trajectory_id
    left join near_duplicates -- noqa: ST11
        on rated_trajectories.content_sha256 = near_duplicates.content_sha256
    left join benchmark_checks -- noqa: ST11
        on rated_trajectories.trajectory_id = benchmark_checks.trajectory_id
    left join personal_data -- noqa: ST11
        on rated_trajectories.trajectory_id = personal_data.trajectory_id

)

select * from measured
