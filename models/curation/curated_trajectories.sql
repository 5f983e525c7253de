{{ config(materialized="delta", on_schema_change="replace") }}

with rated_trajectories as (

    select * from {{ ref("rated_trajectories") }}

),

task_keys as (

    select
        trajectory_id,
        task_key,
    from {{ ref("task_keys") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

recipes as (

    select distinct
        recipe,
        filter,
    from recipe_settings

),

measured as (

    select
        rated_trajectories.*,
        task_keys.task_key,
        {{ has_trainable_output("rated_trajectories.steps") }} as has_trainable_output,
    from rated_trajectories
    left join task_keys on rated_trajectories.trajectory_id = task_keys.trajectory_id

),

-- Of the recipe, only its name is added: a filter's columns stay unambiguous.
paired as (

    select
        measured.*,
        recipes.recipe,
    from measured
    cross join recipes

),

judged as (

    select
        recipe,
        trajectory_id,
        content_sha256,
        source,
        task_key,
        rating_status,
        rater_score,
        score,
        coalesce({{ passes_filter() }}, false) as passes_filter,
        has_trainable_output,
    from paired

),

-- The order of the cases is the order of the verdicts.
refused as (

    select
        judged.*,
        case
            when coalesce(recipe_settings.weight, 0) = 0 then 'source_not_in_recipe'
            when judged.rater_score is null then 'not_rated'
            when not judged.passes_filter then 'filtered'
            when not judged.has_trainable_output then 'no_trainable_output'
        end as refusal,
    from judged
    left join recipe_settings using (recipe, source)

),

ranked as (

    select
        *,
        row_number() over same_content as copy_number,
        first_value(trajectory_id) over same_content as best_copy,
    from refused
    window
        same_content as (
            partition by recipe, content_sha256, refusal is null
            order by score desc nulls last, rater_score desc nulls last, trajectory_id asc
        )

),

decided as (

    select
        *,
        case
            when refusal is not null then refusal
            when copy_number > 1 then 'duplicate_content'
            else 'kept'
        end as reason,
    from ranked

),

explained as (

    select
        decided.recipe,
        decided.trajectory_id,
        decided.content_sha256,
        decided.source,
        decided.task_key,
        decided.reason,
        case decided.reason
            when 'not_rated' then coalesce(decided.rating_status, 'no rating')
            when 'filtered' then recipes.filter
            when 'duplicate_content' then decided.best_copy
        end as reason_detail,
        decided.rater_score,
        decided.score,
        decided.reason = 'kept' as is_kept,
    from decided
    inner join recipes using (recipe)

)

select * from explained
