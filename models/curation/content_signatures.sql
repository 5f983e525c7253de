{{ config(materialized="delta", strategy="upsert", unique_key="content_sha256") }}
{%- set key = signature_key() %}
{{ rebuild_on(key) }}

-- One trajectory of every content that has no signature yet. Only ids are shared: DuckDB holds
-- in memory what two parts of a query read, steps included.
with pending as (

    select min(trajectory_id) as trajectory_id
    from {{ ref("trajectories") }} as trajectories
    {% if is_delta_incremental(key) -%}
    where
        not exists (
            select 1
            from {{ this }} as signed
            where signed.content_sha256 = trajectories.content_sha256
        )
    {%- endif %}
    group by content_sha256

),

signed as (

    select
        content_sha256,
        content_signature(user_query, steps, {{ near_duplicate_similarity() }}) as result,
    from {{ ref("trajectories") }}
    where trajectory_id in (select trajectory_id from pending)

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
