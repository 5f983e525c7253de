{#
    Whether a row of `measured_trajectories` passes a filter of the recipe in the column `recipe`:
    a `case` with one branch per recipe, of the filters that `udfs.recipes` has checked.

    Recipes are data, so the table of their settings is read when the model is compiled. Where it
    is not there yet (`dbt compile` before `dbt build`) the SQL compiles and refuses to run.
#}
{% macro passes_filter(column) %}
    {%- set recipes = ref("recipe_settings") -%}
    {%- if not execute or load_relation(recipes) is none -%}
        {{ return("cast(error('There is no table `recipe_settings` in this database: run `dbt build`.') as boolean)") }}
    {%- endif -%}
    {%- set branches = run_query(
        "select concat('when ''', replace(recipe, '''', ''''''), ''' then ',"
        ~ " checked_filter(recipe, '" ~ column ~ "', " ~ column ~ "))"
        ~ " from (select distinct recipe, " ~ column ~ " from " ~ recipes ~ ")"
        ~ " where " ~ column ~ " is not null order by recipe"
    ).columns[0].values() -%}
    {{ return("case recipe " ~ branches | join(" ") ~ " end" if branches else "false") }}
{% endmacro %}


{# What stands for a question, without regard to case and white space; null for a blank one. #}
{% macro query_md5(text) %}{{ return(adapter.dispatch("query_md5")(text)) }}{% endmacro %}
{% macro duckdb__query_md5(text) %}md5(nullif(trim(regexp_replace(lower({{ text }}), '\s+', ' ', 'g')), '')){% endmacro %}
{% macro spark__query_md5(text) %}md5(nullif(trim(regexp_replace(lower({{ text }}), '\\s+', ' ')), '')){% endmacro %}


{# A number from 0 to below 1, fixed by a text. 52 bits, so that a DOUBLE holds it exactly. #}
{% macro hash_fraction(text) %}{{ return(adapter.dispatch("hash_fraction")(text)) }}{% endmacro %}
{% macro duckdb__hash_fraction(text) %}cast(concat('0x', substr(md5({{ text }}), 1, 13)) as bigint) / 4503599627370496.0{% endmacro %}
{% macro spark__hash_fraction(text) %}cast(conv(substr(md5({{ text }}), 1, 13), 16, 10) as bigint) / 4503599627370496.0{% endmacro %}


{# The split that a task is in, with all its trajectories, whatever else is in the lake. #}
{% macro split_of_task(seed, task_key, eval_fraction) -%}
case
            when {{ hash_fraction("concat_ws('|', " ~ seed ~ ", " ~ task_key ~ ")") }} < {{ eval_fraction }}
                then 'eval'
            else 'train'
        end
{%- endmacro %}


{# In a select list: one row for each whole number from 1 to `last`. #}
{% macro each_number_to(last) %}{{ return(adapter.dispatch("each_number_to")(last)) }}{% endmacro %}
{% macro duckdb__each_number_to(last) %}unnest(range(1, {{ last }} + 1)){% endmacro %}
{% macro spark__each_number_to(last) %}explode(sequence(1, {{ last }})){% endmacro %}


{# Whole-number division, rounded down; for numbers that are not negative. #}
{% macro div(dividend, divisor) %}{{ return(adapter.dispatch("div")(dividend, divisor)) }}{% endmacro %}
{% macro duckdb__div(dividend, divisor) %}(({{ dividend }}) // ({{ divisor }})){% endmacro %}
{% macro spark__div(dividend, divisor) %}(({{ dividend }}) div ({{ divisor }})){% endmacro %}


{# Whether a text can be a folder's name everywhere: lower-case letters, digits, `-` and `_`. #}
{% macro is_plain_name(text) %}{{ return(adapter.dispatch("is_plain_name")(text)) }}{% endmacro %}
{% macro duckdb__is_plain_name(text) %}regexp_full_match({{ text }}, '[a-z0-9][a-z0-9_-]*'){% endmacro %}
{% macro spark__is_plain_name(text) %}({{ text }} rlike '^[a-z0-9][a-z0-9_-]*$'){% endmacro %}
