{#- Who votes follows from the settings of `ratings`, and is worked out by what rates there. -#}
{%- set raters = raters_of("ratings") %}

with raters as (

    {% for rater in raters -%}
    select
        {{ text_literal(rater.rater_id) }} as rater_id,
        {{ text_literal(rater.rater) }} as rater,
        {{ text_literal(rater.rate_model) }} as rate_model,
        {{ text_literal(rater.judge) }} as judge,
        {{ "true" if rater.is_tie_breaker else "false" }} as is_tie_breaker,
        {{ text_literal(rater.committee_id) }} as committee_id,
        {{ text_literal(rater.committee_name) }} as committee_name
    {{- "\n    union all\n    " if not loop.last }}
    {%- endfor %}

)

select * from raters
