def model(dbt, session):
    """Compare runs at the same task that the configured judge has not compared yet."""
    from udfs.rater.pairwise import compare

    settings = dbt.config.get("settings")
    return compare(dbt.ref("trajectories"), dbt.ref("task_keys"), **settings)
