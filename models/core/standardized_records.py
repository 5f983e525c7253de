def model(dbt, session):
    """Ask about single records, that no format and no mapping fits, what their turns are."""
    from udfs.standardizer import read_records

    return read_records(
        dbt.ref("record_shapes"),
        dbt.ref("raw_records"),
        dbt.ref("format_mappings"),
        mode=dbt.config.get("standardizer_mode"),
        max_records=dbt.config.get("standardizer_max_records"),
        model=dbt.config.get("standardizer_model"),
        parameters=dbt.config.get("standardizer_parameters"),
        prices=dbt.config.get("standardizer_prices"),
        concurrency=dbt.config.get("standardizer_concurrency"),
        max_usd=dbt.config.get("standardizer_max_usd"),
    )
