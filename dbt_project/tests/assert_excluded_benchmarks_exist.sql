-- A misspelt name would let in what was to stay out.
select
    named.recipe,
    named.benchmark,
    'excluded_benchmarks names it, and there is no benchmark of that name' as failure_reason,
from (
    select
        recipe,
        {{ each_word("excluded_benchmarks") }} as benchmark,
    from {{ ref("recipes") }}
) as named
where
    named.benchmark <> '*'
    and named.benchmark not in (select benchmark from {{ ref("benchmark_items") }})
