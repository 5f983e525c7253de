{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set told = turns("system_prompt", "steps", "format", "observation_label") %}
{%- set key = local_md5(told ~ turn_tokens("turns") ~ "ingested_at") %}
{{ rebuild_on(key) }}

with pending as (

    select
        trajectory_id,
        content_sha256,
        system_prompt,
        tools,
        steps,
        format,
        ingested_at,
        {{ json_text("other_information", "$._layout.label") }} as observation_label,
    from {{ pending_trajectories(key) }}

),

told as (

    select
        *,
        {{ told }} as turns,
    from pending

),

measured as (

    select
        *,
        {{ turn_tokens("turns") }} as message_tokens,
    from told

),

described as (

    select
        trajectory_id,
        content_sha256,
        {{ messages("turns") }} as messages,
        {{ of_turns("turns", "step_id") }} as message_steps,
        {{ of_turns("turns", "is_agent") }} as agent_flags,
        message_tokens,
        tools,
        {{ sum_of("message_tokens") }}
        + cast(ceil(coalesce(length(tools), 0) / 4) as bigint) as estimated_tokens,
        ingested_at,
    from measured

)

select * from described
