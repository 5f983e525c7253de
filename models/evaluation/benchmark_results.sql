with measured_results as (

    select * from {{ ref("measured_results") }}

),

published_results as (

    select * from {{ ref("published_results") }}

),

measured as (

    select
        result_id,
        benchmark,
        metric,
        model_name,
        setting,
        run_id,
        endpoint,
        null as source,
        value,
        step_budget,
        item_count,
        overlapping_trajectories,
        false as is_published,
        measured_at,
    from measured_results

),

published as (

    select
        {{ sha256_hex("concat_ws(chr(10), source, metric, model_name, setting)") }} as result_id,
        benchmark,
        case when metric = 'success_rate_pct' then 'success_rate' else metric end as metric,
        model_name,
        setting,
        null as run_id,
        null as endpoint,
        source,
        case when metric = 'success_rate_pct' then value / 100 else value end as value,
        -- What MINT's table is by.
        case when benchmark = 'mint' then cast(setting as integer) end as step_budget,
        cast(null as bigint) as item_count,
        cast(null as bigint) as overlapping_trajectories,
        true as is_published,
        cast(null as timestamptz) as measured_at,
    from published_results

),

results as (

    select * from measured
    union all
    select * from published

)

select * from results
