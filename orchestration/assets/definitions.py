"""Assets, jobs, sensor and schedule for Dagster: `dagster dev -m orchestration.assets.definitions`.

    raw/<source> → every dbt model and seed → export → prepared_rows → training_run
                                                       → merged_model → evaluation

Each asset is a command that a person runs. What one run is to do is set once, for all of its
assets, as the configuration of the resource `choices`; secrets are the environment's alone.

| pool   | who takes its slot                  | why                                             |
|--------|-------------------------------------|-------------------------------------------------|
| `lake` | `dbt build`, `trajlake export`      | one build at a time; no export of half a build  |
| `gpu`  | training, evaluation                | one model at a time on the machine              |
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dagster import (
    AssetExecutionContext,
    AssetKey,
    AssetMaterialization,
    AssetObservation,
    AssetSelection,
    AssetSpec,
    Backoff,
    ConfigurableResource,
    DefaultScheduleStatus,
    DefaultSensorStatus,
    Definitions,
    Failure,
    MaterializeResult,
    MetadataValue,
    Output,
    RetryPolicy,
    RunRequest,
    ScheduleDefinition,
    SensorEvaluationContext,
    SensorResult,
    asset,
    define_asset_job,
    sensor,
)
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.core.dbt_event_iterator import DbtDagsterEventType
from pydantic import Field

from orchestration.assets import changes, commands, facts, manifest, pictures
from orchestration.rate import rater_settings
from train.config import Settings, load_settings
from udfs.errors import TrajlakeError
from udfs.landing.files import list_files
from udfs.settings import raw_folder
from udfs.training_tables import LINEAGE, RUNS

ROOT = Path(__file__).parents[2]

_TINY_EVALUATION = (
    "hotpotqa --questions benchmarks/highland_questions.jsonl --env chat --max-steps 1 "
    "--parameters '{temperature: 0, max_tokens: 64}'"
)


class Choices(ConfigurableResource[None]):
    """What one run of the flow is to do. What is left open is as dbt_project.yml or the training
    configuration has it."""

    recipe: str = Field(default="default", description="A recipe of dbt_project/seeds/recipes.csv.")
    rater: str | None = Field(default=None, description="rules, openai or local.")
    rater_model: str | None = Field(
        default=None, description="The judge's name at its endpoint, or a folder."
    )
    rater_max_usd: float | None = Field(
        default=None, description="Rating stops before it costs more, over all tries of the run."
    )
    rater_max_trajectories: int | None = Field(
        default=None, description="Rate at most so many, over all tries of the run."
    )
    training_config: str = Field(
        default="train/configs/tiny.yaml",
        description="A YAML file, as `train.sft` or `train.dpo` takes it.",
    )
    training_overrides: list[str] = Field(
        default=[], description="Settings on top of it, each as key=value."
    )
    run: str | None = Field(
        default=None,
        description="The training run's name; by itself, the recipe's and the Dagster run's.",
    )
    launch: list[str] = Field(
        default=[],
        description="Further arguments of `accelerate launch`, such as --num_processes and 8.",
    )
    evaluations: list[str] = Field(
        default=[_TINY_EVALUATION],
        description="Arguments of `trajlake eval`, without --model and --run; one a line.",
    )

    def variables(self) -> dict[str, Any]:
        """As vars of dbt."""
        names = ("rater", "rater_model", "rater_max_usd", "rater_max_trajectories")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def training(self, context: AssetExecutionContext) -> tuple[Settings, list[str]]:
        """The training settings, and the overrides that they come from.

        A run's name follows from the Dagster run, so that a second try finds the first one's.
        """
        name = self.run or f"{self.recipe}-{_first_run_id(context)[:8]}"
        overrides = [*self.training_overrides, f"recipe={self.recipe}", f"run={name}"]
        return load_settings(ROOT / self.training_config, overrides), overrides

    def run_folder(self, context: AssetExecutionContext) -> Path:
        """The training run that is merged and evaluated: the named one, that of this Dagster run,
        or else the last that was trained."""
        settings, _ = self.training(context)
        folder = settings.output / str(settings.run)
        if self.run or folder.is_dir():
            return folder
        latest = context.instance.get_latest_materialization_event(AssetKey("training_run"))
        known = latest and latest.asset_materialization
        if not known:
            raise Failure(
                f"There is no training run {folder}, and none has been trained from here. "
                "Materialise training_run, or set `run` to the name of one.",
                allow_retries=False,
            )
        return Path(str(known.metadata["run"].value))


# --- dbt --------------------------------------------------------------------------------------


def _load_manifest() -> dict[str, Any]:
    if manifest.is_stale(PROJECT.manifest_path, ROOT):
        PROJECT.preparer.prepare(PROJECT)
    found: dict[str, Any] = json.loads(PROJECT.manifest_path.read_bytes())
    return manifest.with_checked_models(found)


PROJECT = DbtProject(ROOT, target_path=os.environ.get("DBT_TARGET_PATH", "target"))
MANIFEST = _load_manifest()
# Of dbt, run by run the same: by itself Dagster makes a folder of some 10 MB for each.
_TARGET = PROJECT.target_path / "dagster"
SOURCES = manifest.read_from_files(MANIFEST, changes.sources(list_files(raw_folder())))
_PREFIX = {"raw_records": "raw", "benchmark_items": "benchmarks"}


class Translator(DagsterDbtTranslator):
    """Assets are called as dbt's models are, and grouped by their folders; models that read files
    have the folders of files before them."""

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        """The folder that a model lies in; `seeds`."""
        if dbt_resource_props["resource_type"] == "seed":
            return "seeds"
        return str(dbt_resource_props["fqn"][1])

    def get_asset_spec(
        self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None
    ) -> AssetSpec:
        """The asset of a node, with what it reads."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        name = spec.key.to_user_string()
        if not unique_id.startswith("model.") or name not in SOURCES:
            return spec
        above = [AssetKey([_PREFIX[name], source]) for source in SOURCES[name]]
        return spec.merge_attributes(deps=above)


# A second try of a build goes on from what the first has committed. It waits for longer than
# somebody's build in a terminal takes, which has the lake's database meanwhile.
_BUILD_RETRY = RetryPolicy(max_retries=2, delay=60, backoff=Backoff.LINEAR)
# A second try of a training run goes on from its last checkpoint.
_TRAINING_RETRY = RetryPolicy(max_retries=2, delay=30)


@dbt_assets(
    manifest=MANIFEST,
    project=PROJECT,
    dagster_dbt_translator=Translator(),
    name="dbt_build",
    pool="lake",
    retry_policy=_BUILD_RETRY,
)
def dbt_build(
    context: AssetExecutionContext, dbt: DbtCliResource, choices: Choices
) -> Iterator[DbtDagsterEventType]:
    """`dbt build`: every model and seed, and every test as a check."""
    began = _began(context)
    variables = choices.variables()
    if context.retry_number:
        done = facts.rated_since(began)
        variables = commands.budgeted(
            variables,
            rater_settings({}),
            sum(each.cost_usd or 0.0 for each in done),
            max((each.contents for each in done), default=0),
        )
    before = facts.table_states()
    (PROJECT.project_dir / _TARGET / "run_results.json").unlink(missing_ok=True)
    invocation = dbt.cli(
        commands.build(variables), context=context, target_path=_TARGET, raise_on_error=False
    )
    for event in invocation.stream():
        if isinstance(event, Output):
            name = context.asset_key_for_output(event.output_name).to_user_string()
            said = _table_metadata(name, before.get(name)) | _more(name, began, choices.recipe)
            event = event.with_metadata({**event.metadata, **said})
        yield event
    if not invocation.is_successful():
        _fail(invocation)


def _fail(invocation: Any) -> None:
    """Say what of a build failed. What a data test has found will be found again."""
    try:
        results = invocation.get_artifact("run_results.json")["results"]
    except FileNotFoundError:
        results = []
    failed = [each["unique_id"] for each in results if each["status"] == "fail"]
    broken = [each["unique_id"] for each in results if each["status"] == "error"]
    raise Failure(
        f"dbt build ended with {len(broken)} errors ({', '.join(broken) or 'none'}) and "
        f"{len(failed)} failed tests ({', '.join(failed) or 'none'}). Its output says more.",
        allow_retries=bool(broken) or not failed,
    )


def _table_metadata(name: str, before: facts.TableState | None) -> dict[str, Any]:
    """Rows and version of a table that was just written; rows of a view."""
    now = facts.table_state(name)
    if now is None:
        rows = facts.view_rows(name)
        return {} if rows is None else {"dagster/row_count": rows}
    return {
        "dagster/row_count": now.rows,
        "rows added": now.rows - (before.rows if before else 0),
        "Delta version": now.version,
        "new versions": now.version - (before.version if before else -1),
    }


def _more(name: str, began: datetime, recipe: str) -> dict[str, Any]:
    """What else is looked for at some of the assets."""
    if name == "ratings":
        done = facts.rated_since(began)
        costs = [each.cost_usd for each in done if each.cost_usd is not None]
        return {
            "cost of this run (USD)": sum(costs) if costs else 0.0,
            "ratings of this run": sum(each.ratings for each in done),
            "raters of this run": MetadataValue.md(
                pictures.markdown_table([vars(each) for each in done])
            ),
        }
    if name == "funnel":
        rows = facts.funnel(recipe)
        return {
            "funnel": MetadataValue.md(
                pictures.as_markdown(pictures.funnel_svg(rows), f"The funnel of {recipe}")
            ),
            "funnel by source": MetadataValue.md(pictures.markdown_table(rows)),
        }
    return {}


# --- from the export to a measured model ------------------------------------------------------


@asset(
    group_name="training_data",
    deps=[
        "training_plan",
        "sft_samples",
        "preference_pairs",
        "conversations",
        "curated_trajectories",
    ],
    pool="lake",
    retry_policy=_BUILD_RETRY,
    kinds={"parquet"},
)
def export(context: AssetExecutionContext, choices: Choices) -> MaterializeResult[Any]:
    """`trajlake export`: what the training configuration learns from, in the order of training."""
    settings, _ = choices.training(context)
    layout = "pairs" if settings.objective == "dpo" else "sft"
    written = json.loads(_run(commands.export(choices.recipe, layout)))
    found = Path(written["folder"]) / "manifest.json"
    shards = written["manifest"]["shards"]
    return MaterializeResult(
        metadata={
            "dagster/row_count": sum(shard["rows"] for shard in shards),
            "new": written["is_new"],
            "manifest": MetadataValue.path(str(found)),
            "manifest sha256": facts.file_sha256(found),
            "files": len(shards),
            "bytes": sum(shard["bytes"] for shard in shards),
            "table versions": MetadataValue.json(written["manifest"]["tables"]),
        }
    )


@asset(group_name="training", deps=[export], kinds={"arrow"})
def prepared_rows(context: AssetExecutionContext, choices: Choices) -> MaterializeResult[Any]:
    """`python -m train.prepare`: the export as rows of tokens."""
    _check_training()
    _, overrides = choices.training(context)
    said = _run(commands.prepare(choices.training_config, overrides))
    folder = Path(said.rpartition("prepared: ")[2].strip())
    splits = json.loads((folder / "prepared.json").read_bytes())["splits"]
    return MaterializeResult(
        metadata={
            "dagster/row_count": sum(split["rows"] for split in splits.values()),
            "tokens": sum(split["tokens"] for split in splits.values()),
            "tokens that carry loss": sum(split["trained_tokens"] for split in splits.values()),
            "folder": MetadataValue.path(str(folder)),
        }
    )


@asset(
    group_name="training",
    deps=[prepared_rows],
    pool="gpu",
    retry_policy=_TRAINING_RETRY,
    kinds={"pytorch"},
)
def training_run(context: AssetExecutionContext, choices: Choices) -> MaterializeResult[Any]:
    """`accelerate launch -m train.sft` (or `train.dpo`): a run, from where it was stopped."""
    _check_training()
    settings, overrides = choices.training(context)
    _run(commands.train(settings.objective, choices.training_config, overrides, choices.launch))
    folder = settings.output / str(settings.run)
    _tell_tables(context, RUNS, LINEAGE)
    written = facts.run_manifest(folder)
    losses = facts.losses(folder)
    measured = written.get("eval") or {}
    return MaterializeResult(
        metadata={
            "run": MetadataValue.path(str(folder)),
            "run id": written["run_id"],
            "status": written["status"],
            "steps": written["step"],
            "trained tokens": written["totals"]["trained_tokens"],
            "loss": MetadataValue.md(
                pictures.as_markdown(pictures.losses_svg(losses), "Loss by step")
            ),
            "last loss": losses[-1][1],
            "eval loss": measured.get("loss", MetadataValue.null()),
            "export manifest sha256": written["export"]["manifest_sha256"],
        }
    )


@asset(group_name="training", deps=[training_run], kinds={"pytorch"})
def merged_model(context: AssetExecutionContext, choices: Choices) -> MaterializeResult[Any]:
    """`python -m train.merge`: the adapter and its base as one model."""
    _check_training()
    run = choices.run_folder(context)
    written = facts.run_manifest(run)
    if written["settings"]["method"] == "full":
        model = run / "model"  # a whole one already
    else:
        _run(commands.merge(run))
        model = run / "merged"
    size = sum(file.stat().st_size for file in model.rglob("*") if file.is_file())
    return MaterializeResult(
        metadata={
            "model": MetadataValue.path(str(model)),
            "bytes": size,
            "run": MetadataValue.path(str(run)),
        }
    )


@asset(
    group_name="training",
    deps=[merged_model, "benchmark_checks"],
    pool="gpu",
)
def evaluation(context: AssetExecutionContext, choices: Choices) -> MaterializeResult[Any]:
    """`trajlake eval` of the model, which `python -m train.serve` serves meanwhile."""
    _check_training()
    run = choices.run_folder(context)
    results: list[dict[str, Any]] = []
    try:
        with commands.served(run) as (endpoint, model):
            for each in choices.evaluations:
                said = _run(
                    commands.evaluate(each, model, run), commands.model_environment(endpoint)
                )
                results += json.loads(said)
    except TrajlakeError as error:
        raise Failure(str(error), allow_retries=False) from error
    _tell_tables(context, "measured_results")
    shown = ("benchmark", "metric", "setting", "value", "item_count", "overlapping_trajectories")
    return MaterializeResult(
        metadata={
            "results": MetadataValue.md(
                pictures.markdown_table([{name: each[name] for name in shown} for each in results])
            ),
            "run": MetadataValue.path(str(run)),
            **{
                f"{each['benchmark']} {each['metric']}": each["value"]
                for each in results
                if each["value"] is not None
            },
        }
    )


def _tell_tables(context: AssetExecutionContext, *names: str) -> None:
    """Show what a command itself has written into tables of the lake."""
    for name in names:
        state = facts.table_state(name)
        if state:
            context.log_event(
                AssetMaterialization(
                    AssetKey(name),
                    metadata={"dagster/row_count": state.rows, "Delta version": state.version},
                )
            )


def _run(command: list[str], environment: Mapping[str, str] | None = None) -> str:
    """Run a command; what it refuses is not tried again."""
    try:
        return commands.run(command, environment)
    except commands.CommandFailed as error:
        raise Failure(str(error), allow_retries=not error.is_refusal) from error


def _check_training() -> None:
    try:
        commands.check_training()
    except TrajlakeError as error:
        raise Failure(str(error), allow_retries=False) from error


def _first_run_id(context: AssetExecutionContext) -> str:
    """The Dagster run's id, or of a run that is executed again, that of the first."""
    return str(context.run.root_run_id or context.run.run_id)


def _began(context: AssetExecutionContext) -> datetime:
    """When the Dagster run began: before all tries."""
    record = context.instance.get_run_record_by_id(context.run.run_id)
    moment = record.start_time if record else None
    return datetime.fromtimestamp(moment, UTC) if moment else datetime.now(UTC)


# --- when ---------------------------------------------------------------------------------------

_BUILT = AssetSelection.assets(dbt_build)
refresh = define_asset_job(
    "refresh", _BUILT | AssetSelection.assets(export), description="Build and export."
)
train_and_measure = define_asset_job(
    "train_and_measure",
    AssetSelection.assets(prepared_rows, training_run, merged_model, evaluation),
    description="From the export that is there to a measured model.",
)
everything = define_asset_job(
    "everything",
    _BUILT | AssetSelection.groups("training_data", "training"),
    description="From raw files to a measured model.",
)


@sensor(
    job=refresh,
    minimum_interval_seconds=30,
    default_status=DefaultSensorStatus.STOPPED,
)
def new_raw_files(context: SensorEvaluationContext) -> SensorResult:
    """Refreshes once for each change below the raw folder, when its files have lain still from one
    look to the next."""
    now = changes.sources(list_files(raw_folder()))
    look = changes.look(now, context.cursor)
    if look.key is None:
        reason = "files are being copied" if look.waits else "nothing is new"
        return SensorResult(skip_reason=reason, cursor=look.cursor)
    return SensorResult(
        run_requests=[RunRequest(run_key=look.key)],
        cursor=look.cursor,
        asset_events=[
            AssetObservation(
                AssetKey(["raw", name]),
                metadata={"files": now[name].files, "bytes": now[name].size},
            )
            for name in look.changed
        ],
    )


daily = ScheduleDefinition(
    name="daily",
    job=refresh,
    cron_schedule="0 3 * * *",
    default_status=DefaultScheduleStatus.STOPPED,
    description="Refreshes at three in the morning.",
)

defs = Definitions(
    assets=[
        *(
            AssetSpec(
                AssetKey([_PREFIX[model], source]),
                group_name=_PREFIX[model],
                description="Files as they were published.",
            )
            for model, found in SOURCES.items()
            for source in found
        ),
        dbt_build,
        export,
        prepared_rows,
        training_run,
        merged_model,
        evaluation,
    ],
    jobs=[refresh, train_and_measure, everything],
    sensors=[new_raw_files],
    schedules=[daily],
    resources={
        "dbt": DbtCliResource(PROJECT, dbt_executable=str(commands.DBT)),
        "choices": Choices(),
    },
)
