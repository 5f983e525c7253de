"""What an agent acts in: an opening text, tools, and what comes of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from orchestration.printing import cut

T = TypeVar("T")

# A tool may say as much at a time; the model is told how much is missing.
MOST_CHARACTERS = 20_000


class InvalidCall(Exception):
    """A call that cannot be made; the text tells the model what was wrong with it."""


class EnvironmentFailed(Exception):
    """An environment that cannot go on with its task; the text says why."""


@dataclass(frozen=True)
class Outcome:
    """What came of a call.

    `observation` is for the model; `reward` the score so far on the environment's own scale, null
    where it has none; `is_done` whether the environment has ended.
    """

    observation: str
    reward: float | None = None
    is_done: bool = False


class Environment(Protocol):
    """One task in progress. Used for one episode, by one thread at a time.

    `tools` are JSON Schema functions in OpenAI's shape. `takes_answers`: whether the model ends the
    task by an answer; otherwise only the environment ends it.
    """

    name: str
    instructions: str
    tools: Sequence[Mapping[str, Any]]
    takes_answers: bool

    def reset(self) -> str:
        """Begin; the user's message."""
        ...

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        """Call one of `tools`.

        Raises:
            InvalidCall: the arguments do not fit it; nothing has happened.
        """
        ...

    def close(self) -> None:
        """Let go of what the environment holds."""
        ...


@dataclass(frozen=True)
class Task:
    """Something to do: `task_id` names it, `open` gives its environment, anew each time."""

    task_id: str
    open: Callable[[], Environment]


class Chat:
    """No tools: the model answers one query."""

    name = "chat"
    instructions = ""
    tools: Sequence[Mapping[str, Any]] = ()
    takes_answers = True

    def __init__(self, query: str) -> None:
        self._query = query

    def reset(self) -> str:
        """The query."""
        return self._query

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        """Refuse: there is nothing to call."""
        raise InvalidCall("There are no tools here.")

    def close(self) -> None:
        """Nothing is held."""


def tool(name: str, description: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A tool in OpenAI's shape.

    Args:
        parameters: JSON Schema of the object of arguments.
    """
    function = {"name": name, "description": description, "parameters": dict(parameters)}
    return {"type": "function", "function": function}


def observed(text: str) -> str:
    """A text of an environment as the model is given it: whole, or with what is missing told."""
    return cut(text, MOST_CHARACTERS)


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call gives, if it comes in time.

    A call that does not is left behind: its thread ends with it, or with the process.

    Raises:
        TimeoutError: it did not.
    """
    found: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"nothing came within {seconds:,.0f} s")
    if failed:
        raise failed[0]
    return found[0]
