{# What DuckDB and Spark say differently, in one place. #}

{# The SHA-256 of a text, as 64 hexadecimal digits. #}
{% macro sha256_hex(text) %}{{ return(adapter.dispatch("sha256_hex")(text)) }}{% endmacro %}
{% macro duckdb__sha256_hex(text) %}sha256({{ text }}){% endmacro %}
{% macro spark__sha256_hex(text) %}sha2({{ text }}, 256){% endmacro %}


{# A group's values as a list in the order of a column or list of columns, nulls last. #}
{% macro ordered_list(value, order_by) %}{{ return(adapter.dispatch("ordered_list")(value, order_by)) }}{% endmacro %}
{% macro duckdb__ordered_list(value, order_by) -%}
list({{ value }} order by {% for column in order_by %}{{ column }} asc nulls last{{ ", " if not loop.last }}{% endfor %})
{%- endmacro %}
{% macro spark__ordered_list(value, order_by) -%}
transform(
        array_sort(collect_list(struct(
            {%- for column in order_by %}{{ column }} is null, {{ column }}, {% endfor -%}
            {{ value }} as value
        ))),
        each -> each.value
    )
{%- endmacro %}


{# A text in a column of JSON, by its path; null where there is none. #}
{% macro json_text(column, path) %}{{ return(adapter.dispatch("json_text")(column, path)) }}{% endmacro %}
{% macro duckdb__json_text(column, path) %}json_extract_string({{ column }}, '{{ path }}'){% endmacro %}
{% macro spark__json_text(column, path) %}get_json_object({{ column }}, '{{ path }}'){% endmacro %}


{# The same with the path in a column. #}
{% macro json_text_at(column, path) %}{{ return(adapter.dispatch("json_text_at")(column, path)) }}{% endmacro %}
{% macro duckdb__json_text_at(column, path) %}json_extract_string({{ column }}, {{ path }}){% endmacro %}
{% macro spark__json_text_at(column, path) %}get_json_object({{ column }}, {{ path }}){% endmacro %}


{# How many characters the agent put out in a list of steps. #}
{% macro output_characters(steps) %}{{ return(adapter.dispatch("output_characters")(steps)) }}{% endmacro %}
{% macro duckdb__output_characters(steps) -%}
cast(coalesce(list_sum(list_transform({{ steps }}, lambda step: coalesce(length(step.output), 0))), 0) as bigint)
{%- endmacro %}
{% macro spark__output_characters(steps) -%}
aggregate({{ steps }}, cast(0 as bigint), (sum, step) -> sum + coalesce(length(step.output), 0))
{%- endmacro %}


{#
    The value at `x` of the line through knots (a list of STRUCT(score, probability), scores
    rising); before the first and behind the last knot it goes on level. Null where x is null.
#}
{% macro interpolated(knots, x) -%}
case when {{ x }} is not null then {{ adapter.dispatch("interpolated")(knots, x) }} end
{%- endmacro %}
{% macro duckdb__interpolated(knots, x) -%}
list_reduce(
            list_transform({{ knots }}, lambda knot: knot.probability),
            lambda before, after, i: before + (after - before) * greatest(0.0, least(
                1.0,
                ({{ x }} - {{ knots }}[i - 1].score)
                / ({{ knots }}[i].score - {{ knots }}[i - 1].score)
            ))
        )
{%- endmacro %}
{% macro spark__interpolated(knots, x) -%}
aggregate(
            slice(sequence(1, size({{ knots }})), 2, size({{ knots }})),
            element_at({{ knots }}, 1).probability,
            (before, i) -> before + (element_at({{ knots }}, i).probability - before) * greatest(
                0.0D,
                least(
                    1.0D,
                    ({{ x }} - element_at({{ knots }}, i - 1).score)
                    / (element_at({{ knots }}, i).score - element_at({{ knots }}, i - 1).score)
                )
            )
        )
{%- endmacro %}


{# The sum of a list of whole numbers; 0 of an empty one. #}
{% macro sum_of(numbers) %}{{ return(adapter.dispatch("sum_of")(numbers)) }}{% endmacro %}
{% macro duckdb__sum_of(numbers) %}cast(coalesce(list_sum({{ numbers }}), 0) as bigint){% endmacro %}
{% macro spark__sum_of(numbers) %}aggregate({{ numbers }}, cast(0 as bigint), (sum, number) -> sum + number){% endmacro %}


{# The sum of those of a list of whole numbers where a list of flags says so. #}
{% macro sum_where(numbers, flags) %}{{ return(adapter.dispatch("sum_where")(numbers, flags)) }}{% endmacro %}
{% macro duckdb__sum_where(numbers, flags) -%}
cast(coalesce(list_sum(list_transform({{ numbers }}, lambda number, i: case when {{ flags }}[i] then number else 0 end)), 0) as bigint)
{%- endmacro %}
{% macro spark__sum_where(numbers, flags) -%}
aggregate(zip_with({{ numbers }}, {{ flags }}, (number, flag) -> if(flag, number, 0)), cast(0 as bigint), (sum, number) -> sum + number)
{%- endmacro %}


{# How many a list has; null of none. #}
{% macro length_of(list) %}{{ return(adapter.dispatch("length_of")(list)) }}{% endmacro %}
{% macro duckdb__length_of(list) %}cast(len({{ list }}) as integer){% endmacro %}
{% macro spark__length_of(list) %}case when {{ list }} is not null then size({{ list }}) end{% endmacro %}


{# Whether a text of words with blanks between them has a word. #}
{% macro has_word(words, word) -%}
instr(concat(' ', {{ words }}, ' '), concat(' ', {{ word }}, ' ')) > 0
{%- endmacro %}


{# Whether a column's text is one of a list of texts. #}
{% macro is_one_of(column, texts) -%}
{%- if texts -%}
{{ column }} in ({% for text in texts %}{{ text_literal(text) }}{{ ", " if not loop.last }}{% endfor %})
{%- else -%}
false
{%- endif -%}
{%- endmacro %}


{# In a select list: one row for each item of a list, as `item`, with its `place` from 0. #}
{% macro each_with_place(list, item, place) %}{{ return(adapter.dispatch("each_with_place")(list, item, place)) }}{% endmacro %}
{% macro duckdb__each_with_place(list, item, place) -%}
unnest({{ list }}) as {{ item }},
        generate_subscripts({{ list }}, 1) - 1 as {{ place }}
{%- endmacro %}
{% macro spark__each_with_place(list, item, place) %}posexplode({{ list }}) as ({{ place }}, {{ item }}){% endmacro %}


{# What the agent put out in the last step of a list. #}
{% macro last_output(steps) %}{{ return(adapter.dispatch("last_output")(steps)) }}{% endmacro %}
{% macro duckdb__last_output(steps) %}{{ steps }}[len({{ steps }})].output{% endmacro %}
{% macro spark__last_output(steps) %}element_at({{ steps }}, -1).output{% endmacro %}


{# In a select list: one row for each word of a text. #}
{% macro each_word(text) %}{{ return(adapter.dispatch("each_word")(text)) }}{% endmacro %}
{% macro duckdb__each_word(text) %}unnest(list_filter(string_split({{ text }}, ' '), lambda word: word <> '')){% endmacro %}
{% macro spark__each_word(text) %}explode(filter(split({{ text }}, ' '), word -> word <> '')){% endmacro %}


{# Before a part of a query that is read twice and would be large to keep: it is made twice. #}
{% macro inlined() %}{{ return(adapter.dispatch("inlined")()) }}{% endmacro %}
{% macro duckdb__inlined() %}not materialized{% endmacro %}
{% macro spark__inlined() %}{% endmacro %}
