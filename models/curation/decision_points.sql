{{ config(materialized="delta", strategy="upsert", unique_key="trajectory_id") }}
{%- set hashes = message_hashes("messages", "query_place", "query_md5") %}
{%- set found = decisions(
    "messages", "hashes", "message_steps", "agent_flags", "message_tokens"
) %}
{%- set key = local_md5(hashes ~ found ~ var("pair_max_frame_characters")) %}
{{ rebuild_on(key) }}

with conversations as (

    select * from {{ ref("conversations") }}

),

pending as (

    select
        trajectory_id,
        user_query,
        ingested_at,
    from {{ pending_trajectories(key) }}

),

since as (

    select min(ingested_at) as ingested_at from pending

),

placed as (

    select
        conversations.*,
        pending.user_query,
        {{ first_user_place("conversations.messages") }} as query_place,
    from conversations
    inner join pending on conversations.trajectory_id = pending.trajectory_id
    where conversations.ingested_at >= (select since.ingested_at from since)

),

opened as (

    select
        *,
        {{ content_at("messages", "query_place") }} as first_turn,
    from placed

),

-- The query in a frame of a few words is the same prompt as the query in another one.
framed as (

    select
        *,
        case
            when
                instr(first_turn, user_query) > 0
                and length(first_turn) - length(user_query)
                <= {{ var("pair_max_frame_characters") }}
                then {{ query_md5("user_query") }}
        end as query_md5,
    from opened

),

hashed as (

    select
        *,
        concat(
            {{ short_hash("coalesce(tools, '')") }},
            {{ joined_texts(hashes, "''") }} -- noqa: PRS
        ) as hashes, -- noqa: PRS,LT02
    from framed

),

described as (

    select
        trajectory_id,
        content_sha256,
        md5(first_turn) as first_turn_md5,
        {{ found }} as decisions, -- noqa: PRS
    from hashed

)

select * from described
