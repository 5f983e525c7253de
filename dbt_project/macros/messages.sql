{#
    Steps as messages in OpenAI's shape, each with the step that it is from.

    | in a step                                        | becomes                                        |
    |--------------------------------------------------|------------------------------------------------|
    | `input`                                          | a user turn                                    |
    | `output` and `tool_calls`                        | one assistant turn                             |
    | observation of the agent itself                  | "Response: …" at the end of that assistant turn |
    | observation of a user                            | a user turn                                    |
    | observation of the environment, answering a tool | a tool turn                                    |
    | any other observation of the environment         | a user turn behind a label                     |

    An observation answers a tool where it names the tool or the call, or where the format has
    tool turns of its own. The label is the one that stood in the source's own user turns (which
    may be none), else "Observation: ".
#}


{#
    A trajectory's turns: a list of messages, each with `step_id` (null for the system prompt) and
    `is_agent` (the agent's own, and it says something) beside its fields.
#}
{% macro turns(system_prompt, steps, format, label) %}{{ return(adapter.dispatch("turns")(system_prompt, steps, format, label)) }}{% endmacro %}
{% macro duckdb__turns(system_prompt, steps, format, label) -%}
list_concat(
            case
                when {{ system_prompt }} is not null
                    then [{{ _turn("'system'", system_prompt) }}]
            end,
            flatten(list_transform({{ steps }}, lambda step: list_concat(
                case
                    when step.input is not null
                        then [{{ _turn("'user'", "step.input", step_id="step.step_id") }}]
                end,
                case
                    when step.output is not null or {{ _agent_says("step") }}
                        then [{{ _turn(
                            "'assistant'",
                            "case when " ~ _has_calls("step") ~ " then nullif("
                            ~ _agent_text("step") ~ ", '') else " ~ _agent_text("step") ~ " end",
                            tool_calls="case when " ~ _has_calls("step") ~ " then list_transform("
                            ~ "step.tool_calls, lambda c: {'id': c.call_id, 'type': 'function', "
                            ~ "'function': {'name': c.name, 'arguments': c.arguments}}) end",
                            step_id="step.step_id",
                            is_agent=_agent_says("step"),
                        ) }}]
                end,
                list_transform(
                    list_filter(step.observations, lambda seen: seen.source <> 'agent'),
                    lambda seen: case
                        when seen.source = 'user'
                            then {{ _turn("'user'", "seen.content", step_id="step.step_id") }}
                        when {{ label }} is not null
                            then {{ _turn("'user'", label ~ " || seen.content", step_id="step.step_id") }}
                        when
                            seen.call_id is not null
                            or seen.name is not null
                            or {{ format }} in (
                                'chat', 'messages_display', 'sharegpt', 'anthropic'
                            )
                            then {{ _turn(
                                "'tool'",
                                "seen.content",
                                tool_call_id="seen.call_id",
                                name="seen.name",
                                step_id="step.step_id",
                            ) }}
                        else {{ _turn(
                            "'user'", "'Observation: ' || seen.content", step_id="step.step_id"
                        ) }}
                    end
                )
            )))
        )
{%- endmacro %}


{# The messages of a list of turns. #}
{% macro messages(turns) %}{{ return(adapter.dispatch("messages")(turns)) }}{% endmacro %}
{% macro duckdb__messages(turns) -%}
list_transform(
            {{ turns }},
            lambda turn: {
                'role': turn.role,
                'content': turn.content,
                'tool_calls': turn.tool_calls,
                'tool_call_id': turn.tool_call_id,
                'name': turn.name
            }
        )
{%- endmacro %}


{# Of each turn of a list, one of the things that it has beside a message's fields. #}
{% macro of_turns(turns, name) %}{{ return(adapter.dispatch("of_turns")(turns, name)) }}{% endmacro %}
{% macro duckdb__of_turns(turns, name) %}list_transform({{ turns }}, lambda turn: turn.{{ name }}){% endmacro %}


{#
    Of each turn of a list, a quarter of its characters, rounded up: the usual rule of thumb for
    English text. Code has more tokens a character, Chinese up to four times as many.
#}
{% macro turn_tokens(turns) %}{{ return(adapter.dispatch("turn_tokens")(turns)) }}{% endmacro %}
{% macro duckdb__turn_tokens(turns) -%}
list_transform({{ turns }}, lambda turn: cast(ceil((
            coalesce(length(turn.content), 0)
            + coalesce(list_sum(list_transform(turn.tool_calls, lambda c:
                coalesce(length(c.function.name), 0)
                + coalesce(length(c.function.arguments), 0)
            )), 0)
        ) / 4) as integer))
{%- endmacro %}


{#
    For each message, whether it is learned from: it is the agent's own, says something, and is of
    one of the steps that are trained on.
#}
{% macro trained_messages(message_steps, agent_flags, trained_steps) %}{{ return(adapter.dispatch("trained_messages")(message_steps, agent_flags, trained_steps)) }}{% endmacro %}
{% macro duckdb__trained_messages(message_steps, agent_flags, trained_steps) -%}
list_transform(
            {{ agent_flags }},
            lambda flag, i: flag and list_contains({{ trained_steps }}, {{ message_steps }}[i])
        )
{%- endmacro %}
{% macro spark__trained_messages(message_steps, agent_flags, trained_steps) -%}
zip_with(
            {{ agent_flags }},
            {{ message_steps }},
            (flag, step_id) -> flag and array_contains({{ trained_steps }}, step_id)
        )
{%- endmacro %}


{# The columns that a recipe may tell the model, in the order in which it does. #}
{% macro metadata_columns() %}
    {{ return([
        "source", "environment", "task_type", "model_name", "generator", "score", "rater_score"
    ]) }}
{% endmacro %}


{#
    What a recipe says of a trajectory to the model: a line `name: value` for each of the columns
    that `names`, a text of words, has and that is not null; null for no line.
#}
{% macro metadata_lines(names) -%}
nullif(concat_ws(
            chr(10)
            {%- for column in metadata_columns() %},
            case
                when {{ has_word(names, "'" ~ column ~ "'") }} and {{ column }} is not null
                    then concat('{{ column }}: ', {{ column }})
            end
            {%- endfor %}
        ), '')
{%- endmacro %}


{# The parts of the macros above, in DuckDB's words. #}

{% macro _turn(role, content, tool_calls="null", tool_call_id="null", name="null", step_id="cast(null as integer)", is_agent="false") -%}
{
                            'role': {{ role }},
                            'content': {{ content }},
                            'tool_calls': {{ tool_calls }},
                            'tool_call_id': {{ tool_call_id }},
                            'name': {{ name }},
                            'step_id': {{ step_id }},
                            'is_agent': {{ is_agent }}
                        }
{%- endmacro %}

{% macro _has_calls(step) %}coalesce(len({{ step }}.tool_calls), 0) > 0{% endmacro %}

{# What the agent said in a step: its output, then its own closing responses. #}
{% macro _agent_text(step) -%}
concat_ws(chr(10), {{ step }}.output, nullif(array_to_string(list_transform(list_filter({{ step }}.observations, lambda seen: seen.source = 'agent'), lambda seen: 'Response: ' || seen.content), chr(10)), ''))
{%- endmacro %}

{% macro _agent_says(step) %}({{ _has_calls(step) }} or regexp_matches({{ _agent_text(step) }}, '\S')){% endmacro %}
