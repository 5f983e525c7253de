{%- set aggregate = var("rater_aggregate") -%}
{%- set tie_breaker = var("rater_tie_breaker") or {} -%}
{%- set members = "count(case when not is_tie_breaker then 1 end)" %}

with trajectories as (

    select * from {{ ref("trajectories") }}

),

verifications as (

    select * from {{ ref("verifications") }}

),

raters as (

    select * from {{ ref("raters") }}

),

rating_calibrations as (

    select * from {{ ref("rating_calibrations") }}
    where label = {{ dbt.string_literal(dbt.escape_single_quotes(var("success_label"))) }}

),

committee_ratings as (

    select
        *,
        case when not is_tie_breaker then rater_score end as vote,
    from {{ ref("committee_ratings") }}

),

committee as (

    select
        committee_id,
        committee_name,
        count(*) as raters,
        -- The votes that make a score: more than half of the members', if not said otherwise.
        {{ var("rater_min_votes") or "floor(" ~ members ~ " / 2) + 1" }} as min_votes,
    from raters
    group by committee_id, committee_name

),

counted as (

    select
        content_sha256,
        count(vote) as rater_votes,
        -- Rounded, so that a score of 4 is not a hair below 4.
        round(avg(vote), 6) as mean_score,
        median(vote) as median_score,
        case when count(vote) > 1 then round(max(vote) - min(vote), 6) end as rater_spread,
        case when count(vote) > 1 then round(stddev_pop(vote), 6) end as rater_stddev,
        max(case when is_tie_breaker then rater_score end) as tie_breaker_score,
        min(shown_share) as shown_share,
        max(rated_at) as rated_at,
        -- Of a rater that is alone, what it said; of several, who said what.
        min(status) as status,
        {% if var("rater_committee") -%}
        {{ joined_texts(
            ordered_list(
                "concat(judge, ': ', coalesce(cast(rater_score as "
                ~ dbt.type_string() ~ "), status), chr(10), coalesce(explanation, ''))",
                ["is_tie_breaker", "judge"],
            ),
            "chr(10)",
        ) }} as explanation,
        {%- else -%}
        min(explanation) as explanation,
        {%- endif %}
    from committee_ratings
    group by content_sha256

),

{% if aggregate == "majority" -%}
-- Whole points that more than half of the votes gave.
points_counted as (

    select
        content_sha256,
        floor(vote + 0.5) as points,
        count(*) as points_votes,
    from committee_ratings
    where vote is not null
    group by content_sha256, floor(vote + 0.5)

),

majorities as (

    select
        points_counted.content_sha256,
        points_counted.points,
    from points_counted
    inner join counted on points_counted.content_sha256 = counted.content_sha256
    where points_counted.points_votes * 2 > counted.rater_votes

),

{% endif -%}
-- It fails closed: too few votes, no majority, or a dispute that nobody has settled give no score.
decided as (

    select
        counted.*,
        committee.committee_id,
        committee.committee_name,
        committee.raters = 1 as is_alone,
        case
            when counted.rater_votes < committee.min_votes then null
            {% if tie_breaker -%}
            when counted.rater_spread > {{ tie_breaker.when_spread_over }}
                then counted.tie_breaker_score
            {% endif -%}
            else {{ {
                "mean": "counted.mean_score",
                "median": "counted.median_score",
                "majority": "majorities.points",
            }[aggregate] }}
        end as rater_score,
        counted.rater_votes >= committee.min_votes
        {%- if tie_breaker %}
        and counted.rater_spread <= {{ tie_breaker.when_spread_over }}
        {%- endif %} as is_complete,
    from counted
    cross join committee
    {% if aggregate == "majority" -%}
    left join majorities on counted.content_sha256 = majorities.content_sha256
    {%- endif %}

),

joined as (

    select
        trajectories.*,
        decided.committee_id as rater_id,
        decided.committee_name as rate_model,
        decided.rater_score,
        {{ interpolated("rating_calibrations.knots", "decided.rater_score") }} -- noqa: PRS,LT02
            as success_probability,
        case
            {% if var("rater_skip_refuted") -%}
            when decided.content_sha256 is null and not verifications.format_ok
                then 'refuted'
            {% endif -%}
            when decided.is_alone then decided.status
            when decided.rater_score is not null then 'ok'
            when decided.is_complete then 'no_majority'
            when decided.content_sha256 is not null then 'incomplete'
        end as rating_status,
        {% if var("rater_skip_refuted") -%}
        case
            when decided.content_sha256 is null and not verifications.format_ok
                then {{ failure_text("verifications.failures") }}
            else decided.explanation
        end as rating_explanation,
        {%- else -%}
        decided.explanation as rating_explanation,
        {%- endif %}
        decided.rated_at,
        decided.rater_votes,
        decided.rater_spread,
        decided.rater_stddev,
        decided.shown_share,
        verifications.calls,
        verifications.calls_checked,
        verifications.format_ok,
        verifications.first_failed_step,
        verifications.error_observations,
        verifications.error_classes,
    from trajectories
    left join decided on trajectories.content_sha256 = decided.content_sha256
    left join verifications -- noqa: ST11
        on trajectories.trajectory_id = verifications.trajectory_id
    left join rating_calibrations -- noqa: ST11
        on
            decided.committee_id = rating_calibrations.rater_id
            and coalesce(trajectories.environment, trajectories.source)
            = rating_calibrations.environment

)

select * from joined
