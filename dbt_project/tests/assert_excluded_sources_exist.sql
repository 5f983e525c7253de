-- A misspelt name would let the source in that was to stay out.
select
    excluded.source,
    'exclude_sources names it, and the lake has no source of that name' as failure_reason,
from (
    {%- for source in var("exclude_sources") %}
    select {{ text_literal(source) }} as source
    {{ "union all" if not loop.last }}
    {%- else %}
    select cast(null as {{ dbt.type_string() }}) as source
    {%- endfor %}
) as excluded
where
    excluded.source is not null
    and excluded.source not in (select source from {{ ref("recipe_settings") }})
