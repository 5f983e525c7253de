with curated_trajectories as (

    select * from {{ ref("curated_trajectories") }}

),

trajectories as (

    select * from {{ ref("trajectories") }}

),

rejected as (

    select
        curated_trajectories.recipe,
        curated_trajectories.trajectory_id,
        curated_trajectories.source,
        curated_trajectories.reason,
        curated_trajectories.reason_detail,
        curated_trajectories.rater_score,
        curated_trajectories.score,
        trajectories.user_query,
        {{ last_output("trajectories.steps") }} as last_output,
        {{ length_of("trajectories.steps") }} as step_count,
        trajectories.raw_file,
        trajectories.raw_position,
    from curated_trajectories
    inner join trajectories using (trajectory_id)
    where not curated_trajectories.is_kept

)

select * from rejected
