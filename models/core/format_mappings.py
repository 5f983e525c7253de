def model(dbt, session):
    """Ask where things are in records that no format fits, once for each of their shapes."""
    from udfs.standardizer import learn_mappings

    return learn_mappings(
        dbt.ref("record_shapes"),
        dbt.ref("raw_records"),
        mode=dbt.config.get("standardizer_mode"),
        model=dbt.config.get("standardizer_model"),
        parameters=dbt.config.get("standardizer_parameters"),
        prices=dbt.config.get("standardizer_prices"),
        concurrency=dbt.config.get("standardizer_concurrency"),
        max_usd=dbt.config.get("standardizer_max_usd"),
    )
