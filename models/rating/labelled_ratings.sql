with trajectories as (

    select * from {{ ref("trajectories") }}

),

task_keys as (

    select * from {{ ref("task_keys") }}

),

ratings as (

    select * from {{ ref("ratings") }}
    where status = 'ok'

),

-- Several labellers count the same.
labelled as (

    select
        labels.content_sha256,
        labels.label,
        avg(labels.value) as value,
        count(*) as labellers,
    from {{ ref("labels") }} as labels
    where labels.value is not null
    group by labels.content_sha256, labels.label

),

contents as (

    select
        trajectories.content_sha256,
        min(task_keys.task_key) as task_key,
        min(trajectories.source) as source,
        min(coalesce(trajectories.environment, trajectories.source)) as environment,
        min(trajectories.score) as environment_score,
        max({{ output_characters("trajectories.steps") }}) as output_characters,
    from trajectories
    inner join task_keys on trajectories.trajectory_id = task_keys.trajectory_id
    where trajectories.content_sha256 in (select labelled.content_sha256 from labelled)
    group by trajectories.content_sha256

),

ranked as (

    select
        *,
        row_number() over (
            partition by content_sha256, rater_id
            order by rated_at desc, attempt desc, rating_id asc
        ) as rating_rank,
    from ratings

),

joined as (

    select
        ranked.rating_id,
        labelled.label,
        ranked.content_sha256,
        ranked.rater_id,
        ranked.rater,
        ranked.rate_model,
        ranked.prompt_version,
        ranked.rated_at,
        contents.source,
        contents.environment,
        contents.task_key,
        contents.environment_score,
        contents.output_characters,
        labelled.labellers,
        labelled.value,
        (labelled.value - label_kinds.lowest)
        / (label_kinds.highest - label_kinds.lowest) as label_share,
        labelled.value >= label_kinds.success_at as is_success,
        ranked.rater_score,
        coalesce(
            ranked.rater = 'local'
            and {{ json_text("ranked.raw_response", "$.is_trained_on") }} = 'true',
            false
        ) as is_trained_on,
    from ranked
    inner join labelled on ranked.content_sha256 = labelled.content_sha256
    inner join contents on ranked.content_sha256 = contents.content_sha256
    inner join {{ ref("label_kinds") }} as label_kinds on labelled.label = label_kinds.label
    where ranked.rating_rank = 1

)

select * from joined
