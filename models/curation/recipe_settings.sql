{{ config(materialized="delta", on_schema_change="replace") }}

with recipes as (

    select * from {{ ref("recipes") }}

),

recipe_sources as (

    select * from {{ ref("recipe_sources") }}

),

raw_records as (

    select * from {{ ref("raw_records") }}

),

sources as (

    select distinct
        source,
        {{ is_one_of("source", var("exclude_sources")) }} as is_excluded,
    from raw_records

),

matched as (

    select
        recipes.*,
        sources.source,
        sources.is_excluded,
        coalesce(named.source, others.source) as matched_by,
        coalesce(named.max_repeats, others.max_repeats, 0) as max_repeats,
        coalesce(named.weight, others.weight, 0.0) as weight,
        coalesce(named.is_general, others.is_general, false) as is_general,
    from recipes
    cross join sources
    left join recipe_sources as named
        on recipes.recipe = named.recipe and sources.source = named.source
    left join recipe_sources as others
        on recipes.recipe = others.recipe and others.source = '*'

),

described as (

    select
        recipe,
        source,
        matched_by,
        filter,
        salvage_filter,
        seed,
        epochs,
        max_repeats,
        token_budget,
        eval_fraction,
        temperature,
        weight,
        agent_share,
        excluded_benchmarks,
        metadata_prefix,
        is_excluded,
        is_general,
        masks_bad_steps,
        drops_near_duplicates,
        redacts_personal_data,
    from matched

)

select * from described
