{{ config(materialized="delta", strategy="append") }}
{%- set key = standardizer_key() %}
{{ rebuild_on(key) }}

with raw_records as (

    select * from {{ ref("raw_records") }}

),

looked_at as (

    select
        raw_record_id,
        source,
        raw_sha256,
        raw_file,
        raw_bytes,
        record_shape(raw) as shape_sha256,
    from raw_records
    where
        {{ looks_at_unknown_records() }}
        and landing_error is null
        and parser_settings(source, cast(null as {{ dbt.type_string() }})).format is null
        and {{ is_new_record("raw_record_id", key) }}

)

select * from looked_at
