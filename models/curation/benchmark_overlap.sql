with benchmark_checks as (

    select * from {{ ref("benchmark_checks") }}

),

unnested as (

    select
        trajectory_id,
        content_sha256,
        {{ each_match("matches") }} as found,
    from benchmark_checks

),

described as (

    select
        trajectory_id,
        content_sha256,
        found.benchmark,
        found.item_id,
        found.kind,
        found.where_found,
        found.matched_text,
        found.overlap,
    from unnested

)

select * from described
