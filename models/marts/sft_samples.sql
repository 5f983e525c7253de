{{ config(materialized="delta", on_schema_change="replace") }}
{%- set loss_flags = trained_messages(
    "conversations.message_steps", "conversations.agent_flags", "kept.trained_steps"
) %}

with curated_trajectories as (

    select * from {{ ref("curated_trajectories") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

trajectories as (

    select * from {{ ref("trajectories") }}

),

conversations as (

    select * from {{ ref("conversations") }}

),

kept as (

    select
        curated_trajectories.recipe,
        curated_trajectories.trajectory_id,
        curated_trajectories.source,
        {{ split_of_task(
            "recipe_settings.seed", "task_key", "recipe_settings.eval_fraction"
        ) }} as split,
        curated_trajectories.trained_steps,
        curated_trajectories.rater_score,
        recipe_settings.metadata_prefix as prefixed_columns,
    from curated_trajectories
    inner join recipe_settings
        on
            curated_trajectories.recipe = recipe_settings.recipe
            and curated_trajectories.source = recipe_settings.source
    where curated_trajectories.is_kept

),

joined as (

    select
        kept.*,
        trajectories.environment,
        trajectories.task_type,
        trajectories.model_name,
        trajectories.generator,
        trajectories.score,
        trajectories.license,
        conversations.message_tokens,
        conversations.estimated_tokens,
        {{ loss_flags }} as loss_flags, -- noqa: PRS
    from kept
    inner join trajectories on kept.trajectory_id = trajectories.trajectory_id
    inner join conversations on kept.trajectory_id = conversations.trajectory_id

),

described as (

    select
        recipe,
        trajectory_id,
        source,
        split,
        license,
        loss_flags,
        cast(1 as double) as weight,
        estimated_tokens,
        {{ sum_where("message_tokens", "loss_flags") }} as trained_tokens, -- noqa: PRS
        {{ metadata_lines("prefixed_columns") }} as metadata_prefix,
    from joined

)

select * from described
