{{ config(materialized="delta", on_schema_change="replace") }}

-- How often a source comes, and why so: docs/recipes.md.
with sft_samples as (

    select * from {{ ref("sft_samples") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

counted as (

    select
        recipe,
        source,
        count(*) as trajectories,
    from sft_samples
    where split = 'train'
    group by recipe, source

),

weighed as (

    select
        *,
        epochs * sum(weight * trajectories) over (partition by recipe) as run_size,
        weight * power(trajectories, 1 / temperature) as pull,
    from counted
    inner join recipe_settings using (recipe, source)

),

shared as (

    select
        *,
        pull / sum(pull) over (partition by recipe) as share_of_all,
        pull / sum(pull) over (partition by recipe, is_general) as share_of_kind,
        count(case when is_general then 1 end) over (partition by recipe) > 0
        and count(case when not is_general then 1 end) over (partition by recipe) > 0
            as has_both_kinds,
    from weighed

),

requested as (

    select
        *,
        case
            when agent_share is null or not has_both_kinds then share_of_all
            when is_general then (1 - agent_share) * share_of_kind
            else agent_share * share_of_kind
        end as requested_share,
    from shared

),

-- The inner rounding takes off what the order of a sum of doubles may leave.
sized as (

    select
        *,
        cast(round(round(run_size * requested_share, 6)) as bigint) as requested_positions,
    from requested

),

described as (

    select
        recipe,
        source,
        seed,
        epochs,
        token_budget,
        trajectories,
        max_repeats,
        round(requested_share, 9) as requested_share,
        requested_positions,
        least(requested_positions, max_repeats * trajectories) as run_quota,
        requested_positions > max_repeats * trajectories as is_capped,
    from sized

)

select * from described
