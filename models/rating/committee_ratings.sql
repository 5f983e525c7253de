with raters as (

    select * from {{ ref("raters") }}

),

ratings as (

    select
        rating_id,
        content_sha256,
        rater_id,
        rater_score,
        explanation,
        status,
        cost_usd,
        shown_share,
        attempt,
        rated_at,
    from {{ ref("ratings") }}

),

-- A rating with a score counts, else the latest status.
ranked as (

    select
        ratings.*,
        raters.judge,
        raters.rate_model,
        raters.is_tie_breaker,
        row_number() over (
            partition by ratings.content_sha256, ratings.rater_id
            order by
                case when ratings.status = 'ok' then 0 else 1 end asc,
                ratings.rated_at desc,
                ratings.attempt desc,
                ratings.rating_id asc
        ) as rating_rank,
    from ratings
    inner join raters on ratings.rater_id = raters.rater_id

),

described as (

    select
        rating_id,
        content_sha256,
        rater_id,
        coalesce(judge, rate_model) as judge,
        rate_model,
        explanation,
        status,
        case when status = 'ok' then rater_score end as rater_score,
        cost_usd,
        -- A rater that says nothing of it read everything.
        case when status = 'ok' then coalesce(shown_share, 1.0) end as shown_share,
        is_tie_breaker,
        rated_at,
    from ranked
    where rating_rank = 1

)

select * from described
