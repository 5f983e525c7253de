def model(dbt, session):
    """Fit what turns a score into a probability of success, wherever there are labels enough."""
    from udfs.rater.calibration import calibrations

    return calibrations(dbt.ref("labelled_ratings"))
