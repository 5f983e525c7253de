{# What preference pairs need that DuckDB and Spark say differently, and their settings. #}


{#
    One hash per message, of what it says: role, name, content and calls. The ids of calls are no
    part of it, since they are others in every run. The message at `query_place` is hashed as
    `query_md5` where there is one.
#}
{% macro message_hashes(messages, query_place, query_md5) %}{{ return(adapter.dispatch("message_hashes")(messages, query_place, query_md5)) }}{% endmacro %}
{% macro duckdb__message_hashes(messages, query_place, query_md5) -%}
list_transform(
            {{ messages }},
            lambda message, i: substr(
                case
                    when i = {{ query_place }} and {{ query_md5 }} is not null
                        then {{ query_md5 }}
                    else {{ _said("message") }}
                end,
                1,
                {{ _hash_digits() }}
            )
        )
{%- endmacro %}
{% macro spark__message_hashes(messages, query_place, query_md5) -%}
transform(
            {{ messages }},
            (message, i) -> substr(
                case
                    when i + 1 = {{ query_place }} and {{ query_md5 }} is not null
                        then {{ query_md5 }}
                    else {{ _said("message") }}
                end,
                1,
                {{ _hash_digits() }}
            )
        )
{%- endmacro %}


{% macro _said(message) -%}
md5(concat_ws(
                        '|',
                        {{ message }}.role,
                        coalesce({{ message }}.name, ''),
                        coalesce(length({{ message }}.content), -1),
                        {{ message }}.content,
                        {{ called(message ~ ".tool_calls") }}
                    ))
{%- endmacro %}


{# Calls as one text: each one's name, and its arguments behind their length. #}
{% macro called(tool_calls) %}{{ return(adapter.dispatch("called")(tool_calls)) }}{% endmacro %}
{% macro duckdb__called(tool_calls) -%}
array_to_string(list_transform(
                            {{ tool_calls }},
                            lambda c: concat_ws(
                                '|',
                                c.function.name,
                                coalesce(length(c.function.arguments), -1),
                                c.function.arguments
                            )
                        ), '|')
{%- endmacro %}
{% macro spark__called(tool_calls) -%}
array_join(transform(
                            {{ tool_calls }},
                            c -> concat_ws(
                                '|',
                                c.function.name,
                                coalesce(length(c.function.arguments), -1),
                                c.function.arguments
                            )
                        ), '|')
{%- endmacro %}


{#
    The points at which the agent says something: of each, its step, a hash of the prompt (of all
    messages before it, and the tools), a hash of what it says (without regard to case and white
    space), and estimated tokens up to there, of all messages and of the agent's own. `hashes` is
    the tools' hash and then each message's, as one text.

    A list of STRUCT(step_id, prompt_md5, action_md5, tokens_before, tokens_through,
    agent_tokens_before, agent_tokens_through).
#}
{% macro decisions(messages, hashes, message_steps, agent_flags, message_tokens) %}{{ return(adapter.dispatch("decisions")(messages, hashes, message_steps, agent_flags, message_tokens)) }}{% endmacro %}
{% macro duckdb__decisions(messages, hashes, message_steps, agent_flags, message_tokens) -%}
list_transform(
            list_filter(range(1, len({{ messages }}) + 1), lambda i: {{ agent_flags }}[i]),
            lambda i: {
                'step_id': {{ message_steps }}[i],
                'prompt_md5': md5(substr({{ hashes }}, 1, {{ _hash_digits() }} * i)),
                'action_md5': md5(concat(
                    {{ bare(messages ~ "[i].content") }},
                    '|',
                    {{ bare(called(messages ~ "[i].tool_calls")) }}
                )),
                'tokens_before': {{ sum_of(message_tokens ~ "[:i - 1]") }},
                'tokens_through': {{ sum_of(message_tokens ~ "[:i]") }},
                'agent_tokens_before': {{ sum_where(
                    message_tokens ~ "[:i - 1]", agent_flags
                ) }},
                'agent_tokens_through': {{ sum_where(message_tokens ~ "[:i]", agent_flags) }}
            }
        )
{%- endmacro %}
{% macro spark__decisions(messages, hashes, message_steps, agent_flags, message_tokens) -%}
transform(
            filter(
                sequence(1, size({{ messages }})), i -> element_at({{ agent_flags }}, i)
            ),
            i -> named_struct(
                'step_id', element_at({{ message_steps }}, i),
                'prompt_md5', md5(substr({{ hashes }}, 1, {{ _hash_digits() }} * i)),
                'action_md5', md5(concat(
                    {{ bare("coalesce(element_at(" ~ messages ~ ", i).content, '')") }},
                    '|',
                    coalesce(
                        {{ bare(called("element_at(" ~ messages ~ ", i).tool_calls")) }}, ''
                    )
                )),
                'tokens_before', {{ sum_of("slice(" ~ message_tokens ~ ", 1, i - 1)") }},
                'tokens_through', {{ sum_of("slice(" ~ message_tokens ~ ", 1, i)") }},
                'agent_tokens_before', {{ sum_where(
                    "slice(" ~ message_tokens ~ ", 1, i - 1)",
                    "slice(" ~ agent_flags ~ ", 1, i - 1)",
                ) }},
                'agent_tokens_through', {{ sum_where(
                    "slice(" ~ message_tokens ~ ", 1, i)",
                    "slice(" ~ agent_flags ~ ", 1, i)",
                ) }}
            )
        )
{%- endmacro %}


{# The decisions that were taken in one of these steps. #}
{% macro decisions_in(decisions, steps) %}{{ return(adapter.dispatch("decisions_in")(decisions, steps)) }}{% endmacro %}
{% macro duckdb__decisions_in(decisions, steps) %}list_filter({{ decisions }}, lambda d: list_contains({{ steps }}, d.step_id)){% endmacro %}
{% macro spark__decisions_in(decisions, steps) %}filter({{ decisions }}, d -> array_contains({{ steps }}, d.step_id)){% endmacro %}


{# The first and the last of a list; null where it is empty. #}
{% macro first_item(list) %}{{ return(adapter.dispatch("first_item")(list)) }}{% endmacro %}
{% macro duckdb__first_item(list) %}{{ list }}[1]{% endmacro %}
{% macro spark__first_item(list) %}try_element_at({{ list }}, 1){% endmacro %}

{% macro last_item(list) %}{{ return(adapter.dispatch("last_item")(list)) }}{% endmacro %}
{% macro duckdb__last_item(list) %}{{ list }}[-1]{% endmacro %}
{% macro spark__last_item(list) %}try_element_at({{ list }}, -1){% endmacro %}


{# A text without white space, in small letters. #}
{% macro bare(text) -%}
translate(lower({{ text }}), concat(' ', chr(9), chr(10), chr(13)), '')
{%- endmacro %}


{# Where the first user's turn stands in a list of messages, from 1; 0 or null for none. #}
{% macro first_user_place(messages) %}{{ return(adapter.dispatch("first_user_place")(messages)) }}{% endmacro %}
{% macro duckdb__first_user_place(messages) %}list_position(list_transform({{ messages }}, lambda message: message.role), 'user'){% endmacro %}
{% macro spark__first_user_place(messages) %}cast(array_position({{ messages }}.role, 'user') as int){% endmacro %}


{# The content of one message of a list; null for a place that is not there. #}
{% macro content_at(messages, place) %}{{ return(adapter.dispatch("content_at")(messages, place)) }}{% endmacro %}
{% macro duckdb__content_at(messages, place) %}{{ messages }}[{{ place }}].content{% endmacro %}
{% macro spark__content_at(messages, place) %}try_element_at({{ messages }}, nullif({{ place }}, 0)).content{% endmacro %}


{# Whether a text of words, or `*` for all, names one of a list of words; false for no list. #}
{% macro names_any(words, list) %}{{ return(adapter.dispatch("names_any")(words, list)) }}{% endmacro %}
{% macro duckdb__names_any(words, list) -%}
coalesce(
            len({{ list }}) > 0
            and ({{ words }} = '*' or list_has_any(string_split({{ words }}, ' '), {{ list }})),
            false
        )
{%- endmacro %}
{% macro spark__names_any(words, list) -%}
coalesce(
            size({{ list }}) > 0
            and ({{ words }} = '*' or arrays_overlap(split({{ words }}, ' '), {{ list }})),
            false
        )
{%- endmacro %}


{# A text's hash as it stands in a prompt's: 64 bits, since prompts are only compared in a task. #}
{% macro short_hash(text) %}substr(md5({{ text }}), 1, {{ _hash_digits() }}){% endmacro %}
{% macro _hash_digits() %}16{% endmacro %}


{# Whether one value is better than another by a margin. Doubles: 4.1 is 1.0 better than 3.1. #}
{% macro is_margin(better, worse, margin) -%}
({{ better }} > {{ worse }} and round({{ better }} - {{ worse }}, 6) >= round({{ margin }}, 6))
{%- endmacro %}
