{{ config(materialized="delta", on_schema_change="replace") }}

with pair_candidates as (

    select * from {{ ref("pair_candidates") }}
    where is_kept

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

described as (

    select
        pair_candidates.recipe,
        md5(concat_ws('|', level, chosen_id, rejected_id, prefix_steps)) as pair_id,
        pair_candidates.level,
        pair_candidates.task_key,
        {{ split_of_task(
            "recipe_settings.seed", "pair_candidates.task_key", "recipe_settings.eval_fraction"
        ) }} as split,
        pair_candidates.source,
        pair_candidates.chosen_id,
        pair_candidates.rejected_id,
        pair_candidates.margin_on,
        pair_candidates.chosen_value,
        pair_candidates.rejected_value,
        pair_candidates.margin,
        pair_candidates.prefix_steps,
        pair_candidates.chosen_last_step,
        pair_candidates.rejected_last_step,
        pair_candidates.chosen_tokens,
        pair_candidates.rejected_tokens,
        pair_candidates.length_ratio,
        recipe_settings.weight,
        pair_candidates.is_same_prompt,
    from pair_candidates
    inner join recipe_settings
        on
            pair_candidates.recipe = recipe_settings.recipe
            and pair_candidates.source = recipe_settings.source

)

select * from described
