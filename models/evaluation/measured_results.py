def model(dbt, session):
    """Make the table where it is missing; `trajlake eval` appends to it."""
    from orchestration.evaluate.results import SCHEMA

    return SCHEMA.empty_table()
