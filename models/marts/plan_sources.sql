{{ config(materialized="delta", on_schema_change="replace") }}

with source_quotas as (

    select * from {{ ref("source_quotas") }}

),

plan_windows as (

    select * from {{ ref("plan_windows") }}

),

realised as (

    select
        recipe,
        source,
        sum(positions) as positions,
        sum(estimated_tokens) as estimated_tokens,
        sum(trained_tokens) as trained_tokens,
    from plan_windows
    group by recipe, source

),

totals as (

    select
        recipe,
        sum(positions) as run_positions,
        sum(trained_tokens) as run_trained_tokens,
    from realised
    group by recipe

),

described as (

    select
        source_quotas.recipe,
        source_quotas.source,
        source_quotas.trajectories,
        source_quotas.max_repeats,
        source_quotas.requested_share,
        source_quotas.requested_positions,
        cast(coalesce(realised.positions, 0) as bigint) as positions,
        coalesce(realised.positions, 0) / totals.run_positions as realised_share,
        coalesce(realised.positions, 0) / source_quotas.trajectories as passes,
        cast(coalesce(realised.estimated_tokens, 0) as bigint) as estimated_tokens,
        cast(coalesce(realised.trained_tokens, 0) as bigint) as trained_tokens,
        coalesce(realised.trained_tokens, 0)
        / cast(nullif(totals.run_trained_tokens, 0) as double) as trained_token_share,
        source_quotas.is_capped,
    from source_quotas
    left join realised
        on
            source_quotas.recipe = realised.recipe
            and source_quotas.source = realised.source
    left join totals on source_quotas.recipe = totals.recipe

)

select * from described
