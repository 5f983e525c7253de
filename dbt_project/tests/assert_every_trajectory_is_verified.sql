-- As it is now: a run that has grown since is verified anew.
select trajectories.trajectory_id
from {{ ref("trajectories") }} as trajectories
left join {{ ref("verifications") }} as verifications
    on
        trajectories.trajectory_id = verifications.trajectory_id
        and trajectories.content_sha256 = verifications.content_sha256
where verifications.trajectory_id is null
