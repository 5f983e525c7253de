def model(dbt, session):
    """Make the table where it is missing; training runs write themselves into it."""
    from udfs.training_tables import RUN_SCHEMA

    return RUN_SCHEMA.empty_table()
