"""`trajlake eval`: one subcommand a benchmark."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import Progress

from orchestration.agent.command import (
    DEFAULT_PARAMETERS,
    Concurrency,
    EpisodeTimeout,
    ModelName,
    Parameters,
    ServerOption,
    SpecOption,
    StepTimeout,
    StyleName,
    ToolsOption,
    parsed_parameters,
)
from orchestration.agent.environment import Environment, Task
from orchestration.agent.loop import Episode, Limits, play_all
from orchestration.agent.model import Model
from orchestration.agent.records import Records, record
from orchestration.agent.styles import STYLES
from orchestration.agent.tasks import (
    Question,
    environment_for_questions,
    game_tasks,
    question_tasks,
    read_questions,
)
from orchestration.evaluate.bfcl import run_bfcl
from orchestration.evaluate.overlap import (
    Overlap,
    overlap_of_benchmark,
    overlap_of_games,
    overlap_of_questions,
)
from orchestration.evaluate.results import Result, append
from orchestration.evaluate.scores import Attempt, exact_match, f1, success_by_budget
from orchestration.printing import AsJson, line, note, print_json, table
from udfs.errors import ConfigError
from udfs.settings import raw_folder

_SHORT = "Give the answer alone, as short as it can be."

Questions = Annotated[
    Path,
    typer.Option(help="The questions: .jsonl or .json, each with `question` and `answer`."),
]
Env = Annotated[
    Literal["chat", "tools", "openapi"], typer.Option(help="What the model has to answer with.")
]
RunFolderOption = Annotated[
    Path | None,
    typer.Option(help="The training run that the model comes from: its recipe is what is checked."),
]
Unchecked = Annotated[
    bool,
    typer.Option("--unchecked", help="Measure though nobody has looked for it in training data."),
]
Out = Annotated[Path, typer.Option(help="The folder that keeps what the model did.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure a served model on a benchmark, beside the published numbers.",
)


@app.command()
def hotpotqa(
    model: ModelName,
    questions: Questions,
    env: Env = "chat",
    tools: ToolsOption = None,
    spec: SpecOption = None,
    server: ServerOption = None,
    style: StyleName = "react",
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model to a question.")] = 8,
    step_timeout: StepTimeout = 120.0,
    timeout: EpisodeTimeout = 1800.0,
    parameters: Parameters = DEFAULT_PARAMETERS,
    concurrency: Concurrency = 1,
    run: RunFolderOption = None,
    unchecked: Unchecked = False,
    out: Out = Path("evaluations"),
    as_json: AsJson = False,
) -> None:
    """Exact match and F1 of answers, as HotpotQA's evaluation counts them."""
    limits = Limits(max_steps, step_timeout, timeout)
    asks = Model(model, parsed_parameters(parameters), step_timeout)
    opened = environment_for_questions(
        env, tools=tools or [], spec=spec, server=server, step_s=step_timeout
    )
    overlap, found = _answered(
        "hotpotqa", questions, opened, asks, style, limits, concurrency, run, unchecked, out
    )
    of = _results("hotpotqa", asks, f"{env} {style}", run, max_steps, len(found), overlap)
    scored = [
        of(name, fmean(score(episode.answer or "", gold) for episode, gold in found))
        for name, score in _SCORES
    ]
    _keep(scored, as_json)


@app.command()
def mint(
    model: ModelName,
    questions: Questions,
    env: Env = "tools",
    tools: ToolsOption = None,
    spec: SpecOption = None,
    server: ServerOption = None,
    style: StyleName = "tools",
    budget: Annotated[int, typer.Option(min=1, help="Replies of the model to a question.")] = 5,
    step_timeout: StepTimeout = 120.0,
    timeout: EpisodeTimeout = 1800.0,
    parameters: Parameters = DEFAULT_PARAMETERS,
    concurrency: Concurrency = 1,
    run: RunFolderOption = None,
    unchecked: Unchecked = False,
    out: Out = Path("evaluations"),
    as_json: AsJson = False,
) -> None:
    """The share of questions solved within 1, 2, … steps, as MINT shows success.

    Solved is an answer that matches exactly, normalised as HotpotQA's. All budgets are read from
    one run with the largest.
    """
    limits = Limits(budget, step_timeout, timeout)
    asks = Model(model, parsed_parameters(parameters), step_timeout)
    opened = environment_for_questions(
        env, tools=tools or [], spec=spec, server=server, step_s=step_timeout
    )
    overlap, found = _answered(
        "mint", questions, opened, asks, style, limits, concurrency, run, unchecked, out
    )
    attempts = [
        Attempt(exact_match(episode.answer or "", gold) == 1.0, episode.steps)
        for episode, gold in found
    ]
    results = [
        _results("mint", asks, f"{env} {style}", run, steps, len(attempts), overlap)(
            "success_rate", share
        )
        for steps, share in enumerate(success_by_budget(attempts, budget), start=1)
    ]
    _keep(results, as_json)


@app.command()
def textworld(
    model: ModelName,
    game: Annotated[list[Path], typer.Option(help="A game, or a folder of games.")],
    style: StyleName = "tools",
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model in a game.")] = 50,
    step_timeout: StepTimeout = 120.0,
    timeout: EpisodeTimeout = 1800.0,
    parameters: Parameters = DEFAULT_PARAMETERS,
    concurrency: Concurrency = 1,
    run: RunFolderOption = None,
    unchecked: Unchecked = False,
    out: Out = Path("evaluations"),
    as_json: AsJson = False,
) -> None:
    """The share of TextWorld games won with the highest score, and the mean share of points."""
    tasks = game_tasks(game)
    overlap = _checked(
        overlap_of_games([_opening(task) for task in tasks], _recipe(run)), unchecked
    )
    limits = Limits(max_steps, step_timeout, timeout)
    asks = Model(model, parsed_parameters(parameters), step_timeout)
    found = _play("textworld", tasks, asks, style, limits, concurrency, out)
    rewards = [episode.reward or 0.0 for _, episode in found]
    of = _results("textworld", asks, style, run, max_steps, len(rewards), overlap)
    won = fmean(float(reward == 1.0) for reward in rewards)
    _keep([of("success_rate", won), of("avg_reward", fmean(rewards))], as_json)


@app.command()
def bfcl(
    model: ModelName,
    category: Annotated[
        list[str] | None,
        typer.Option(help="As `bfcl test-categories` lists them; may be repeated."),
    ] = None,
    style: Annotated[
        Literal["tools", "prompt"],
        typer.Option(help="Native tool calls, or functions and calls as text."),
    ] = "tools",
    environment: Annotated[
        Path, typer.Option(help="The virtual environment that bfcl-eval is in; made if missing.")
    ] = Path(".venv-bfcl"),
    concurrency: Concurrency = 1,
    run: RunFolderOption = None,
    unchecked: Unchecked = False,
    out: Out = Path("evaluations"),
    as_json: AsJson = False,
) -> None:
    """Accuracy by category on the Berkeley Function Calling Leaderboard, by bfcl-eval itself."""
    overlap = _checked(overlap_of_benchmark("bfcl", _recipe(run)), unchecked)
    asks = Model(model, {}, timeout_s=120.0)
    found = run_bfcl(
        environment,
        asks,
        category or ["simple_python"],
        out / "bfcl",
        prompted=style == "prompt",
        threads=concurrency,
    )
    results = [
        _results("bfcl", asks, f"{each.category} {style}", run, None, each.item_count, overlap)(
            "accuracy", each.accuracy
        )
        for each in found
    ]
    _keep(results, as_json)


_SCORES: tuple[tuple[str, Callable[[str, str], float]], ...] = (
    ("exact_match", exact_match),
    ("f1", f1),
)


def _answered(
    benchmark: str,
    questions: Path,
    opened: Callable[[str], Environment],
    model: Model,
    style: str,
    limits: Limits,
    concurrency: int,
    run: Path | None,
    unchecked: bool,
    out: Path,
) -> tuple[Overlap, list[tuple[Episode, str]]]:
    """Check a file of questions against training data, and have them answered: each episode with
    the right answer."""
    asked = read_questions(questions)
    gold = _answers(questions, asked)
    overlap = _checked(overlap_of_questions([q.text for q in asked], _recipe(run)), unchecked)
    tasks = question_tasks(asked, _briefly(opened))
    found = _play(benchmark, tasks, model, style, limits, concurrency, out)
    return overlap, [(episode, gold[number]) for number, episode in found]


def _answers(file: Path, questions: Sequence[Question]) -> list[str]:
    for number, question in enumerate(questions, start=1):
        if not isinstance(question.row.get("answer"), str):
            raise ConfigError(
                f"{file}: question {number} has no text under `answer`. Give it one, in a .json or "
                ".jsonl file."
            )
    return [str(question.row["answer"]) for question in questions]


def _briefly(opened: Callable[[str], Environment]) -> Callable[[str], Environment]:
    """The same environments, which ask for short answers: they are compared word for word."""

    def open_briefly(query: str) -> Environment:
        environment = opened(query)
        environment.instructions = f"{environment.instructions} {_SHORT}".strip()
        return environment

    return open_briefly


def _opening(task: Task) -> str:
    environment = task.open()
    try:
        return environment.reset()
    finally:
        environment.close()


def _recipe(run: Path | None) -> str | None:
    """The recipe that a run was trained by."""
    return None if run is None else str(_manifest(run)["export"]["recipe"])


def _manifest(run: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((run / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run} is no training run ({error}). Give --run the folder that train.sft wrote."
        ) from error
    return found


def _checked(overlap: Overlap, unchecked: bool) -> Overlap:
    """Say what the look at training data gave; stop where there was none.

    Raises:
        ConfigError: nobody has looked, and that was not asked for.
    """
    if overlap.problem and not unchecked:
        raise ConfigError(
            f"Nobody has looked for these tasks in the training data: {overlap.problem}; or "
            "measure all the same by --unchecked."
        )
    if overlap.problem:
        note(f"note: not checked against training data: {overlap.problem}")
    elif overlap.trajectories:
        note(
            f"warning: {overlap.trajectories:,} kept trajectories were asked what is measured "
            "here. A model that was trained on them is not measured by it; see benchmark_overlap."
        )
    return overlap


def _play(
    benchmark: str,
    tasks: Sequence[Task],
    model: Model,
    style: str,
    limits: Limits,
    concurrency: int,
    out: Path,
) -> list[tuple[int, Episode]]:
    """The episodes of all tasks, each with its task's number; kept as records below `out`."""
    if out.resolve().is_relative_to(raw_folder()):
        raise ConfigError(
            f"--out {out} is below the raw folder, so a benchmark's tasks would become training "
            "data. Give another folder."
        )
    # Two questions may have one id; a task's number is its own.
    numbered = [Task(str(number), task.open) for number, task in enumerate(tasks)]
    found = []
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Records(out / benchmark) as records, Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(benchmark, total=len(tasks))
        for episode in play_all(numbered, model, STYLES[style], limits, concurrency):
            number = int(episode.task_id)
            episode.task_id = tasks[number].task_id
            records.add(record(episode, model, limits))
            found.append((number, episode))
            progress.advance(bar)
    if failed := sum(episode.ended == "error" for _, episode in found):
        note(f"note: {failed:,} of {len(found):,} tasks ended by an error and count as unsolved")
    note(f"what the model did: {records.path}")
    return found


def _results(
    benchmark: str,
    model: Model,
    setting: str,
    run: Path | None,
    step_budget: int | None,
    item_count: int | None,
    overlap: Overlap,
) -> Callable[[str, float | None], Result]:
    """Makes results that differ by metric and value."""

    def of(metric: str, value: float | None) -> Result:
        return Result(
            benchmark=benchmark,
            metric=metric,
            model_name=model.name,
            setting=setting,
            run_id=None if run is None else str(_manifest(run)["run_id"]),
            endpoint=model.address,
            value=value,
            step_budget=step_budget,
            item_count=item_count,
            overlapping_trajectories=overlap.trajectories,
        )

    return of


def _keep(results: Sequence[Result], as_json: bool) -> None:
    """Store the results and print them."""
    append(results)
    if as_json:
        print_json([vars(result) for result in results])
        return
    shown = table(f"{results[0].benchmark}: {results[0].model_name}")
    for column in ("metric", "setting", "step budget", "tasks", "value"):
        shown.add_column(column, justify="right" if column in ("tasks", "value") else "left")
    for each in results:
        value = "" if each.value is None else f"{each.value:.4f}"
        shown.add_row(
            *map(line, (each.metric, each.setting, each.step_budget, each.item_count, value))
        )
    console = Console()
    console.print(shown)
    console.print('Beside the published numbers: trajlake sql "select * from benchmark_results"')
