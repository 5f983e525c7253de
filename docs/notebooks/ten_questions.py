"""Ten questions to the lake, in SQL and as pictures.

    marimo edit docs/notebooks/ten_questions.py

from the project's root, after `make build` and `pip install -e '.[notebook]'`. Every answer is one
query that aggregates in DuckDB, so that what comes to the notebook is small however large the lake
is. A build may run meanwhile; run the first cell again to see what it has made.
"""

import marimo

app = marimo.App(width="medium", app_title="Ten questions to the lake")


@app.cell
def _():
    import altair as alt
    import marimo as mo

    from udfs.views import open_lake

    lake = open_lake()

    def ask(query, *values):
        """The rows of a query, as an Arrow table."""
        return lake.execute(query, values).to_arrow_table()

    return alt, ask, mo


@app.cell
def _(mo):
    mo.md("""
    # Ten questions to the lake

    One query a picture. `docs/questions.md` has more of them, and what the columns mean is in the
    pages that `make docs` writes.
    """)
    return


@app.cell
def _(ask, mo):
    recipe = mo.ui.dropdown(
        ask("select recipe from funnel group by recipe order by recipe")["recipe"].to_pylist(),
        value="default",
        label="Recipe",
    )
    recipe
    return (recipe,)


@app.cell
def _(mo):
    mo.md("## 1. What is in the lake, and from where?")
    return


@app.cell
def _(alt, ask):
    in_lake = ask("""
        select source, format, count(*) as trajectories
        from trajectories
        group by all
        order by source, format
    """)
    alt.Chart(in_lake, width=560).mark_bar().encode(
        x="trajectories:Q", y=alt.Y("source:N", sort="-x"), color="format:N"
    )
    return


@app.cell
def _(mo):
    mo.md("## 2. What was refused, and why?")
    return


@app.cell
def _(alt, ask):
    refused = ask("""
        select source, reason, count(*) as records, min(detail) as for_example
        from quarantine
        group by all
        order by records desc
    """)
    alt.Chart(refused, width=560).mark_bar().encode(
        x="records:Q", y="source:N", color="reason:N", tooltip=["reason:N", "for_example:N"]
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 3. How long are runs?

    Steps of a run, each source by its quartiles and its longest.
    """)
    return


@app.cell
def _(alt, ask):
    lengths = ask("""
        select
            source,
            min(step_count) as shortest,
            quantile_cont(step_count, 0.25) as lower,
            median(step_count) as middle,
            quantile_cont(step_count, 0.75) as upper,
            max(step_count) as longest,
        from measured_trajectories
        group by source
        order by source
    """)
    sources = alt.Chart(lengths, width=560).encode(y="source:N")
    (
        sources.mark_rule().encode(x=alt.X("shortest:Q", title="steps"), x2="longest:Q")
        + sources.mark_bar(size=8).encode(x="lower:Q", x2="upper:Q")
        + sources.mark_tick(color="black").encode(x="middle:Q")
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 4. How are runs rated?

    By the rater, from 0 to 5, in halves of a point. A run without a rating is in no bar.
    """)
    return


@app.cell
def _(alt, ask):
    scores = ask("""
        select
            source,
            least(floor(rater_score * 2) / 2, 4.5) as from_score,
            count(*) as trajectories,
        from measured_trajectories
        where rater_score is not null
        group by all
        order by source, from_score
    """)
    alt.Chart(scores, width=560).mark_rect().encode(
        x=alt.X("from_score:O", title="rater's score, from"), y="source:N", color="trajectories:Q"
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 5. How far do rater and environment agree?

    Two scores on two scales, so ranks within a source are compared. Sources with both scores for
    five runs or more.
    """)
    return


@app.cell
def _(alt, ask):
    agreement = ask("""
        with ranked as (
            select
                source,
                percent_rank() over (partition by source order by score) as by_environment,
                percent_rank() over (partition by source order by rater_score) as by_rater,
            from rated_trajectories
            where score is not null and rater_score is not null
        )

        select source, count(*) as runs, corr(by_environment, by_rater) as rank_correlation
        from ranked
        group by source
        having count(*) >= 5 and isfinite(rank_correlation)  -- none where all have one score
        order by runs desc
    """)
    alt.Chart(agreement, width=560).mark_circle(size=120).encode(
        x=alt.X("rank_correlation:Q", scale=alt.Scale(domain=[-1, 1])),
        y="source:N",
        size="runs:Q",
        tooltip=["source:N", "runs:Q", "rank_correlation:Q"],
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 6. Which tools are called, and how often in a bad step?

    The thirty that are called most.
    """)
    return


@app.cell
def _(alt, ask):
    tools = ask("""
        with calls as (
            select source, trajectory_id, step_id, unnest(tool_calls).name as tool
            from steps
        ),

        counted as (
            select
                calls.tool,
                count(*) as calls,
                count(*) filter (where len(step_flags.flags) > 0) as flagged,
            from calls
            inner join step_flags using (trajectory_id, step_id)
            group by all
            order by calls desc, tool
            limit 30
        )

        select tool, 'in a flagged step' as kind, flagged as calls from counted
        union all
        select tool, 'in a sound step', calls - flagged from counted
        order by tool, kind
    """)
    alt.Chart(tools, width=560).mark_bar().encode(
        x="calls:Q", y=alt.Y("tool:N", sort="-x"), color="kind:N"
    )
    return


@app.cell
def _(mo):
    mo.md("## 7. What do agents do wrong?")
    return


@app.cell
def _(alt, ask):
    flags = ask("""
        select source, flag, count(*) as steps
        from (select source, unnest(flags) as flag from step_flags)
        group by all
        order by source, flag
    """)
    alt.Chart(flags, width=560).mark_rect().encode(x="flag:N", y="source:N", color="steps:Q")
    return


@app.cell
def _(mo):
    mo.md("## 8. What does the recipe keep, and why is what dropped?")
    return


@app.cell
def _(alt, ask, recipe):
    verdicts = ask(
        """
        select source, reason as verdict, count(*) as trajectories
        from curated_trajectories
        where recipe = ?
        group by all
        order by source, verdict
        """,
        recipe.value,
    )
    alt.Chart(verdicts, width=560).mark_bar().encode(
        x="trajectories:Q", y="source:N", color="verdict:N"
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 9. Does each source get its share?

    The dot is what was asked for, the bar what the plan has.
    """)
    return


@app.cell
def _(alt, ask, recipe):
    shares = ask(
        """
        select source, requested_share, realised_share, passes
        from plan_sources
        where recipe = ?
        order by source
        """,
        recipe.value,
    )
    plan = alt.Chart(shares, width=560).encode(
        y="source:N", tooltip=["source:N", "requested_share:Q", "realised_share:Q", "passes:Q"]
    )
    (
        plan.mark_bar().encode(x=alt.X("realised_share:Q", title="share of the positions"))
        + plan.mark_point(color="black", filled=True).encode(x="requested_share:Q")
    )
    return


@app.cell
def _(mo):
    mo.md("""
    ## 10. In which order does training see the sources?

    Positions of the plan in twenty equal parts: where a colour is as high everywhere, the mix is
    the same from the first step to the last.
    """)
    return


@app.cell
def _(alt, ask, recipe):
    order = ask(
        """
        with parts as (
            select source, ntile(20) over (order by position) as part
            from training_plan
            where recipe = ? and split = 'train'
        )

        select part, source, count(*) as positions
        from parts
        group by all
        order by part, source
        """,
        recipe.value,
    )
    alt.Chart(order, width=560).mark_bar().encode(
        x="part:O", y=alt.Y("positions:Q", stack="normalize"), color="source:N"
    )
    return


if __name__ == "__main__":
    app.run()
