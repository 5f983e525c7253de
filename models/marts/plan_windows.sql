{{ config(materialized="delta", on_schema_change="replace") }}

with training_plan as (

    select * from {{ ref("training_plan") }}
    where split = 'train'

),

sft_samples as (

    select * from {{ ref("sft_samples") }}

),

source_quotas as (

    select * from {{ ref("source_quotas") }}

),

placed as (

    select
        training_plan.recipe,
        training_plan.source,
        {{ div("training_plan.position", "1000") }} as window_number,
        sft_samples.estimated_tokens,
        sft_samples.trained_tokens,
    from training_plan
    inner join sft_samples using (recipe, trajectory_id)

),

counted as (

    select
        recipe,
        window_number,
        source,
        count(*) as positions,
        sum(estimated_tokens) as estimated_tokens,
        sum(trained_tokens) as trained_tokens,
    from placed
    group by recipe, window_number, source

),

windows as (

    select
        recipe,
        window_number,
        sum(positions) as window_positions,
        sum(trained_tokens) as window_trained_tokens,
    from counted
    group by recipe, window_number

),

-- A source that a window has nothing of has a row too.
described as (

    select
        source_quotas.recipe,
        cast(windows.window_number as bigint) as window_number,
        source_quotas.source,
        source_quotas.requested_share,
        coalesce(counted.positions, 0) as positions,
        coalesce(counted.positions, 0) / windows.window_positions as realised_share,
        cast(coalesce(counted.estimated_tokens, 0) as bigint) as estimated_tokens,
        cast(coalesce(counted.trained_tokens, 0) as bigint) as trained_tokens,
        coalesce(counted.trained_tokens, 0)
        / cast(nullif(windows.window_trained_tokens, 0) as double) as trained_token_share,
    from source_quotas
    inner join windows on source_quotas.recipe = windows.recipe
    left join counted
        on
            source_quotas.recipe = counted.recipe
            and source_quotas.source = counted.source
            and windows.window_number = counted.window_number

)

select * from described
