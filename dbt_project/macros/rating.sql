{#
    What a stored verification depends on beside steps and tools themselves: the checks, and the
    parsers, which decide what the tools and calls of a trajectory are.
#}
{% macro verifier_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set version = run_query("select verifier_version()").columns[0].values()[0] -%}
    {{ return(local_md5(standardizer_key() ~ version)) }}
{% endmacro %}


{# Everyone who may vote by the settings of a model that rates; see `configured_raters`. #}
{% macro raters_of(model) %}
    {%- if not execute -%} {{ return([{}]) }} {%- endif -%}
    {%- set config = graph["nodes"]["model." ~ project_name ~ "." ~ model]["config"] -%}
    {%- set found = run_query(
        "select configured_raters(" ~ text_literal(tojson(config["settings"])) ~ ")"
    ) -%}
    {{ return(fromjson(found.columns[0].values()[0])) }}
{% endmacro %}


{# A text, or null, as an SQL literal. #}
{% macro text_literal(text) -%}
{%- if text is none or text is undefined -%}
cast(null as {{ dbt.type_string() }})
{%- else -%}
{{ dbt.string_literal(dbt.escape_single_quotes(text)) }}
{%- endif -%}
{%- endmacro %}


{# A list of texts as one text. #}
{% macro joined_texts(texts, separator) %}{{ return(adapter.dispatch("joined_texts")(texts, separator)) }}{% endmacro %}
{% macro duckdb__joined_texts(texts, separator) %}array_to_string({{ texts }}, {{ separator }}){% endmacro %}
{% macro spark__joined_texts(texts, separator) %}array_join({{ texts }}, {{ separator }}){% endmacro %}


{# The first of a verification's failures, in words. #}
{% macro failure_text(failures) %}{{ return(adapter.dispatch("failure_text")(failures)) }}{% endmacro %}
{% macro duckdb__failure_text(failures) %}{{ _failure_text(failures ~ "[1]") }}{% endmacro %}
{% macro spark__failure_text(failures) %}{{ _failure_text("element_at(" ~ failures ~ ", 1)") }}{% endmacro %}
{% macro _failure_text(failure) -%}
concat('verification: step ', {{ failure }}.step_id, ': ', {{ failure }}.failure, ': ', {{ failure }}.detail)
{%- endmacro %}
