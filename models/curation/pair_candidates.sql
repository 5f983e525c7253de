{{ config(materialized="delta", on_schema_change="replace") }}
{%- set scale = ["recipe", "margin_on", "scale", "task_key", "prompt_md5"] %}
{%- set per_action, per_prompt = 8, 16 %}

-- How pairs come about, and why so: docs/preference-pairs.md.
with curated_trajectories as (

    select * from {{ ref("curated_trajectories") }}

),

measured_trajectories as (

    select * from {{ ref("measured_trajectories") }}

),

recipe_settings as (

    select * from {{ ref("recipe_settings") }}

),

trajectory_flags as (

    select * from {{ ref("trajectory_flags") }}

),

decision_points as (

    select * from {{ ref("decision_points") }}

),

-- What a source's scores span is all that is known of their scale.
score_scales as (

    select
        source,
        {{ var("pair_score_margin") }} * (max(score) - min(score)) as least_margin,
    from measured_trajectories
    group by source

),

fit as (

    select
        curated_trajectories.recipe,
        curated_trajectories.trajectory_id,
        curated_trajectories.content_sha256,
        curated_trajectories.task_key,
        curated_trajectories.source,
        curated_trajectories.score,
        curated_trajectories.rater_score,
        measured_trajectories.rater_id,
        measured_trajectories.near_duplicate_cluster,
        score_scales.least_margin as least_score_margin,
        curated_trajectories.reason = 'kept' as is_good,
    from curated_trajectories
    inner join recipe_settings
        on
            curated_trajectories.recipe = recipe_settings.recipe
            and curated_trajectories.source = recipe_settings.source
    inner join measured_trajectories
        on curated_trajectories.trajectory_id = measured_trajectories.trajectory_id
    inner join score_scales on curated_trajectories.source = score_scales.source
    where
        recipe_settings.weight > 0
        and not recipe_settings.is_excluded
        and not {{ names_any(
            "recipe_settings.excluded_benchmarks", "measured_trajectories.benchmarks"
        ) }}
        -- Null for a run that no judge has read.
        and coalesce(measured_trajectories.shown_share, 1) >= 1

),

-- One run of each content: a copy would make the same pair again.
distinct_runs as (

    select
        *,
        row_number() over (
            partition by recipe, content_sha256
            order by is_good desc, score desc nulls last, trajectory_id asc
        ) as copy_number,
    from fit

),

-- A run has one row for each measure that it has a value on.
valued as {{ inlined() }} (

    select
        *,
        'score' as margin_on,
        source as scale,
        score as value,
        least_score_margin as least_margin,
    from distinct_runs
    where copy_number = 1 and score is not null
    union all
    select
        *,
        'rater_score' as margin_on,
        rater_id as scale,
        rater_score as value,
        {{ var("pair_rater_margin") }} as least_margin,
    from distinct_runs
    where copy_number = 1 and rater_score is not null

),

-- Measures of a task on which its runs differ enough to make a pair.
contested as (

    select {{ scale[:4] | join(", ") }}
    from valued
    group by {{ scale[:4] | join(", ") }}
    having
        {{ is_margin("max(case when is_good then value end)", "min(value)", "min(least_margin)") }}

),

rivals as (

    select valued.*
    from valued
    inner join contested
        on
            {% for column in scale[:4] -%}
            valued.{{ column }} = contested.{{ column }}
            {% if not loop.last %}and {% endif -%}{% endfor %}

),

rival_ids as (

    select distinct
        trajectory_id,
        task_key,
    from rivals

),

unmasked as (

    select
        decision_points.trajectory_id,
        rival_ids.task_key,
        decision_points.first_turn_md5,
        {{ first_item("decision_points.decisions") }}.prompt_md5 as first_prompt_md5,
        {{ decisions_in("decision_points.decisions", "trajectory_flags.unmasked_steps") }}
            as decisions,
    from decision_points
    inner join rival_ids on decision_points.trajectory_id = rival_ids.trajectory_id
    inner join trajectory_flags
        on decision_points.trajectory_id = trajectory_flags.trajectory_id

),

-- A run ends with the last thing that the agent says, here and below.
unnested as (

    select
        *,
        {{ last_item("decisions") }} as last_decision,
        {{ each_of("decisions") }} as decision,
    from unmasked

),

points as (

    select
        trajectory_id,
        task_key,
        first_turn_md5,
        decision.prompt_md5,
        decision.action_md5,
        decision.step_id,
        decision.prompt_md5 = first_prompt_md5 as is_first,
        last_decision.step_id as last_step,
        last_decision.tokens_through - decision.tokens_before as tokens,
        last_decision.agent_tokens_through - decision.agent_tokens_before as agent_tokens,
    from unnested

),

-- Prompts after which runs do different things. Any two runs part once, after the longest
-- prompt that they have in common.
forks as (

    select
        task_key,
        prompt_md5,
    from points
    group by task_key, prompt_md5
    having min(action_md5) < max(action_md5)

),

placed as (

    select
        points.*,
        rivals.recipe,
        rivals.margin_on,
        rivals.scale,
        rivals.value,
        rivals.least_margin,
        rivals.content_sha256,
        rivals.source,
        rivals.score,
        rivals.rater_score,
        rivals.rater_id,
        rivals.near_duplicate_cluster,
        rivals.least_score_margin,
        rivals.is_good,
        max(case when rivals.is_good then rivals.value end) over fork as best_value,
        min(rivals.value) over fork as worst_value,
    from points
    inner join forks
        on points.task_key = forks.task_key and points.prompt_md5 = forks.prompt_md5
    inner join rivals on points.trajectory_id = rivals.trajectory_id
    window fork as (
        partition by rivals.{{ scale[:4] | join(", rivals.") }}, points.prompt_md5
    )

),

promising as (

    select * from placed
    where {{ is_margin("best_value", "worst_value", "least_margin") }}

),

-- The best and the worst of each action, and then of each fork: however many runs a task has,
-- few are compared, and those of one action never crowd out all others.
ranked_in_action as (

    select
        *,
        row_number() over (
            partition by {{ scale | join(", ") }}, action_md5, is_good
            order by value desc, trajectory_id asc
        ) as best_in_action,
        row_number() over (
            partition by {{ scale | join(", ") }}, action_md5
            order by value asc, trajectory_id asc
        ) as worst_in_action,
    from promising

),

best as (

    select
        *,
        row_number() over (
            partition by {{ scale | join(", ") }}
            order by value desc, best_in_action asc, trajectory_id asc
        ) as place,
    from ranked_in_action
    where is_good and best_in_action <= {{ per_action }}

),

worst as (

    select
        *,
        row_number() over (
            partition by {{ scale | join(", ") }}
            order by value asc, worst_in_action asc, trajectory_id asc
        ) as place,
    from ranked_in_action
    where worst_in_action <= {{ per_action }}

),

paired as (

    select
        best.recipe,
        best.margin_on,
        case when best.is_first then 'trajectory' else 'step' end as level,
        best.task_key,
        best.source,
        best.trajectory_id as chosen_id,
        worst.trajectory_id as rejected_id,
        best.value as chosen_value,
        worst.value as rejected_value,
        round(best.value - worst.value, 6) as margin,
        best.step_id - 1 as prefix_steps,
        best.last_step as chosen_last_step,
        worst.last_step as rejected_last_step,
        best.tokens as chosen_tokens,
        worst.tokens as rejected_tokens,
        best.agent_tokens / cast(greatest(worst.agent_tokens, 1) as double) as length_ratio,
        best.first_turn_md5 = worst.first_turn_md5 as is_same_prompt,
        abs(best.place - worst.place) as distance,
        coalesce(best.near_duplicate_cluster = worst.near_duplicate_cluster, false)
            as is_near_duplicate,
        case best.margin_on
            when 'score'
                then
                    best.rater_id = worst.rater_id
                    and {{ is_margin(
                        "worst.rater_score", "best.rater_score", var("pair_rater_margin")
                    ) }}
            else
                best.source = worst.source
                and {{ is_margin("worst.score", "best.score", "best.least_score_margin") }}
        end as is_disputed,
    from best
    inner join worst
        on
            {% for column in scale -%}
            best.{{ column }} = worst.{{ column }}
            and {% endfor -%}
            best.action_md5 <> worst.action_md5
            and {{ is_margin("best.value", "worst.value", "best.least_margin") }}
    where best.place <= {{ per_prompt }} and worst.place <= {{ per_prompt }}

),

guarded as (

    select
        *,
        case
            -- What two runs have in common up to a fork makes them no near duplicates.
            when level = 'trajectory' and is_near_duplicate then 'near_duplicate'
            when is_disputed then 'measures_disagree'
            when
                length_ratio > {{ var("pair_max_length_ratio") }}
                or length_ratio < 1 / cast({{ var("pair_max_length_ratio") }} as double)
                then 'length_ratio'
        end as fault,
    from paired

),

-- The environment's word comes first, where both measures make the same pair.
counted_by_measure as (

    select
        *,
        row_number() over (
            partition by recipe, chosen_id, rejected_id, fault is null
            order by margin_on desc
        ) as measure_number,
    from guarded

),

distinguished as (

    select
        *,
        case
            when fault is not null then fault
            when measure_number > 1 then 'paired_by_score'
        end as fault_or_repeat,
    from counted_by_measure

),

{% set order = "margin_on desc, distance asc, margin desc, chosen_id asc, rejected_id asc" -%}
-- Three times the pairs that are left are counted; those that are too many drop out in between.
counted_by_chosen as (

    select
        *,
        row_number() over (
            partition by recipe, level, chosen_id, fault_or_repeat is null
            order by {{ order }}
        ) as chosen_number,
    from distinguished

),

counted_by_rejected as (

    select
        *,
        row_number() over (
            partition by
                recipe,
                level,
                rejected_id,
                fault_or_repeat is null and chosen_number <= {{ var("pair_max_per_trajectory") }}
            order by {{ order }}
        ) as rejected_number,
    from counted_by_chosen

),

limited as (

    select
        *,
        case
            when fault_or_repeat is not null then fault_or_repeat
            when
                greatest(chosen_number, rejected_number) > {{ var("pair_max_per_trajectory") }}
                then 'trajectory_has_pairs'
        end as fault_or_excess,
    from counted_by_rejected

),

counted_by_task as (

    select
        *,
        row_number() over (
            partition by recipe, level, task_key, fault_or_excess is null
            order by {{ order }}
        ) as task_number,
    from limited

),

described as (

    select
        recipe,
        margin_on,
        level,
        task_key,
        source,
        chosen_id,
        rejected_id,
        case
            when fault_or_excess is not null then fault_or_excess
            when task_number > {{ var("pair_max_per_task") }} then 'task_has_pairs'
            else 'kept'
        end as reason,
        chosen_value,
        rejected_value,
        margin,
        prefix_steps,
        chosen_last_step,
        rejected_last_step,
        chosen_tokens,
        rejected_tokens,
        length_ratio,
        is_same_prompt,
        fault_or_excess is null and task_number <= {{ var("pair_max_per_task") }} as is_kept,
    from counted_by_task

)

select * from described
