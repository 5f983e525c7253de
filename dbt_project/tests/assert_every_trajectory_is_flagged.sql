-- As it is now: a run that has grown since is flagged anew.
select trajectories.trajectory_id
from {{ ref("trajectories") }} as trajectories
left join {{ ref("trajectory_flags") }} as trajectory_flags
    on
        trajectories.trajectory_id = trajectory_flags.trajectory_id
        and trajectories.content_sha256 = trajectory_flags.content_sha256
where trajectory_flags.trajectory_id is null
