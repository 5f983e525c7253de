with trajectory_flags as (

    select * from {{ ref("trajectory_flags") }}

),

trajectories as (

    select
        trajectory_id,
        source,
    from {{ ref("trajectories") }}

),

numbered as (

    select
        *,
        {{ each_number_to("step_count") }} as step_id,
    from trajectory_flags

),

found as (

    select
        trajectory_id,
        step_id,
        first_error_step,
        unmasked_steps,
        trainable_steps,
        {{ flags_of_step("flags", "step_id") }} as step_flags,
    from numbered

),

named as (

    select
        *,
        {{ flag_names("step_flags") }} as flags,
    from found

),

described as (

    select
        named.trajectory_id,
        cast(named.step_id as integer) as step_id,
        trajectories.source,
        array_contains(named.flags, 'invalid_action') as is_invalid_action,
        array_contains(named.flags, 'empty_output') as is_empty_output,
        array_contains(named.flags, 'repeated_action') as is_repeated_action,
        array_contains(named.flags, 'loop') as is_in_loop,
        array_contains(named.flags, 'malformed_call') as is_malformed_call,
        array_contains(named.flags, 'unknown_tool') as is_unknown_tool,
        array_contains(named.flags, 'schema_violation') as is_schema_violation,
        array_contains(named.flags, 'error_observation') as is_error_observation,
        {{ flagged_error_class("named.step_flags") }} as error_class,
        array_contains(named.flags, 'unfinished') as is_unfinished,
        array_contains(named.flags, 'self_correction') as is_self_correction,
        coalesce(named.step_id = named.first_error_step, false) as is_first_error,
        named.flags,
        array_contains(named.unmasked_steps, named.step_id) as is_unmasked,
        array_contains(named.trainable_steps, named.step_id) as is_trainable,
    from named
    inner join trajectories on named.trajectory_id = trajectories.trajectory_id

)

select * from described
