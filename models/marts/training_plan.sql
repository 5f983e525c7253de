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
        repeated.epochs,
        repeated.run_quota,
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

dated as (

    select
        *,
        {{ div("turn * epochs", "run_quota") }} + 1 as epoch,
    from shuffled
    where turn < run_quota

),

shared_out as (

    select
        recipe,
        epoch,
        source,
        min(turn) as first_turn,
        count(*) as quota,
        row_number() over (partition by recipe, epoch order by source) as source_number,
    from dated
    group by recipe, epoch, source

),

epochs_woven as (

    select
        recipe,
        epoch,
        interleave({{ ordered_list("quota", ["source_number"]) }}) as places,
        sum(quota) as epoch_quota,
    from shared_out
    group by recipe, epoch

),

chained as (

    select
        *,
        cast(coalesce(sum(epoch_quota) over earlier, 0) as bigint) as epoch_start,
    from epochs_woven
    window
        earlier as (
            partition by recipe order by epoch
            rows between unbounded preceding and 1 preceding
        )

),

unwoven as (

    select
        recipe,
        epoch,
        epoch_start,
        {{ each_with_place("places", "source_number", "place") }},
    from chained

),

turns_placed as (

    select
        recipe,
        epoch,
        source_number,
        epoch_start + place as position,
        row_number() over (
            partition by recipe, epoch, source_number order by place
        ) - 1 as turn_in_epoch,
    from unwoven

),

placed as (

    select
        dated.recipe,
        dated.epoch,
        dated.source,
        dated.trajectory_id,
        dated.estimated_tokens,
        dated.pass,
        turns_placed.position,
    from dated
    inner join shared_out
        on
            dated.recipe = shared_out.recipe
            and dated.epoch = shared_out.epoch
            and dated.source = shared_out.source
    inner join turns_placed
        on
            dated.recipe = turns_placed.recipe
            and dated.epoch = turns_placed.epoch
            and shared_out.source_number = turns_placed.source_number
            and dated.turn - shared_out.first_turn = turns_placed.turn_in_epoch

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
