"""The whole flow as assets, for Dagster: `make dagster`, or

    dagster dev -m orchestration.assets.definitions

Only `definitions` imports Dagster. It runs the commands that a person runs (`commands`) and says of
each what came of it (`facts`, `pictures`); `changes` finds new raw files, and `manifest` reads
dbt's. `docs/orchestration.md` has the rest.
"""
