{# What stored flags depend on beside steps and scores: the rules, and what verification finds. #}
{% macro step_rules_key() %}
    {%- if not execute -%} {{ return("") }} {%- endif -%}
    {%- set version = run_query("select step_rules_version()").columns[0].values()[0] -%}
    {{ return(local_md5(verifier_key() ~ version)) }}
{% endmacro %}


{# Of a trajectory's flags those of one step. #}
{% macro flags_of_step(flags, step_id) %}{{ return(adapter.dispatch("flags_of_step")(flags, step_id)) }}{% endmacro %}
{% macro duckdb__flags_of_step(flags, step_id) %}list_filter({{ flags }}, lambda found: found.step_id = {{ step_id }}){% endmacro %}
{% macro spark__flags_of_step(flags, step_id) %}filter({{ flags }}, found -> found.step_id = {{ step_id }}){% endmacro %}


{# The names in a list of flags, each once, in alphabetical order. #}
{% macro flag_names(flags) %}{{ return(adapter.dispatch("flag_names")(flags)) }}{% endmacro %}
{% macro duckdb__flag_names(flags) %}list_sort(list_distinct(list_transform({{ flags }}, lambda found: found.flag))){% endmacro %}
{% macro spark__flag_names(flags) %}array_sort(array_distinct(transform({{ flags }}, found -> found.flag))){% endmacro %}


{# The class of the first error in a list of flags, which stands before the colon of its detail. #}
{% macro flagged_error_class(flags) %}{{ return(adapter.dispatch("flagged_error_class")(flags)) }}{% endmacro %}
{% macro duckdb__flagged_error_class(flags) -%}
split_part(
            list_filter({{ flags }}, lambda found: found.flag = 'error_observation')[1].detail,
            ':',
            1
        )
{%- endmacro %}
{% macro spark__flagged_error_class(flags) -%}
split_part(
            get(filter({{ flags }}, found -> found.flag = 'error_observation'), 0).detail, ':', 1
        )
{%- endmacro %}
