"""A small lake for curation: Delta tables with trajectories of choice, and dbt run upon them.

What landing, standardizer and rater leave behind is written here directly. The models from
`rated_trajectories` on are built by dbt itself, in a copy of the project with seeds of the
test's own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from deltalake import write_deltalake
from parsing import shared_parsing

from udfs.lake import load_delta_extension
from udfs.rater import RulesRater, calibration
from udfs.rater.verification import VERIFICATION, verify_trajectories
from udfs.recipes import FILTER_COLUMNS

PROJECT = Path(__file__).resolve().parents[2]

RECIPE = {
    "recipe": "default",
    "filter": "rater_score >= 4.0",
    "salvage_filter": None,
    "seed": 42,
    "epochs": 3,
    "eval_fraction": 0.1,
    "token_budget": None,
    "temperature": 1.0,
    "agent_share": None,
    "masks_bad_steps": True,
    "drops_near_duplicates": False,  # the tests' trajectories are alike
    "excluded_benchmarks": "*",
    "redacts_personal_data": False,
    "metadata_prefix": None,
}
EVERY_SOURCE = {
    "recipe": "default",
    "source": "*",
    "weight": 1.0,
    "max_repeats": 3,
    "is_general": False,
}

_TRAJECTORY_COLUMNS = FILTER_COLUMNS.names[: FILTER_COLUMNS.names.index("ingested_at") + 1]
RECORD = pa.schema([("raw_record_id", pa.string()), ("source", pa.string())])
RATING = pa.schema(
    [
        ("rating_id", pa.string()),
        ("content_sha256", pa.string()),
        ("rater_id", pa.string()),
        ("rater", pa.string()),
        ("rate_model", pa.string()),
        ("rate_parameters", pa.string()),
        ("rater_score", pa.float64()),
        ("explanation", pa.string()),
        ("status", pa.string()),
        ("cost_usd", pa.float64()),
        ("shown_share", pa.float64()),
        ("attempt", pa.int32()),
        ("rated_at", pa.timestamp("us", tz="UTC")),
    ]
)
_RATED_AT = datetime(2026, 1, 1, tzinfo=UTC)


def step(output: str | None = "Action: finish[42]", **fields: Any) -> dict[str, Any]:
    """One step, trainable, with an observation, unless `fields` say otherwise."""
    seen = {"source": "environment", "name": None, "call_id": None, "content": "Done."}
    return {
        "step_id": 1,
        "input": None,
        "thought": None,
        "output": output,
        "tool_calls": [],
        "observations": [seen],
        "next_observation": "Done.",
        "is_trainable": True,
    } | fields


def trajectory(number: int, **fields: Any) -> dict[str, Any]:
    """One rated trajectory that the recipe `default` keeps, unless `fields` say otherwise.

    Its steps are numbered here.
    """
    query = fields.get("user_query", f"Question {number}?")
    identity = hashlib.sha256(str(number).encode()).hexdigest()
    steps = fields.pop("steps", [step(input=query)])
    return (
        dict.fromkeys(FILTER_COLUMNS.names)
        | {
            "trajectory_id": identity,
            "raw_record_id": identity,
            "content_sha256": hashlib.sha256(f"content {number}".encode()).hexdigest(),
            "source": "a",
            "user_query": query,
            "score": 1.0,
            "steps": [each | {"step_id": i} for i, each in enumerate(steps, start=1)],
            "other_information": "{}",
            "license": "MIT",
            "ingested_at": _RATED_AT,
            "format": "react_text",
            "rater_score": 5.0,
            "rating_status": "ok",
        }
        | fields
    )


class Workspace:
    """A lake, a copy of the project, exports and benchmarks (none), all below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.project = folder / "project"
        self.lake = folder / "lake"
        self.exports = folder / "exports"
        self.benchmarks = folder / "benchmarks"
        self.environment = {
            **os.environ,
            "TRAJLAKE_LAKE": str(self.lake),
            "TRAJLAKE_DB": str(folder / "views.duckdb"),
            "TRAJLAKE_EXPORTS": str(self.exports),
            "TRAJLAKE_BENCHMARKS": str(self.benchmarks),
            "PYTHONPATH": str(PROJECT),
        }
        self.project.mkdir(parents=True)
        self.benchmarks.mkdir()
        for name in ("dbt_project.yml", "profiles.yml"):
            shutil.copy(PROJECT / name, self.project)
        for name in ("models", "dbt_project", "udfs"):
            shutil.copytree(PROJECT / name, self.project / name)
        self.write_recipes([RECIPE], [EVERY_SOURCE])

    def write_recipes(
        self,
        recipes: Sequence[Mapping[str, Any]],
        sources: Sequence[Mapping[str, Any]],
        quotas: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Write the seeds; without quotas, the file of none stays."""
        seeds = {"recipes": recipes, "recipe_sources": sources, "recipe_quotas": quotas}
        for name, rows in seeds.items():
            if not rows:
                continue
            with (self.project / f"dbt_project/seeds/{name}.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def write_trajectories(
        self, rows: Iterable[Mapping[str, Any]], refused: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        """Write the tables that curation starts from.

        Args:
            rows: trajectories (`trajectory`); with no `rating_status`, one is not rated.
            refused: `raw_record_id` and `source` of the records in quarantine.
        """
        trajectories = pa.Table.from_pylist(list(rows), FILTER_COLUMNS)
        ratings = {
            row["content_sha256"]: {
                "rating_id": row["content_sha256"],
                "content_sha256": row["content_sha256"],
                "rater_id": RulesRater().identity.rater_id,
                "rater": "rules",
                "rate_model": "rules",
                "rate_parameters": "{}",
                "rater_score": row["rater_score"],
                "status": row["rating_status"],
                "attempt": 1,
                "rated_at": _RATED_AT,
            }
            for row in trajectories.select(
                ["content_sha256", "rater_score", "rating_status"]
            ).to_pylist()
            if row["rating_status"]
        }
        found = verify_trajectories(*(trajectories[name] for name in ("tools", "steps")))
        verifications = pa.Table.from_arrays(
            [*trajectories.select(["trajectory_id", "content_sha256"]).columns, *found.flatten()],
            ["trajectory_id", "content_sha256", *VERIFICATION.names],
        )
        quarantine = pa.Table.from_pylist(list(refused), RECORD)
        tables = {
            "trajectories": trajectories.select(_TRAJECTORY_COLUMNS),
            "verifications": verifications,
            "rating_calibrations": calibration.SCHEMA.empty_table(),
            "quarantine": quarantine,
            "raw_records": pa.concat_tables([trajectories.select(RECORD.names), quarantine]),
            "ratings": pa.Table.from_pylist(list(ratings.values()), RATING),
        }
        with duckdb.connect(self.environment["TRAJLAKE_DB"]) as connection:
            load_delta_extension(connection)
            for name, table in tables.items():
                write_deltalake(self.lake / name, table, mode="overwrite", schema_mode="overwrite")
                connection.execute(
                    f"create or replace view {name} as "
                    f"select * from delta_scan('{self.lake / name}')"
                )

    def build(self, ok: bool = True, variables: Mapping[str, Any] | None = None) -> str:
        """Build and test everything from the seeds on; gives what dbt printed."""
        rating = ("raters", "committee_ratings", "rated_trajectories", "task_keys")
        seeds = ("recipes", "recipe_sources", "recipe_quotas")
        models = ("benchmark_items", "conversations", *rating, "curation", "marts")
        return self._dbt("build", *seeds, *models, ok=ok, variables=variables)

    def run(self, *models: str, variables: Mapping[str, Any] | None = None) -> None:
        """Build some models, without their tests, as a build does that is under way."""
        self._dbt("run", *models, ok=True, variables=variables)

    def _dbt(
        self,
        command: str,
        *selected: str,
        ok: bool,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        dbt = str(Path(sys.executable).parent / "dbt")
        database = "../views.duckdb"  # from the project; the same in all tests
        given = json.dumps(variables or {})
        with shared_parsing(self.project / "target", database, given):
            done = subprocess.run(
                [dbt, command, "--select", *selected, "--vars", given],
                cwd=self.project,
                env=self.environment | {"TRAJLAKE_DB": database},
                capture_output=True,
                text=True,
                check=False,
            )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout

    def query(self, sql: str) -> list[dict[str, Any]]:
        """Rows of a query over the lake's tables as they are now."""
        with duckdb.connect() as connection:
            load_delta_extension(connection)
            for path in self.lake.iterdir():
                connection.execute(f"create view {path.name} as select * from delta_scan('{path}')")
            rows: list[dict[str, Any]] = connection.sql(sql).to_arrow_table().to_pylist()
            return rows

    def view(self, name: str, condition: str) -> list[dict[str, Any]]:
        """Rows of a view that dbt made."""
        with duckdb.connect(self.environment["TRAJLAKE_DB"], read_only=True) as connection:
            load_delta_extension(connection)
            found = connection.sql(f"select * from {name} where {condition}")
            rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
            return rows
