-- Every trajectory is kept or dropped for one reason, and no source of the lake is left out.
with sources as (

    select distinct source from {{ ref("raw_records") }}

),

counted as (

    select
        recipes.recipe,
        sources.source,
        count(trajectories.trajectory_id) as trajectories,
    from {{ ref("recipes") }} as recipes
    cross join sources
    left join {{ ref("trajectories") }} as trajectories using (source)
    group by recipes.recipe, sources.source

)

select
    recipe,
    source,
    funnel.trajectories,
    counted.trajectories as trajectories_in_lake,
from {{ ref("funnel") }} as funnel
full outer join counted using (recipe, source)
where
    funnel.trajectories is distinct from counted.trajectories
    or funnel.trajectories is distinct from (
        funnel.kept
        + funnel.source_excluded
        + funnel.source_not_in_recipe
        + funnel.not_rated
        + funnel.benchmark_overlap
        + funnel.filtered
        + funnel.no_trainable_output
        + funnel.duplicate_content
        + funnel.near_duplicate
        + funnel.over_quota
    )
