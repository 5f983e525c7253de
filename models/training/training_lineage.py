def model(dbt, session):
    """Make the table where it is missing; training runs append what they saw."""
    from udfs.training_tables import LINEAGE_SCHEMA

    return LINEAGE_SCHEMA.empty_table()
