"""Model and environment in turn: an episode."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from orchestration.agent.environment import (
    Environment,
    EnvironmentFailed,
    InvalidCall,
    Task,
    within,
)
from orchestration.agent.model import Model, NoReply
from orchestration.agent.styles import Answer, Call, Malformed, Style

Ended = Literal["finished", "step_limit", "timeout", "error"]


@dataclass(frozen=True)
class Limits:
    """What an episode may take: replies of the model, and seconds for a reply, for a call of a
    tool, and for the whole."""

    steps: int = 20
    step_s: float = 120.0
    episode_s: float = 1800.0


@dataclass
class Episode:
    """What happened in one task.

    `ended`: `finished` by the model's answer or by the environment; `step_limit`; `timeout`, of a
    step or of the whole; `error`, for which `detail` has the reason. `steps` counts the model's
    replies; `reward` is the environment's last, null where it gave none; `answer` the model's, null
    where it gave none.
    """

    task_id: str
    environment: str
    style: str
    tools: Sequence[Mapping[str, Any]]
    messages: list[dict[str, Any]] = field(default_factory=list)
    ended: Ended = "step_limit"
    detail: str | None = None
    steps: int = 0
    reward: float | None = None
    answer: str | None = None
    seconds: float = 0.0


def play(task: Task, model: Model, style: Style, limits: Limits) -> Episode:
    """Let the model act in a task's environment until one of them, or a limit, ends it.

    What the model gets wrong, it is told, and that counts as a step like any other.

    Raises:
        EndpointError: the model cannot be asked any further.
        ConfigError: the environment cannot be opened.
    """
    began = time.monotonic()
    environment = task.open()
    episode = Episode(task.task_id, environment.name, style.name, list(environment.tools))
    try:
        _play(environment, model, style, limits, episode, began + limits.episode_s)
    except TimeoutError as error:
        episode.ended, episode.detail = "timeout", str(error)
    except (NoReply, EnvironmentFailed) as error:
        episode.ended, episode.detail = "error", str(error)
    finally:
        environment.close()
    episode.seconds = round(time.monotonic() - began, 3)
    return episode


def _play(
    environment: Environment,
    model: Model,
    style: Style,
    limits: Limits,
    episode: Episode,
    end: float,
) -> None:
    def left() -> float:
        """Seconds for what comes next."""
        if (rest := end - time.monotonic()) <= 0:
            raise TimeoutError(f"the episode took longer than {limits.episode_s:,.0f} s")
        return min(rest, limits.step_s)

    messages = episode.messages
    messages += style.opening(environment, within(left(), environment.reset))
    tools = style.request_tools(environment)
    ask = partial(model.ask, messages, tools, style.stop)
    while episode.steps < limits.steps:
        reply = within(left(), ask)
        messages.append(dict(reply.message))
        episode.steps += 1
        if reply.is_cut:
            problem = "Your reply was cut off: it is too long. Say it shorter."
            # Calls may be cut off within their arguments; each still has to be answered.
            call_ids = [call["id"] for call in reply.calls] or [None]
            messages += [style.told(problem, call_id) for call_id in call_ids]
            continue
        for action in style.actions(environment, reply):
            match action:
                case Answer(text):
                    episode.answer, episode.ended = text, "finished"
                case Malformed(problem, call_id):
                    messages.append(style.told(problem, call_id))
                case Call(call_id):
                    said = _call(environment, action, episode, left())
                    messages.append(style.told(said, call_id))
        if episode.ended == "finished":
            return


def _call(environment: Environment, call: Call, episode: Episode, seconds: float) -> str:
    """Make a call; what the model is told of it."""
    if episode.ended == "finished":
        return "Not carried out: the environment had ended."
    try:
        outcome = within(seconds, lambda: environment.step(call.name, call.arguments))
    except InvalidCall as error:
        return str(error)
    except TimeoutError:
        raise
    except Exception as error:  # whatever an interpreter of games may raise
        raise EnvironmentFailed(f"{call.name}: {type(error).__name__}: {error}") from error
    if outcome.reward is not None:
        episode.reward = outcome.reward
    if outcome.is_done:
        episode.ended = "finished"
    return outcome.observation


def play_all(
    tasks: Sequence[Task], model: Model, style: Style, limits: Limits, concurrency: int
) -> Iterator[Episode]:
    """The episodes of tasks, in the order in which they end.

    Nothing waits for episodes that are under way when the caller stops asking: what they ask of a
    model ends with the process.

    Args:
        concurrency: episodes at a time.

    Raises:
        EndpointError, ConfigError: as `play`; no further task is begun.
    """
    waiting = queue.SimpleQueue[Task]()
    for task in tasks:
        waiting.put(task)
    ended = queue.SimpleQueue[Episode | BaseException]()

    def work() -> None:
        while True:
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put(play(task, model, style, limits))
            except BaseException as error:
                ended.put(error)
                return

    for _ in range(min(concurrency, len(tasks))):
        threading.Thread(target=work, daemon=True).start()
    for _ in tasks:
        found = ended.get()
        if isinstance(found, BaseException):
            while not waiting.empty():
                waiting.get()
            raise found
        yield found
