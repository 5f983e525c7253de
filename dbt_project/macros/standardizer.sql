{#
    What the stored result of the standardizer depends on beside the raw bytes: the parsers'
    versions and the declared sources. When it changes, trajectories and quarantine are built
    anew from `raw_records`.
#}
{% macro standardizer_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set found = run_query("select parser_versions(), source_versions()") -%}
    {{ return(local_md5(found.columns[0].values()[0] ~ found.columns[1].values()[0])) }}
{% endmacro %}


{#
    What is known of records that no format fits: a short text that changes when more is learnt,
    empty while nothing is.
#}
{% macro learned_state() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {{ return(run_query("select standardizer_state()").columns[0].values()[0]) }}
{% endmacro %}


{#
    Whether records that no format fits are looked at: a model is named that can be asked about
    them, or one was asked before.
#}
{% macro looks_at_unknown_records() -%}
    {{ return("true" if var("standardizer_model") or learned_state() else "false") }}
{%- endmacro %}


{#
    Whether a raw record is not among those of the table that is being added to; `among` says
    which column of the table has their ids.
#}
{% macro is_new_record(raw_record_id, key, among="raw_record_id") -%}
    {%- if is_delta_incremental(key) -%}
        {{ raw_record_id }} not in (select {{ among }} from {{ this }})
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}


{# The records whose bytes no earlier record of the same source holds. #}
{% macro first_copies(raw_records) %}(
        select *
        from (
            select
                raw_record_id,
                source,
                raw_sha256,
                raw_file,
                raw_position,
                landed_at,
                row_number() over (
                    partition by source, raw_sha256
                    order by landed_at, raw_file, raw_position
                ) as copy_number,
            from {{ raw_records }}
            where landing_error is null
        )
        where copy_number = 1
    ){% endmacro %}


{#
    The raw records of some ids, each with what its source and what was learnt say of reading it.
    `ids` has `raw_record_id` and `landed_at`, so that files of earlier builds are passed over.
    To be written where it is read: DuckDB would hold what two parts of a query share, with all
    bytes, in memory.
#}
{% macro records_of(ids) -%}
(
            select
                raw_records.*,
                parser_settings(raw_records.source, learned_records.reading) as settings,
            from {{ ref("raw_records") }} as raw_records
            left join {{ ref("learned_records") }} as learned_records
                using (raw_record_id)
            where
                raw_record_id in (select raw_record_id from {{ ids }})
                and raw_records.landed_at >= (select min(landed_at) from {{ ids }})
        )
{%- endmacro %}


{# What the parsers make of the raw records of some ids. #}
{% macro parsed_records(ids) -%}
select
        raw_record_id,
        source,
        raw_file,
        raw_position,
        raw_sha256,
        landed_at,
        parse_record(
            raw, raw_key, settings.format, settings.parser_options
        ) as result,
    from {{ records_of(ids) }}
{%- endmacro %}


{# Why a record is refused, in the type that `parse_record` gives it. #}
{% macro refusal(reason, detail) %}{{ return(adapter.dispatch("refusal")(reason, detail)) }}{% endmacro %}
{% macro duckdb__refusal(reason, detail) %}{'reason': {{ reason }}, 'detail': {{ detail }}}{% endmacro %}
{% macro spark__refusal(reason, detail) %}named_struct('reason', {{ reason }}, 'detail', {{ detail }}){% endmacro %}


{# The id of the trajectory that records are parts of: from what they have in common. #}
{% macro group_id(source, part) -%}
{{ sha256_hex(
            "concat_ws(chr(10), " ~ source ~ ", " ~ part ~ ".format, " ~ part ~ ".group_key)"
        ) }}
{%- endmacro %}
