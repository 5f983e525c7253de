with training_lineage as (

    select * from {{ ref("training_lineage") }}

),

training_runs as (

    select * from {{ ref("training_runs") }}

),

trajectories as (

    select * from {{ ref("trajectories") }}

),

-- Σ(w·nll)/Σw: what the source's tokens were to the model just before it learned from them.
measured as (

    select
        training_lineage.run_id,
        training_lineage.step,
        trajectories.source,
        trajectories.environment,
        training_lineage.side,
        count(*) as segments,
        cast(sum(training_lineage.trained_tokens) as bigint) as trained_tokens,
        sum(training_lineage.weight) as weight,
        sum(training_lineage.nll) / sum(training_lineage.weight) as loss,
        sum(training_lineage.reference_nll) / sum(training_lineage.weight) as reference_loss,
    from training_lineage
    left join trajectories on training_lineage.trajectory_id = trajectories.trajectory_id
    group by
        training_lineage.run_id,
        training_lineage.step,
        trajectories.source,
        trajectories.environment,
        training_lineage.side

),

named as (

    select
        measured.*,
        training_runs.run,
        training_runs.recipe,
        coalesce(training_runs.objective, 'sft') as objective,
    from measured
    left join training_runs on measured.run_id = training_runs.run_id

)

select * from named
