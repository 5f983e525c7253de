{{ config(materialized="delta", on_schema_change="replace") }}

with trajectories as (

    select * from {{ ref("trajectories") }}

),

label_sources as (

    select * from {{ ref("label_sources") }}

),

sources as (

    select distinct source from trajectories

),

-- `*` stands for the sources that have no row of their own for the label.
fields as (

    select
        sources.source,
        label_sources.label,
        label_sources.field,
        label_sources.labelled_by,
    from sources
    inner join label_sources
        on
            sources.source = label_sources.source
            or (
                label_sources.source = '*'
                and not exists (
                    select 1
                    from label_sources as own
                    where own.source = sources.source and own.label = label_sources.label
                )
            )

),

found as (

    select
        trajectories.content_sha256,
        fields.label,
        fields.labelled_by,
        case
            when fields.field = 'score' then cast(trajectories.score as varchar)
            else {{ json_text_at("trajectories.other_information", "fields.field") }}
        end as said,
    from trajectories
    inner join fields on trajectories.source = fields.source

),

-- What is no number and neither yes nor no has no value; the note says what stands there.
declared as (

    select
        content_sha256,
        label,
        case
            when lower(said) in ('true', 'yes') then 1.0
            when lower(said) in ('false', 'no') then 0.0
            else try_cast(said as double)
        end as value,
        labelled_by,
        said as note,
        cast(null as timestamp with time zone) as labelled_at,
    from found
    where said is not null

),

written as (

    select
        content_sha256,
        trajectory_id,
        label,
        value,
        labelled_by,
        note,
        labelled_at,
    from {{ ref("given_labels") }}
    union all
    select
        content_sha256,
        trajectory_id,
        label,
        value,
        labelled_by,
        note,
        labelled_at,
    from {{ ref("human_labels") }}

),

named as (

    select
        coalesce(written.content_sha256, trajectories.content_sha256) as content_sha256,
        written.label,
        written.value,
        written.labelled_by,
        written.note,
        written.labelled_at,
    from written
    left join trajectories on written.trajectory_id = trajectories.trajectory_id

),

together as (

    select * from declared
    union all
    select * from named
    where content_sha256 is not null

),

-- Of several by the same labeller the newest counts; where none is newer, the worst.
ranked as (

    select
        *,
        row_number() over (
            partition by content_sha256, label, labelled_by
            order by labelled_at desc nulls last, value asc nulls last, note asc
        ) as label_rank,
    from together

),

described as (

    select
        {{ sha256_hex(
            "concat_ws(chr(10), content_sha256, label, labelled_by)"
        ) }} as label_id,
        content_sha256,
        label,
        cast(value as double) as value,
        labelled_by,
        note,
        labelled_at,
    from ranked
    where label_rank = 1

)

select * from described
