"""The flow as Dagster runs it, without its server: one lake, from raw files to a measured model.

The first run makes everything; the tests read what it said, then change something and run parts
again.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("dagster_dbt", reason="the extra orchestration is not installed")
pytest.importorskip("torch", reason="the training extra is not installed")
pytest.importorskip("fastapi", reason="the extra serve is not installed")

import dagster as dg

from orchestration.assets import facts

PROJECT = Path(__file__).resolve().parents[2]
SOURCES = ("retail_desk", "tool_use")


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two sources' raw files, and settings that point at an empty lake."""
    folder = tmp_path_factory.mktemp("assets")
    for source in SOURCES:
        shutil.copytree(PROJECT / "raw" / source, folder / "raw" / source)
    shutil.copytree(PROJECT / "benchmarks", folder / "benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("raw", "benchmarks", "lake", "exports", "prepared"):
            patch.setenv(f"TRAJLAKE_{name.upper()}", str(folder / name))
        patch.setenv("TRAJLAKE_DB", str(folder / "trajlake.duckdb"))
        patch.setenv("DBT_TARGET_PATH", str(folder / "target"))
        patch.setenv("DBT_LOG_PATH", str(folder / "logs"))
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("OPENAI_API_KEY", "sk-never-shown")
        patch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
        patch.chdir(PROJECT)
        yield folder


@pytest.fixture(scope="module")
def instance(lake: Path) -> Iterator[dg.DagsterInstance]:
    """Dagster as `make dagster` sets it up, in a folder of its own."""
    home = lake / "home"
    home.mkdir()
    shutil.copy2(PROJECT / "orchestration" / "assets" / "dagster.yaml", home)
    with dg.DagsterInstance.from_config(str(home)) as found:
        yield found


@pytest.fixture(scope="module")
def defs(lake: Path) -> dg.Definitions:
    """Loaded where there is no manifest yet."""
    assert not (lake / "target" / "manifest.json").exists()
    from orchestration.assets.definitions import defs

    return defs


@pytest.fixture(scope="module")
def choices(lake: Path) -> dict[str, Any]:
    tiny = {"vocab_size": 1024, "hidden_size": 32, "layers": 1}
    return {
        "training_overrides": [
            "max_steps=2",
            f"output={lake / 'runs'}",
            f"model.path={lake / 'tiny-model'}",
            *(f"model.tiny.{name}={value}" for name, value in tiny.items()),
        ],
        "evaluations": [
            f"hotpotqa --questions {lake / 'benchmarks' / 'highland_questions.jsonl'} "
            f"--max-steps 1 --parameters '{{max_tokens: 8}}' --out {lake / 'evaluations'}"
        ],
    }


class Run:
    """A job that was run, and what it said of its assets."""

    def __init__(
        self,
        defs: dg.Definitions,
        instance: dg.DagsterInstance,
        choices: Mapping[str, Any],
        job: str = "everything",
        only: list[str] | None = None,
    ) -> None:
        self.result = defs.resolve_job_def(job).execute_in_process(
            instance=instance,
            run_config={"resources": {"choices": {"config": dict(choices)}}},
            asset_selection=only and [dg.AssetKey(name) for name in only],
            raise_on_error=False,
        )
        self.metadata: dict[str, dict[str, Any]] = {}
        for event in self.result.get_asset_materialization_events():
            said = event.materialization.metadata
            name = event.asset_key.to_user_string()
            self.metadata.setdefault(name, {key: value.value for key, value in said.items()})
        self.checks = {each.check_name: each for each in self.result.get_asset_check_evaluations()}

    @property
    def failure(self) -> str:
        [event] = [e for e in self.result.all_events if e.is_step_failure]
        return event.step_failure_data.error.to_string()


@pytest.fixture(scope="module")
def first(defs: dg.Definitions, instance: dg.DagsterInstance, choices: dict[str, Any]) -> Run:
    """The whole graph, from an empty lake."""
    run = Run(defs, instance, choices)
    assert run.result.success
    return run


# --- the graph --------------------------------------------------------------------------------


def test_every_node_of_dbt_is_an_asset_and_every_test_a_check(defs: dg.Definitions) -> None:
    from orchestration.assets.definitions import MANIFEST

    graph = defs.resolve_asset_graph()
    nodes = MANIFEST["nodes"].values()
    models = {n["name"] for n in nodes if n["resource_type"] in ("model", "seed")}
    # pairwise_ratings is off by default.
    tests = {
        n["name"]
        for n in nodes
        if n["resource_type"] == "test" and "model.trajlake.pairwise_ratings" not in str(n)
    }
    checks = {key.name: key.asset_key.to_user_string() for key in graph.asset_check_keys}

    assert models <= {key.to_user_string() for key in graph.get_all_asset_keys()}
    assert {name for name in tests if "pairwise_ratings" not in name} == set(checks)
    assert checks["assert_funnel_adds_up"] == "funnel"
    assert checks["assert_no_task_is_in_both_splits"] == "training_plan"


def test_lineage_goes_from_folders_of_files_to_a_measured_model(defs: dg.Definitions) -> None:
    graph = defs.resolve_asset_graph()

    def above(name: str) -> set[str]:
        return {key.to_user_string() for key in graph.get(dg.AssetKey(name)).parent_keys}

    assert {f"raw/{source}" for source in SOURCES} <= above("raw_records")
    assert above("benchmark_items") == {"benchmarks/highland_questions"}
    assert {"raw_records", "quarantine", "curated_trajectories"} <= above("funnel")
    assert "training_plan" in above("export")
    assert above("prepared_rows") == {"export"}
    assert above("training_run") == {"prepared_rows"}
    assert above("merged_model") == {"training_run"}
    assert "merged_model" in above("evaluation")
    ancestors = graph.get_ancestor_asset_keys(dg.AssetKey("evaluation"))
    assert dg.AssetKey(["raw", SOURCES[0]]) in ancestors


def test_the_lake_has_one_slot(defs: dg.Definitions, instance: dg.DagsterInstance) -> None:
    job = defs.resolve_job_def("everything")
    pools = {node.name: node.definition.pools for node in job.graph.nodes}
    limits = instance.get_concurrency_config().pool_config

    assert pools["dbt_build"] == pools["export"] == {"lake"}
    assert pools["training_run"] == {"gpu"}
    assert limits.default_pool_limit == 1


def test_the_command_line_never_imports_dagster() -> None:
    code = (
        "import sys, orchestration.cli, orchestration.launch, orchestration.assets.commands, "
        "orchestration.assets.facts, orchestration.assets.changes, orchestration.assets.manifest, "
        "orchestration.assets.pictures; assert 'dagster' not in sys.modules"
    )

    subprocess.run([sys.executable, "-c", code], check=True, cwd=PROJECT)


# --- a run of all of it -----------------------------------------------------------------------


def test_everything_is_materialised_and_every_check_passes(first: Run) -> None:
    graph = {"raw_records", "trajectories", "ratings", "funnel", "training_plan", "steps"}
    own = {"export", "prepared_rows", "training_run", "merged_model", "evaluation"}

    assert graph | own <= set(first.metadata)
    assert len(first.checks) > 100
    assert all(check.passed for check in first.checks.values())


def test_every_dbt_asset_says_its_rows_and_tables_their_version(first: Run) -> None:
    from orchestration.assets.definitions import MANIFEST

    nodes = [n for n in MANIFEST["nodes"].values() if n["resource_type"] in ("model", "seed")]
    for node in nodes:
        if node["name"] == "pairwise_ratings":
            continue
        said = first.metadata[node["name"]]
        assert "dagster/row_count" in said, node["name"]
        if node["config"]["materialized"] == "delta":
            assert said["Delta version"] >= 0
            assert said["rows added"] == said["dagster/row_count"]
    assert first.metadata["trajectories"]["dagster/row_count"] == 16


def test_ratings_say_who_rated_at_what_cost(first: Run) -> None:
    said = first.metadata["ratings"]

    assert said["ratings of this run"] == said["dagster/row_count"] == 16
    assert said["cost of this run (USD)"] == 0.0
    assert "rules" in said["raters of this run"]


def test_the_funnel_is_a_picture_and_a_table(first: Run) -> None:
    said = first.metadata["funnel"]
    picture = re.fullmatch(r"!\[.*\]\(data:image/svg\+xml;base64,(.*)\)", said["funnel"])

    assert picture
    assert "tool\\_use" in said["funnel by source"] and "16" not in said["funnel"][:40]
    assert b"trajectories" in base64.b64decode(picture[1])


def test_the_export_says_which_manifest_it_has(first: Run, lake: Path) -> None:
    said = first.metadata["export"]
    manifest = Path(said["manifest"])

    assert manifest == lake / "exports" / "default" / "manifest.json"
    assert said["manifest sha256"] == facts.file_sha256(manifest)
    assert said["dagster/row_count"] == first.metadata["prepared_rows"]["dagster/row_count"]
    trained = first.metadata["training_run"]
    assert trained["export manifest sha256"] == said["manifest sha256"]


def test_the_run_says_how_its_loss_went_and_the_lake_knows_it(first: Run, lake: Path) -> None:
    said = first.metadata["training_run"]
    run = Path(said["run"])

    assert run.parent == lake / "runs"
    assert run.name == f"default-{first.result.run_id[:8]}"
    assert said["status"] == "finished" and said["steps"] == 2
    assert said["loss"].startswith("![Loss by step](data:image/svg+xml;base64,")
    assert said["last loss"] == facts.losses(run)[-1][1]
    assert facts.table_state("training_runs") == facts.TableState(version=1, rows=1)
    assert (Path(first.metadata["merged_model"]["model"]) / "config.json").is_file()


def test_the_evaluation_is_measured_on_the_model_of_this_run(first: Run) -> None:
    said = first.metadata["evaluation"]

    assert said["run"] == first.metadata["training_run"]["run"]
    assert said["hotpotqa exact_match"] == 0.0
    assert "hotpotqa" in said["results"]
    state = facts.table_state("measured_results")
    assert state and state.rows == 2


def test_no_secret_is_kept(first: Run, lake: Path) -> None:
    for file in (lake / "home").rglob("*"):
        if file.is_file():
            assert b"sk-never-shown" not in file.read_bytes(), file


# --- and again --------------------------------------------------------------------------------


def test_a_second_run_makes_no_version_and_reports_every_check(
    first: Run, defs: dg.Definitions, instance: dg.DagsterInstance, choices: dict[str, Any]
) -> None:
    before = facts.table_states()

    second = Run(defs, instance, choices, "refresh")

    assert second.result.success
    assert facts.table_states() == before
    assert all(said.get("new versions", 0) == 0 for said in second.metadata.values())
    # Data tests that a build passes over (decision 025) are reported all the same.
    assert set(second.checks) == set(first.checks)
    assert all(check.passed for check in second.checks.values())
    assert second.metadata["export"]["new"] is False
    assert (
        second.metadata["export"]["manifest sha256"] == first.metadata["export"]["manifest sha256"]
    )


def test_a_failing_test_fails_its_check_and_nothing_below_is_made(
    first: Run,
    defs: dg.Definitions,
    instance: dg.DagsterInstance,
    choices: dict[str, Any],
) -> None:
    """A rating that is there twice, written past the rater."""
    import pyarrow as pa

    from udfs import lake as lake_tables

    table = lake_tables.open_table("ratings")
    assert table is not None
    row = pa.table(table.to_pyarrow_table()).slice(0, 1)
    lake_tables.write("ratings", row.to_reader(), lake_tables.WriteOptions(strategy="append"))
    try:
        run = Run(defs, instance, choices, "refresh", ["ratings", "curated_trajectories", "export"])
    finally:
        table.update_incremental()
        table.restore(table.version() - 1)

    failed = {name for name, check in run.checks.items() if not check.passed}
    assert not run.result.success
    assert "unique_ratings_rating_id" in failed
    assert "ratings" in run.metadata and "export" not in run.metadata
    assert "unique_ratings_rating_id" in run.failure
    # What a test has found is found again: it is not tried a second time.
    assert not any(event.is_step_up_for_retry for event in run.result.all_events)


def test_a_new_file_asks_for_one_run(
    lake: Path, defs: dg.Definitions, instance: dg.DagsterInstance
) -> None:
    from orchestration.assets.definitions import new_raw_files

    cursor = None
    asked: list[dg.RunRequest] = []

    def looks(times: int) -> None:
        nonlocal cursor
        for _ in range(times):
            context = dg.build_sensor_context(instance=instance, cursor=cursor, definitions=defs)
            found = new_raw_files(context)
            assert isinstance(found, dg.SensorResult)
            cursor = found.cursor
            asked.extend(found.run_requests or [])

    looks(3)
    assert len(asked) == 1
    turns = [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]
    (lake / "raw" / "mine").mkdir()
    (lake / "raw" / "mine" / "a.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    try:
        looks(1)
        assert len(asked) == 1  # it may still be being copied
        looks(3)
    finally:
        shutil.rmtree(lake / "raw" / "mine")

    assert len(asked) == 2
    assert asked[0].run_key != asked[1].run_key


def test_training_without_torch_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestration.assets import commands
    from udfs.errors import ConfigError

    monkeypatch.setattr(commands, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="make train"):
        commands.check_training()


def test_nothing_runs_unasked(defs: dg.Definitions) -> None:
    """Sensor and schedule begin switched off: no rater is asked before somebody wants it."""
    repository = defs.get_repository_def()

    assert {"refresh", "train_and_measure", "everything"} <= set(repository.job_names)
    automatic = [*repository.sensor_defs, *repository.schedule_defs]
    assert {each.name for each in automatic} == {"new_raw_files", "daily"}
    for each in automatic:
        assert each.default_status.value == "STOPPED"
