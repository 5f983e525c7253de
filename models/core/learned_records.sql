with record_shapes as (

    select * from {{ ref("record_shapes") }}

),

format_mappings as (

    select * from {{ ref("format_mappings") }}

),

standardized_records as (

    select * from {{ ref("standardized_records") }}

),

-- Of each shape, the newest mapping that was accepted; else the newest one that was not.
current_mappings as (

    select
        source,
        shape_sha256,
        mapping,
        status,
        failed_check,
        detail,
    from (
        select
            *,
            row_number() over (
                partition by source, shape_sha256
                order by
                    case when status = 'accepted' then 0 else 1 end,
                    created_at desc,
                    attempt desc
            ) as place,
        from format_mappings
    )
    where place = 1

),

-- Likewise of each record's answers.
current_answers as (

    select
        source,
        raw_sha256,
        answer,
        status,
        failed_check,
        detail,
    from (
        select
            *,
            row_number() over (
                partition by source, raw_sha256
                order by
                    case when status = 'accepted' then 0 else 1 end,
                    created_at desc,
                    attempt desc
            ) as place,
        from standardized_records
    )
    where place = 1

),

learned as (

    select
        record_shapes.raw_record_id,
        case
            when current_mappings.status = 'accepted'
                then concat('{"mapping":', current_mappings.mapping, '}')
            when current_answers.status = 'accepted'
                then concat('{"answer":', current_answers.answer, '}')
        end as reading,
        case
            when current_answers.status <> 'accepted'
                then concat(
                    'A model was asked about this record: ',
                    coalesce(current_answers.failed_check, current_answers.status),
                    '. ',
                    current_answers.detail
                )
            when current_mappings.status <> 'accepted'
                then concat(
                    'A model was asked for a mapping: ',
                    coalesce(current_mappings.failed_check, current_mappings.status),
                    '. ',
                    current_mappings.detail
                )
        end as note,
    from record_shapes
    left join current_mappings
        on
            record_shapes.source = current_mappings.source
            and record_shapes.shape_sha256 = current_mappings.shape_sha256
    left join current_answers
        on
            record_shapes.source = current_answers.source
            and record_shapes.raw_sha256 = current_answers.raw_sha256
    where
        record_shapes.shape_sha256 is not null
        and (
            current_mappings.status is not null
            or current_answers.status is not null
        )

)

select * from learned
