-- Every kept trajectory is one sample, no other is, and every sample has something to learn.
with kept as (

    select *
    from {{ ref("curated_trajectories") }}
    where is_kept

)

select
    recipe,
    trajectory_id,
    case
        when kept.trajectory_id is null then 'a sample that is not kept'
        when sft_samples.trajectory_id is null then 'kept, and no sample'
        when conversations.trajectory_id is null then 'a sample without a conversation'
        when len(conversations.messages) <> len(sft_samples.loss_flags)
            then 'not one loss flag per message'
        else 'a sample without anything to learn'
    end as failure_reason,
from kept
full outer join {{ ref("sft_samples") }} as sft_samples using (recipe, trajectory_id)
left join {{ ref("conversations") }} as conversations using (trajectory_id)
where
    kept.trajectory_id is null
    or sft_samples.trajectory_id is null
    or conversations.trajectory_id is null
    or len(conversations.messages) <> len(sft_samples.loss_flags)
    or not list_contains(sft_samples.loss_flags, true)
