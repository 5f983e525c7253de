select
    labels.label_id,
    labels.label,
    labels.value,
    'its scale in label_kinds is ' || label_kinds.lowest || ' to ' || label_kinds.highest
        as failure_reason,
from {{ ref("labels") }} as labels
inner join {{ ref("label_kinds") }} as label_kinds on labels.label = label_kinds.label
where labels.value not between label_kinds.lowest and label_kinds.highest
