{{ config(materialized="delta", strategy="append") }}
{#- What was learnt lets records out, and says more of those that stay: all is explained anew. -#}
{%- set key = local_md5(standardizer_key() ~ learned_state()) %}
{{ rebuild_on(key) }}

with raw_records as (

    select * from {{ ref("raw_records") }}

),

trajectories as (

    select distinct unnest(raw_record_ids) as raw_record_id from {{ ref("trajectories") }}

),

learned_records as (

    select * from {{ ref("learned_records") }}

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
        raw_records.*,
        learned_records.note,
        parser_settings(raw_records.source, learned_records.reading) as settings,
    from raw_records
    left join learned_records using (raw_record_id)
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
        case
            when refusal.reason = 'unknown_format'
                then concat_ws(' ', refusal.detail, note)
            else refusal.detail
        end as detail,
        landed_at as ingested_at,
    from explained

)

select * from described
