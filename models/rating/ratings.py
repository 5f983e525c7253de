def model(dbt, session):
    """Rate the trajectories that have no settled rating by the configured rater or committee."""
    from udfs.rater import rate

    settings = dbt.config.get("settings")
    return rate(dbt.ref("trajectories"), dbt.ref("verifications"), **settings)
