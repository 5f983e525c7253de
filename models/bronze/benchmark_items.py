def model(dbt, session):
    """Read the benchmarks folder anew, where a file of it has changed."""
    from udfs.benchmarks import declared_benchmarks, read_benchmarks
    from udfs.settings import benchmarks_folder

    folder, is_required = benchmarks_folder()
    return read_benchmarks(folder, declared_benchmarks(), is_required=is_required)
