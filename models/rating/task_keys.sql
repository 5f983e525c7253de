{{ config(materialized="delta", on_schema_change="replace") }}

with trajectories as (

    select
        trajectory_id,
        content_sha256,
        source,
        task_id,
        {{ query_md5("user_query") }} as query_md5,
    from {{ ref("trajectories") }}

),

-- Some sources open every run with the same instruction and name the task later. Taken for a
-- task, such a text would put a whole source into one split. A task that was run again and
-- again under ids of its own is hardly ever there twenty times.
instructions as (

    select
        source,
        query_md5,
    from trajectories
    group by 1, 2
    having count(distinct task_id) >= 20

),

named as (

    select
        trajectories.trajectory_id,
        trajectories.content_sha256,
        md5(coalesce(
            case
                when instructions.query_md5 is null then 'query ' || trajectories.query_md5
            end,
            'task ' || trajectories.source || ' ' || trajectories.task_id,
            'trajectory ' || trajectories.trajectory_id
        )) as task_key,
    from trajectories
    left join instructions
        on
            trajectories.source = instructions.source
            and trajectories.query_md5 = instructions.query_md5

)

select * from named
