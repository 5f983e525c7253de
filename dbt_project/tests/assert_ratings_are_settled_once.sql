-- What one rater settled for one content is never asked, and paid for, again: unless it was too
-- long or shortened, and another context or rule for long trajectories asks anew.
select
    content_sha256,
    rater_id,
    coalesce(
        long_rule,
        case when status = 'too_long' then 'too_long:endpoint' end
    ) as settled_by,
    count(*) as settled_ratings,
from {{ ref("ratings") }}
where status <> 'failed'
group by 1, 2, 3
having count(*) > 1
