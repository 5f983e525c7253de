-- As it is now: a run that has grown since is gone through anew.
select trajectories.trajectory_id
from {{ ref("trajectories") }} as trajectories
left join {{ ref("personal_data") }} as searched
    on
        trajectories.trajectory_id = searched.trajectory_id
        and trajectories.content_sha256 = searched.content_sha256
where searched.trajectory_id is null
