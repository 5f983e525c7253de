{{ config(materialized="delta", on_schema_change="replace") }}
{%- set reasons = [
    "source_excluded",
    "source_not_in_recipe",
    "not_rated",
    "benchmark_overlap",
    "filtered",
    "no_trainable_output",
    "duplicate_content",
    "near_duplicate",
    "over_quota",
] %}

with recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

raw_records as (

    select * from {{ ref("raw_records") }}

),

quarantine as (

    select * from {{ ref("quarantine") }}

),

curated_trajectories as (

    select * from {{ ref("curated_trajectories") }}

),

training_plan as (

    select * from {{ ref("training_plan") }}

),

landed as (

    select
        source,
        count(*) as raw_records,
    from raw_records
    group by source

),

refused as (

    select
        source,
        count(*) as quarantined,
    from quarantine
    group by source

),

judged as (

    select
        recipe,
        source,
        count(*) as trajectories,
        count(rater_score) as rated,
        {% for reason in reasons -%}
        count(case when reason = '{{ reason }}' then 1 end) as {{ reason }},
        {% endfor -%}
        count(case when is_kept then 1 end) as kept,
        count(case when reason = 'salvaged' then 1 end) as salvaged,
        count(distinct case when is_kept then task_key end) as kept_tasks,
    from curated_trajectories
    group by recipe, source

),

planned as (

    select
        recipe,
        source,
        count(distinct case when split = 'train' then trajectory_id end)
            as train_trajectories,
        count(case when split = 'train' then 1 end) as train_positions,
        count(case when split = 'eval' then 1 end) as eval_trajectories,
    from training_plan
    group by recipe, source

),

described as (

    select
        recipe,
        source,
        landed.raw_records,
        coalesce(refused.quarantined, 0) as quarantined,
        coalesce(judged.trajectories, 0) as trajectories,
        coalesce(judged.rated, 0) as rated,
        {% for reason in reasons -%}
        coalesce(judged.{{ reason }}, 0) as {{ reason }},
        {% endfor -%}
        coalesce(judged.kept, 0) as kept,
        coalesce(judged.salvaged, 0) as salvaged,
        coalesce(judged.kept_tasks, 0) as kept_tasks,
        coalesce(planned.train_trajectories, 0) as train_trajectories,
        coalesce(planned.train_positions, 0) as train_positions,
        coalesce(planned.eval_trajectories, 0) as eval_trajectories,
    from recipe_settings
    inner join landed using (source)
    left join refused using (source)
    left join judged using (recipe, source)
    left join planned using (recipe, source)

)

select * from described
