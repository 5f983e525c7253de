{{ config(severity="warn") }}

with given as (

    select
        content_sha256,
        trajectory_id,
        label,
        labelled_by,
    from {{ ref("given_labels") }}
    union all
    select
        content_sha256,
        trajectory_id,
        label,
        labelled_by,
    from {{ ref("human_labels") }}

)

select
    given.*,
    'no trajectory in the lake has this id or content' as failure_reason,
from given
where
    not exists (
        select 1
        from {{ ref("trajectories") }} as trajectories
        where
            given.content_sha256 = trajectories.content_sha256
            or given.trajectory_id = trajectories.trajectory_id
    )
