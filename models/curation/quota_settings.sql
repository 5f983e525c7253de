{{ config(materialized="delta", on_schema_change="replace") }}

with recipe_quotas as (

    select * from {{ ref("recipe_quotas") }}

),

described as (

    select
        recipe,
        dimension,
        value,
        max_trajectories,
    from recipe_quotas

)

select * from described
