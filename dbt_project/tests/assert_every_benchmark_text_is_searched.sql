{{ config(severity="warn") }}

-- Nothing is dropped without a word: what is not searched for, and why.
select
    benchmark,
    item_id,
    benchmark_file,
    problem || ': ' || problem_detail as failure_reason,
from {{ ref("benchmark_items") }}
where problem is not null
