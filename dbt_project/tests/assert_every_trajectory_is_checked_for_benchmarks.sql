-- As it is now, wherever there is a benchmark: a run that has grown since is checked anew.
select trajectories.trajectory_id
from {{ ref("trajectories") }} as trajectories
left join {{ ref("benchmark_checks") }} as benchmark_checks
    on
        trajectories.trajectory_id = benchmark_checks.trajectory_id
        and trajectories.content_sha256 = benchmark_checks.content_sha256
where
    benchmark_checks.trajectory_id is null
    and exists (
        select 1
        from {{ ref("benchmark_items") }}
        where problem is null
    )
