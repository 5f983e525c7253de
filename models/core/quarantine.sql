{{ config(materialized="delta", strategy="append") }}
{%- set key = standardizer_key() %}
{{ rebuild_on(key) }}

with raw_records as (

    select * from {{ ref("raw_records") }}

),

trajectories as (

    select distinct unnest(raw_record_ids) as raw_record_id from {{ ref("trajectories") }}

),

first_copies as (

    select
        raw_record_id,
        source,
        raw_sha256,
        raw_file,
        raw_position,
    from {{ first_copies(ref("raw_records")) }}

),

refused as (

    select
        *,
        source_settings(source) as settings,
    from raw_records
    where
        raw_record_id not in (select raw_record_id from trajectories)
        and {{ is_new_record("raw_record_id", key) }}

),

compared as (

    select
        refused.*,
        first_copies.raw_file as first_file,
        first_copies.raw_position as first_position,
        refused.raw_record_id <> first_copies.raw_record_id as is_copy,
    from refused
    left join first_copies
        on
            refused.source = first_copies.source
            and refused.raw_sha256 = first_copies.raw_sha256
            and refused.landing_error is null

),

explained as (

    select
        *,
        case
            when landing_error is not null
                then {{ refusal("landing_error", "landing_detail") }}
            when is_copy
                then {{ refusal(
                    "'duplicate_record'",
                    "concat('the same bytes as record ', first_position, ' of ', first_file)"
                ) }}
            else
                coalesce(
                    parse_record(
                        raw, raw_key, settings.format, settings.parser_options
                    ).refusal,
                    {{ refusal(
                        "'conflicting_steps'",
                        "concat('it is part of a trajectory of which several records claim the "
                        ~ "same place, so that they are not one run: declare a narrower ', "
                        ~ "'`group_key` under `fields` in the source''s entry')"
                    ) }}
                )
        end as refusal,
    from compared

),

described as (

    select
        raw_record_id,
        source,
        raw_file,
        raw_position,
        raw_offset,
        raw_sha256,
        raw_bytes,
        refusal.reason,
        refusal.detail,
        landed_at as ingested_at,
    from explained

)

select * from described
