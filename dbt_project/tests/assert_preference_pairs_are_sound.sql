-- A pair is two runs at one task with different contents, the better one first and kept by the
-- recipe, all pairs of a task in the split that its samples are in.
with pairs as (

    select
        preference_pairs.*,
        chosen.content_sha256 as chosen_content,
        rejected.content_sha256 as rejected_content,
        chosen.task_key as chosen_task,
        rejected.task_key as rejected_task,
        sft_samples.split as sample_split,
        row_number() over (
            partition by
                preference_pairs.recipe,
                least(preference_pairs.chosen_id, preference_pairs.rejected_id),
                greatest(preference_pairs.chosen_id, preference_pairs.rejected_id)
            order by preference_pairs.pair_id
        ) as pair_number,
        count(*) over chosen_runs as chosen_count,
        count(*) over rejected_runs as rejected_count,
        count(*) over tasks as task_count,
    from {{ ref("preference_pairs") }} as preference_pairs
    left join {{ ref("curated_trajectories") }} as chosen
        on
            preference_pairs.recipe = chosen.recipe
            and preference_pairs.chosen_id = chosen.trajectory_id
    left join {{ ref("curated_trajectories") }} as rejected
        on
            preference_pairs.recipe = rejected.recipe
            and preference_pairs.rejected_id = rejected.trajectory_id
    left join {{ ref("sft_samples") }} as sft_samples
        on
            preference_pairs.recipe = sft_samples.recipe
            and preference_pairs.chosen_id = sft_samples.trajectory_id
    window
        chosen_runs as (
            partition by
                preference_pairs.recipe, preference_pairs.level, preference_pairs.chosen_id
        ),
        rejected_runs as (
            partition by
                preference_pairs.recipe, preference_pairs.level, preference_pairs.rejected_id
        ),
        tasks as (
            partition by
                preference_pairs.recipe, preference_pairs.level, preference_pairs.task_key
        )

),

judged as (

    select
        recipe,
        pair_id,
        case
            when rejected_content is null then 'a run that is not in the lake'
            when sample_split is null then 'the chosen one is no sample of the recipe'
            when sample_split <> split then 'not in the split of its samples'
            when chosen_content = rejected_content then 'the same content'
            when chosen_task <> task_key or rejected_task <> task_key then 'two tasks'
            when not chosen_value > rejected_value or margin <= 0 then 'not better'
            when pair_number > 1 then 'the two runs are a pair already'
            when
                greatest(chosen_count, rejected_count) > {{ var("pair_max_per_trajectory") }}
                or task_count > {{ var("pair_max_per_task") }}
                then 'too many pairs'
            when level = 'step' and prefix_steps < 1 then 'nothing in common'
            when least(chosen_last_step, rejected_last_step) <= prefix_steps
                then 'nothing after the fork'
        end as failure_reason,
    from pairs

)

select * from judged
where failure_reason is not null
