{{ config(materialized="delta", strategy="upsert", unique_key="content_sha256") }}
{%- set key = signature_key() %}
{{ rebuild_on(key) }}

with trajectories as (

    select
        trajectory_id,
        content_sha256,
        ingested_at,
    from {{ ref("trajectories") }}

),

-- One trajectory of every content that has no signature yet.
pending as (

    select
        min(trajectories.trajectory_id) as trajectory_id,
        min(trajectories.ingested_at) as ingested_at,
    from trajectories
    {% if is_delta_incremental(key) -%}
    left join {{ this }} as known on trajectories.content_sha256 = known.content_sha256
    where known.content_sha256 is null
    {% endif -%}
    group by trajectories.content_sha256

),

-- The table is read anew where steps are needed: DuckDB holds in memory what two parts of a query
-- share. And files of earlier builds say of themselves that their rows came too early.
signed as (

    select
        content_sha256,
        content_signature(user_query, steps, {{ near_duplicate_similarity() }}) as result,
    from {{ ref("trajectories") }}
    where
        trajectory_id in (select pending.trajectory_id from pending)
        and ingested_at >= (select min(pending.ingested_at) from pending)

),

described as (

    select
        content_sha256,
        result.word_count,
        result.signature,
        result.band_hashes,
    from signed

)

select * from described
