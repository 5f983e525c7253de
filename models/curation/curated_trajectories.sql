{{ config(materialized="delta", on_schema_change="replace") }}
{%- set best_first = "is_salvaged asc, score desc nulls last, rater_score desc nulls last, "
    ~ "estimated_tokens desc, trajectory_id asc" %}

with measured_trajectories as (

    select * from {{ ref("measured_trajectories") }}

),

trajectory_flags as (

    select
        trajectory_id,
        unmasked_steps,
        trainable_steps,
        sound_steps,
    from {{ ref("trajectory_flags") }}

),

benchmark_overlap as (

    select * from {{ ref("benchmark_overlap") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

quota_settings as (

    select * from {{ ref("quota_settings") }}

),

recipes as (

    select distinct
        recipe,
        filter,
        excluded_benchmarks,
    from recipe_settings

),

-- Of the recipe, only its name is added: a filter's columns stay unambiguous.
paired as (

    select
        measured_trajectories.*,
        recipes.recipe,
    from measured_trajectories
    cross join recipes

),

judged as (

    select
        recipe,
        trajectory_id,
        content_sha256,
        source,
        environment,
        task_type,
        model_name,
        task_key,
        rating_status,
        rater_score,
        score,
        estimated_tokens,
        near_duplicate_cluster,
        -- What is left of a failed run ends before its first error, so there has to be one.
        first_error_step is not null
        and coalesce({{ passes_filter("salvage_filter") }}, false) as passes_salvage_filter,
        coalesce({{ passes_filter("filter") }}, false) as passes_filter,
    from paired

),

-- The first piece of evidence for each recipe that excludes the benchmark.
found_in_benchmarks as (

    select
        recipes.recipe,
        benchmark_overlap.trajectory_id,
        min(concat_ws(
            ' ',
            benchmark_overlap.benchmark,
            benchmark_overlap.item_id,
            concat('(', benchmark_overlap.kind, ')')
        )) as evidence,
    from recipes
    inner join benchmark_overlap
        on
            recipes.excluded_benchmarks = '*'
            or {{ has_word("recipes.excluded_benchmarks", "benchmark_overlap.benchmark") }}
    group by recipes.recipe, benchmark_overlap.trajectory_id

),

selected as (

    select
        judged.*,
        found_in_benchmarks.evidence,
        recipe_settings.drops_near_duplicates,
        coalesce(recipe_settings.is_excluded, false) as is_excluded,
        coalesce(recipe_settings.weight, 0) as weight,
        not judged.passes_filter and judged.passes_salvage_filter as is_salvaged,
        case
            when not judged.passes_filter then trajectory_flags.sound_steps
            when recipe_settings.masks_bad_steps then trajectory_flags.trainable_steps
            else trajectory_flags.unmasked_steps
        end as trained_steps,
    from judged
    left join recipe_settings
        on judged.recipe = recipe_settings.recipe and judged.source = recipe_settings.source
    left join trajectory_flags -- noqa: ST11
        on judged.trajectory_id = trajectory_flags.trajectory_id
    left join found_in_benchmarks
        on
            judged.recipe = found_in_benchmarks.recipe
            and judged.trajectory_id = found_in_benchmarks.trajectory_id

),

-- The order of the cases is the order of the verdicts.
refused as (

    select
        *,
        case
            when is_excluded then 'source_excluded'
            when weight = 0 then 'source_not_in_recipe'
            when rater_score is null then 'not_rated'
            when evidence is not null then 'benchmark_overlap'
            when not (passes_filter or is_salvaged) then 'filtered'
            when coalesce({{ length_of("trained_steps") }}, 0) = 0 then 'no_trainable_output'
        end as refusal,
    from selected

),

compared as (

    select
        *,
        row_number() over same_content as copy_number,
        first_value(trajectory_id) over same_content as best_copy,
    from refused
    window
        same_content as (
            partition by recipe, content_sha256, refusal is null
            order by {{ best_first }}
        )

),

-- Of contents that are nearly the same, those that are left are compared again.
compared_nearly as (

    select
        *,
        row_number() over nearly_same as near_copy_number,
        first_value(trajectory_id) over nearly_same as best_near_copy,
    from compared
    window
        nearly_same as (
            partition by
                recipe,
                coalesce(near_duplicate_cluster, content_sha256),
                refusal is null and copy_number = 1
            order by {{ best_first }}
        )

),

distinguished as (

    select
        *,
        case
            when refusal is not null then refusal
            when copy_number > 1 then 'duplicate_content'
            when near_copy_number > 1 and drops_near_duplicates then 'near_duplicate'
        end as fault,
    from compared_nearly

),

limited_dimensions as (

    select distinct
        recipe,
        dimension,
    from quota_settings

),

-- What is left, once for each dimension that the recipe has a quota for.
counted as (

    select
        distinguished.*,
        limited_dimensions.dimension,
        case limited_dimensions.dimension
            when 'source' then distinguished.source
            when 'environment' then distinguished.environment
            when 'task_type' then distinguished.task_type
            when 'task_key' then distinguished.task_key
            when 'model_name' then distinguished.model_name
        end as value,
    from distinguished
    inner join limited_dimensions on distinguished.recipe = limited_dimensions.recipe
    where distinguished.fault is null

),

placed as (

    select
        counted.recipe,
        counted.trajectory_id,
        counted.dimension,
        counted.value,
        coalesce(named.max_trajectories, others.max_trajectories) as max_trajectories,
        row_number() over (
            partition by counted.recipe, counted.dimension, counted.value
            order by {{ best_first }}
        ) as place,
    from counted
    left join quota_settings as named
        on
            counted.recipe = named.recipe
            and counted.dimension = named.dimension
            and counted.value = named.value
    left join quota_settings as others
        on
            counted.recipe = others.recipe
            and counted.dimension = others.dimension
            and others.value = '*'
    where counted.value is not null

),

over_quota as (

    select
        recipe,
        trajectory_id,
        min(concat(dimension, ' ', value, ': ', max_trajectories)) as quota,
    from placed
    where place > max_trajectories
    group by recipe, trajectory_id

),

decided as (

    select
        distinguished.*,
        over_quota.quota,
        case
            when distinguished.fault is not null then distinguished.fault
            when over_quota.quota is not null then 'over_quota'
            when distinguished.is_salvaged then 'salvaged'
            else 'kept'
        end as reason,
    from distinguished
    left join over_quota
        on
            distinguished.recipe = over_quota.recipe
            and distinguished.trajectory_id = over_quota.trajectory_id

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
            when 'benchmark_overlap' then decided.evidence
            when 'filtered' then recipes.filter
            when 'duplicate_content' then decided.best_copy
            when 'near_duplicate' then decided.best_near_copy
            when 'over_quota' then decided.quota
        end as reason_detail,
        decided.rater_score,
        decided.score,
        case when decided.reason in ('kept', 'salvaged') then decided.trained_steps end
            as trained_steps,
        decided.reason in ('kept', 'salvaged') as is_kept,
    from decided
    inner join recipes on decided.recipe = recipes.recipe

)

select * from explained
