{{ config(materialized="delta", on_schema_change="replace") }}

-- How the order comes about, and why so: docs/recipes.md.
with sft_samples as (

    select * from {{ ref("sft_samples") }}

),

source_quotas as (

    select * from {{ ref("source_quotas") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

repeated as (

    select
        *,
        {{ each_number_to(div("run_quota + trajectories - 1", "trajectories")) }} as pass,
    from source_quotas

),

-- A source's turns run through its passes, each a permutation of its own.
shuffled as (

    select
        recipe,
        source,
        sft_samples.trajectory_id,
        sft_samples.estimated_tokens,
        repeated.pass,
        (repeated.pass - 1) * repeated.trajectories + row_number() over (
            partition by recipe, source, repeated.pass
            order by
                md5(concat_ws('|', repeated.seed, repeated.pass, sft_samples.trajectory_id)),
                sft_samples.trajectory_id
        ) - 1 as turn,
    from sft_samples
    inner join repeated using (recipe, source)
    where sft_samples.split = 'train'

),

numbered as (

    select
        *,
        row_number() over (partition by recipe order by source) as source_number,
        sum(run_quota) over (partition by recipe) as run_positions,
    from source_quotas
    where run_quota > 0

),

woven as (

    select
        recipe,
        interleave({{ ordered_list("run_quota", ["source_number"]) }}) as source_numbers,
    from numbered
    group by recipe

),

unwoven as (

    select
        recipe,
        {{ each_with_place("source_numbers", "source_number", "position") }},
    from woven

),

turns_placed as (

    select
        recipe,
        source_number,
        position,
        row_number() over (partition by recipe, source_number order by position) - 1 as turn,
    from unwoven

),

placed as (

    select
        shuffled.recipe,
        {{ div("turns_placed.position * numbered.epochs", "numbered.run_positions") }} + 1
            as epoch,
        shuffled.source,
        shuffled.trajectory_id,
        shuffled.estimated_tokens,
        shuffled.pass,
        turns_placed.position,
    from shuffled
    inner join numbered
        on shuffled.recipe = numbered.recipe and shuffled.source = numbered.source
    inner join turns_placed
        on
            shuffled.recipe = turns_placed.recipe
            and numbered.source_number = turns_placed.source_number
            and shuffled.turn = turns_placed.turn

),

budgeted as (

    select
        placed.*,
        sum(placed.estimated_tokens) over (
            partition by recipe order by placed.position
        ) as run_tokens,
        source_quotas.token_budget,
    from placed
    inner join source_quotas using (recipe, source)

),

train as (

    select
        recipe,
        'train' as split,
        epoch,
        position,
        trajectory_id,
        source,
        pass,
    from budgeted
    where token_budget is null or run_tokens <= token_budget

),

eval as (

    select
        recipe,
        'eval' as split,
        1 as epoch,
        row_number() over (
            partition by recipe
            order by
                md5(concat_ws('|', recipe_settings.seed, 'eval', sft_samples.trajectory_id)),
                sft_samples.trajectory_id
        ) - 1 as position,
        sft_samples.trajectory_id,
        source,
        1 as pass,
    from sft_samples
    inner join recipe_settings using (recipe, source)
    where sft_samples.split = 'eval'

),

planned as (

    select * from train
    union all
    select * from eval

),

-- Stored in the order in which it is read.
described as (

    select
        recipe,
        split,
        cast(epoch as integer) as epoch,
        cast(position as bigint) as position,
        trajectory_id,
        source,
        cast(pass as integer) as pass,
    from planned
    order by recipe, split, position

)

select * from described
