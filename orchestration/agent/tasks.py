"""From what the user gives to tasks: questions with an environment, or games."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from orchestration.agent.environment import Chat, Environment, Task
from orchestration.agent.functions import Functions, load_functions
from orchestration.agent.openapi import OpenApi, load_service
from orchestration.agent.textworld import TextWorld, games
from orchestration.printing import note
from udfs.errors import ConfigError

QuestionEnvironment = Literal["chat", "tools", "openapi"]

_TEXTS = ("query", "question")
_IDS = ("task_id", "id", "_id")


@dataclass(frozen=True)
class Question:
    """Something asked: its id (given, or a hash of the text), the text, and the whole row."""

    question_id: str
    text: str
    row: Mapping[str, Any]


def question_of(text: str) -> Question:
    """A question of its own, named by its text."""
    return Question(hashlib.sha256(text.encode()).hexdigest()[:16], text, {})


def read_questions(file: Path) -> list[Question]:
    """The questions of a file: JSON lines or a JSON list of objects, else one a line of text.

    An object has its text under `query` or `question`, its id under `task_id`, `id` or `_id`.

    Raises:
        ConfigError: the file cannot be read, or a row has no text; names the row.
    """
    try:
        content = file.read_text(encoding="utf-8")
        if file.suffix not in (".json", ".jsonl"):
            return _all(file, [question_of(line) for line in content.splitlines() if line.strip()])
        lines = [line for line in content.split("\n") if line.strip()]
        rows = json.loads(content) if file.suffix == ".json" else list(map(json.loads, lines))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"The questions in {file} cannot be read: {error}") from error
    if not isinstance(rows, list):
        raise ConfigError(f"{file} is no list of questions. Give one, or a line for each (.jsonl).")
    return _all(file, list(_questions(file, rows)))


def _questions(file: Path, rows: Sequence[Any]) -> Iterator[Question]:
    for number, row in enumerate(rows, start=1):
        fields = row if isinstance(row, dict) else {}
        text = next((fields[name] for name in _TEXTS if isinstance(fields.get(name), str)), "")
        if not text.strip():
            raise ConfigError(
                f"{file}: row {number} has no text under {' or '.join(_TEXTS)}. Give it one."
            )
        given = next((fields[name] for name in _IDS if fields.get(name) is not None), None)
        yield Question(question_of(text).question_id if given is None else str(given), text, fields)


def _all(file: Path, questions: list[Question]) -> list[Question]:
    if not questions:
        raise ConfigError(f"There is no question in {file}.")
    return questions


def environment_for_questions(
    env: QuestionEnvironment,
    *,
    tools: Sequence[str],
    spec: Path | None,
    server: str | None,
    step_s: float,
) -> Callable[[str], Environment]:
    """What opens an environment for a question.

    Args:
        tools: for `tools`: files or modules of functions; see `load_functions`.
        spec: for `openapi`: the file.
        server: for `openapi`: where the service is, where the file does not say it.
        step_s: how long a service may take.

    Raises:
        ConfigError: something is missing, is for another environment, or cannot be used.
    """
    for option, value, wanted in (("tools", tools, "tools"), ("spec", spec, "openapi")):
        if bool(value) != (env == wanted):
            verb = "needs" if env == wanted else "has no use for"
            raise ConfigError(f"--env {env} {verb} --{option}.")
    if server and env != "openapi":
        raise ConfigError(f"--env {env} has no use for --server.")
    if env == "chat":
        return Chat
    if env == "tools":
        functions = load_functions(tools)
        return lambda query: Functions(query, functions)
    service = load_service(spec or Path(), server)
    for name, why in service.left_out.items():
        note(f"note: the operation {name} is no tool: {why}")
    return lambda query: OpenApi(query, service, step_s)


def question_tasks(
    questions: Sequence[Question], opened: Callable[[str], Environment]
) -> list[Task]:
    """A task for each question."""
    return [Task(each.question_id, partial(opened, each.text)) for each in questions]


def game_tasks(paths: Sequence[Path]) -> list[Task]:
    """A task for each game among files and folders.

    Raises:
        ConfigError: there is none.
    """
    return [Task(game.stem, partial(TextWorld, game)) for game in games(paths)]
