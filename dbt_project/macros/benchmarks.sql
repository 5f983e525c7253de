{#
    What a check against benchmarks depends on beside the trajectory, as a short text: the rules,
    the vars, the benchmarks in the lake. Empty where there is none.
#}
{% macro overlap_settings() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set found = run_query(
        "select overlap_settings(" ~ text_literal(var("overlap_ngram_share") | string) ~ ")"
    ) -%}
    {{ return(found.columns[0].values()[0]) }}
{% endmacro %}


{# In a select list: one row for each of a check's matches. #}
{% macro each_match(matches) %}{{ return(adapter.dispatch("each_match")(matches)) }}{% endmacro %}
{% macro duckdb__each_match(matches) %}unnest({{ matches }}){% endmacro %}
{% macro spark__each_match(matches) %}explode({{ matches }}){% endmacro %}


{# The benchmarks of a check's matches, each once, in order. #}
{% macro benchmarks_of(matches) %}{{ return(adapter.dispatch("benchmarks_of")(matches)) }}{% endmacro %}
{% macro duckdb__benchmarks_of(matches) -%}
list_sort(list_distinct(list_transform({{ matches }}, lambda found: found.benchmark)))
{%- endmacro %}
{% macro spark__benchmarks_of(matches) -%}
array_sort(array_distinct(transform({{ matches }}, found -> found.benchmark)))
{%- endmacro %}
