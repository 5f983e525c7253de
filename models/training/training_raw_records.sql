with training_lineage as (

    select * from {{ ref("training_lineage") }}

),

training_runs as (

    select * from {{ ref("training_runs") }}

),

trajectory_records as (

    select
        trajectory_id,
        source,
        {{ each_of("raw_record_ids") }} as raw_record_id,
    from {{ ref("trajectories") }}

),

raw_records as (

    select
        raw_record_id,
        raw_file,
        raw_position,
        raw_sha256,
    from {{ ref("raw_records") }}

),

named as (

    select
        training_lineage.run_id,
        training_runs.run,
        coalesce(training_runs.objective, 'sft') as objective,
        training_lineage.step,
        training_lineage.rank,
        training_lineage.row,
        training_lineage.segment,
        training_lineage.position,
        training_lineage.part,
        training_lineage.pair_id,
        training_lineage.side,
        training_lineage.trajectory_id,
        trajectory_records.source,
        trajectory_records.raw_record_id,
        raw_records.raw_file,
        raw_records.raw_position,
        raw_records.raw_sha256,
        training_lineage.trained_tokens,
        training_lineage.nll / training_lineage.weight as loss,
    from training_lineage
    left join training_runs on training_lineage.run_id = training_runs.run_id
    left join trajectory_records
        on training_lineage.trajectory_id = trajectory_records.trajectory_id
    left join raw_records on trajectory_records.raw_record_id = raw_records.raw_record_id

)

select * from named
