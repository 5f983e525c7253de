"""`trajlake agent`."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.progress import Progress

from orchestration.agent.environment import Task
from orchestration.agent.loop import Limits, play_all
from orchestration.agent.model import Model
from orchestration.agent.records import Records, check_name, record
from orchestration.agent.styles import STYLES
from orchestration.agent.tasks import (
    environment_for_questions,
    game_tasks,
    question_of,
    question_tasks,
    read_questions,
)
from orchestration.printing import AsJson, line, note, print_json
from udfs.errors import ConfigError
from udfs.settings import raw_folder

# Options that `trajlake eval` has as well.
ModelName = Annotated[str, typer.Option(help="The model's name at OPENAI_BASE_URL.")]
StyleName = Annotated[
    Literal["tools", "react"],
    typer.Option(help="How it acts: native tool calls, or ReAct's Thought/Action/Observation."),
]
Parameters = Annotated[
    str, typer.Option(metavar="YAML", help="Further fields of every request to the model.")
]
ToolsOption = Annotated[
    list[str] | None,
    typer.Option(help="For tools: file.py[:function,…] or module:function,…; code that you trust."),
]
SpecOption = Annotated[Path | None, typer.Option(help="For openapi: the OpenAPI 3 file.")]
ServerOption = Annotated[
    str | None, typer.Option(help="For openapi: the server's address, instead of the file's first.")
]
StepTimeout = Annotated[
    float, typer.Option(min=0.1, help="Seconds for a reply or a tool's answer.")
]
EpisodeTimeout = Annotated[float, typer.Option(min=0.1, help="Seconds for a whole episode.")]
Concurrency = Annotated[int, typer.Option(min=1, help="Episodes at a time.")]
DEFAULT_PARAMETERS = "{temperature: 0, max_tokens: 1024}"


def agent_command(
    model: ModelName,
    env: Annotated[
        Literal["textworld", "tools", "openapi", "chat"],
        typer.Option(help="What it acts in: a game, functions, an HTTP service, or nothing."),
    ],
    query: Annotated[list[str] | None, typer.Option(help="What to do; may be repeated.")] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="A file of queries: .jsonl or .json with `query`, or a text line each."),
    ] = None,
    game: Annotated[
        list[Path] | None, typer.Option(help="For textworld: a game, or a folder of games.")
    ] = None,
    tools: ToolsOption = None,
    spec: SpecOption = None,
    server: ServerOption = None,
    style: StyleName = "tools",
    episodes: Annotated[int, typer.Option(min=1, help="Episodes of each query or game.")] = 1,
    max_steps: Annotated[int, typer.Option(min=1, help="Replies of the model in an episode.")] = 20,
    step_timeout: StepTimeout = 120.0,
    timeout: EpisodeTimeout = 1800.0,
    parameters: Parameters = DEFAULT_PARAMETERS,
    concurrency: Concurrency = 1,
    name: Annotated[
        str | None, typer.Option(help="The source is raw/agent-<name>; by itself, as --env.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Let a model answer queries in an environment, and keep what it did as raw records.

    The next `dbt build` makes trajectories of them, and rates and curates them.
    """
    limits = Limits(max_steps, step_timeout, timeout)
    asked = Model(model, parsed_parameters(parameters), step_timeout)
    tasks: Sequence[Task]
    if env == "textworld":
        if query or queries or tools or spec or server:
            raise ConfigError("--env textworld plays games: give --game and no queries or tools.")
        tasks = game_tasks(game or [])
    else:
        if game:
            raise ConfigError(f"--env {env} has no use for --game. Use --env textworld.")
        questions = [question_of(text) for text in query or []]
        questions += read_questions(queries) if queries else []
        if not questions:
            raise ConfigError("There is nothing to do. Give --query, or a file by --queries.")
        opened = environment_for_questions(
            env, tools=tools or [], spec=spec, server=server, step_s=step_timeout
        )
        tasks = question_tasks(questions, opened)
    folder = raw_folder() / f"agent-{check_name(name or env)}"
    ended: Counter[str] = Counter()
    unsaid = 0
    # Ctrl-C and SIGTERM alike: what has ended is kept.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with Records(folder) as records, Progress(console=Console(stderr=True)) as progress:
        for path in records.left_behind:
            note(
                f"note: {path} has episodes of a run that was killed or still runs. Rename it to "
                f"{path.name[1:]} to have them landed."
            )
        todo = [task for task in tasks for _ in range(episodes)]
        bar = progress.add_task("episodes", total=len(todo))
        for episode in play_all(todo, asked, STYLES[style], limits, concurrency):
            ended[episode.ended] += 1
            if episode.steps:
                records.add(record(episode, asked, limits))
            else:
                unsaid += 1
                note(f"note: {episode.task_id} had no reply: {episode.detail}")
            progress.advance(bar)
    _say(records, ended, unsaid, as_json)


def parsed_parameters(given: str) -> Mapping[str, Any]:
    """The fields that `--parameters` gives.

    Raises:
        ConfigError: it is no mapping.
    """
    try:
        found = yaml.safe_load(given)
    except yaml.YAMLError as error:
        raise ConfigError(f"--parameters is no YAML: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(
            f"--parameters is {given!r}. Give a mapping, such as '{DEFAULT_PARAMETERS}'."
        )
    return found


def _say(records: Records, ended: Mapping[str, int], unsaid: int, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "file": str(records.path) if records.count else None,
                "episodes": records.count,
                "without_reply": unsaid,
                "ended": dict(ended),
            }
        )
        return
    console = Console(soft_wrap=True, highlight=False)
    how = ", ".join(f"{count:,} {name}" for name, count in sorted(ended.items()))
    if records.count:
        console.print(line(f"{records.path}: {records.count:,} episodes ({how})"))
        console.print("`dbt build` makes trajectories of them.")
    else:
        console.print(line(f"No episode has a reply, so nothing was written ({how})."))
