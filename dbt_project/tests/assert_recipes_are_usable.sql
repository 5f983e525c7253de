-- What a seed's columns cannot say of themselves; runs before any model that reads them.
select recipe, 'recipe: use lower-case letters, digits, `-` and `_`' as failure_reason
from {{ ref("recipes") }}
where not {{ is_plain_name("recipe") }}

union all

select recipe, 'epochs: at least 1' as failure_reason
from {{ ref("recipes") }}
where epochs < 1

union all

select recipe, 'eval_fraction: from 0 to below 1' as failure_reason
from {{ ref("recipes") }}
where not (eval_fraction >= 0 and eval_fraction < 1)

union all

select recipe, 'temperature: more than 0' as failure_reason
from {{ ref("recipes") }}
where not temperature > 0

union all

select recipe, 'token_budget: more than 0, or empty for no limit' as failure_reason
from {{ ref("recipes") }}
where token_budget <= 0

union all

select
    recipe,
    'it has no row in recipe_sources; `' || recipe || ',*,1.0,3` takes all' as failure_reason
from {{ ref("recipes") }}
where recipe not in (select recipe from {{ ref("recipe_sources") }})

union all

select recipe, 'weight of ' || source || ': 0 or more' as failure_reason
from {{ ref("recipe_sources") }}
where not weight >= 0

union all

select recipe, 'max_repeats of ' || source || ': at least 1' as failure_reason
from {{ ref("recipe_sources") }}
where max_repeats < 1

union all

select recipe, source || ' stands more than once in recipe_sources' as failure_reason
from {{ ref("recipe_sources") }}
group by recipe, source
having count(*) > 1

union all

select recipe, 'agent_share: more than 0 and below 1, or empty' as failure_reason
from {{ ref("recipes") }}
where not (agent_share > 0 and agent_share < 1)

union all

select
    recipe,
    'agent_share: it needs general sources; set is_general in recipe_sources' as failure_reason
from {{ ref("recipes") }}
where
    agent_share is not null
    and recipe not in (
        select recipe
        from {{ ref("recipe_sources") }}
        where is_general
    )

union all

select recipe, 'metadata_prefix: ' || word || ' is none of its columns' as failure_reason
from (
    select
        recipe,
        {{ each_word("metadata_prefix") }} as word,
    from {{ ref("recipes") }}
)
where
    word not in (
        {%- for column in metadata_columns() %}
        '{{ column }}'{{ "," if not loop.last }}
        {%- endfor %}
    )

union all

select
    recipe,
    'quota of ' || dimension || ' ' || value || ': max_trajectories is at least 1'
        as failure_reason
from {{ ref("recipe_quotas") }}
where max_trajectories < 1

union all

select recipe, 'quota of ' || dimension || ': ' || value || ' stands there twice' as failure_reason
from {{ ref("recipe_quotas") }}
group by recipe, dimension, value
having count(*) > 1
