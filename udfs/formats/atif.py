"""`atif`: Harbor's Agent Trajectory Interchange Format, version 1.7 and those before it.

    {"schema_version": "ATIF-v1.7", "session_id": "s1",
     "agent": {"name": "courier", "version": "1.0", "model_name": "m", "tool_definitions": […]},
     "steps": [
       {"step_id": 1, "source": "user", "message": "Where is my parcel?"},
       {"step_id": 2, "source": "agent", "message": "", "reasoning_content": "I look it up.",
        "tool_calls": [{"tool_call_id": "c1", "function_name": "track", "arguments": {"n": 17}}],
        "observation": {"results": [{"source_call_id": "c1", "content": "in Lyon"}]}},
       {"step_id": 3, "source": "agent", "message": "It is in Lyon."}]}

Source: Harbor's RFC 0001 (2025).

A step of source agent is a step here, its observation's results are observations; steps of source
user and system are turns. Reasoning is a thought and stands before the message in the output.
A step that was copied from another trajectory (`is_copied_context`) or that no model made
(`llm_call_count` is 0) is not trainable. `extra.score` is the score, `session_id` the task's id
where the record has none. A version other than 1.7 stays in the other information.

`to_record` writes a row as ATIF 1.7; what that has no place for is in `extra`
(`udfs.formats.slots`). An ATIF agent has to have a name and a version: where a row knows none they
are `unknown`.
"""

from __future__ import annotations

import json
from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.chat import text_of_parts
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.slots import SLOT, with_carried
from udfs.formats.trajectory import LAYOUT, Format, Options, ToolCall, Trajectory
from udfs.formats.turns import (
    Dialect,
    Turn,
    Turns,
    kind,
    plain_turns,
    to_messages,
    trajectory_of,
    unexpected,
    with_thought,
    without_thought,
)

_VERSION = "ATIF-v1.7"
_STEPS = "steps"
_SOURCES = {"system": "system", "user": "user", "agent": "assistant"}
_UNKNOWN = "unknown"


def matches(record: Any) -> float:
    """1.0 for a version of ATIF and steps."""
    return 0.0 if _problem(record) else 1.0


def near(record: Any) -> str | None:
    """An ATIF version without steps."""
    if isinstance(record, dict) and str(record.get("schema_version")).startswith("ATIF"):
        return _problem(record)
    return None


def _problem(record: Any) -> str | None:
    version = record.get("schema_version") if isinstance(record, dict) else None
    if not (isinstance(version, str) and version.startswith("ATIF-v1.")):
        return f"`schema_version` is {version!r:.60}, not one of ATIF-v1.0 to {_VERSION}"
    steps = record.get(_STEPS)
    if not (isinstance(steps, list) and steps and isinstance(steps[0], dict)):
        return "`steps` is no list of objects"
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory; subagents' stay in the other information.

    Raises:
        RefusedRecord: `unexpected_record`, `unexpected_turn`, `no_steps`, `unexpected_slot`.
    """
    problem = _problem(record)
    if problem:
        raise RefusedRecord("unexpected_record", f"It is no ATIF trajectory: {problem}.")
    rest = dict(record)
    if rest["schema_version"] == _VERSION:
        del rest["schema_version"]
    slot = None
    extra = rest.get("extra")
    if isinstance(extra, dict):
        extra = dict(rest.pop("extra"))
        slot = extra.pop(SLOT, None)
        if "score" in extra and "reward" not in rest:
            rest["reward"] = extra.pop("score")
        if isinstance(extra.get("other_information"), dict):
            rest = extra.pop("other_information") | rest
        if extra:
            rest["extra"] = extra
    if "session_id" in rest and not rest.keys() & {"task_id", "instance_id", "id"}:
        rest["task_id"] = rest.pop("session_id")
    agent = rest.get("agent")
    if isinstance(agent, dict):
        agent = dict(agent)
        for name, column in (("model_name", "model_name"), ("tool_definitions", "tools")):
            if name in agent and column not in rest:
                rest[column] = agent.pop(name)
        if agent == {"name": _UNKNOWN, "version": _UNKNOWN}:
            del rest["agent"]
        else:
            rest["agent"] = agent
    trajectory = trajectory_of(rest, raw_key, Turns(_STEPS, record[_STEPS]), DIALECT)
    return [with_carried(trajectory, slot, to_source)]


def _read(steps: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number, step in enumerate(steps):
        if not isinstance(step, dict):
            raise unexpected(number, f"is {kind(step)}, not an object")
        role = _SOURCES.get(str(step.get("source")))
        if role is None:
            raise unexpected(
                number, f"has source {step.get('source')!r:.60}; known are {', '.join(_SOURCES)}"
            )
        message = _content(number, step.get("message"))
        if role == "assistant":
            made = step.get("tool_calls")
            if not isinstance(made, list | None):
                raise unexpected(number, f"has `tool_calls` that are {kind(made)}, not a list")
            calls = [_call(number, call) for call in made or ()]
            thought = step.get("reasoning_content")
            content = message if message or not (calls or thought) else None
            if isinstance(thought, str) and thought:
                content = with_thought(thought, content)
            else:
                thought = None
            is_made = step.get("llm_call_count") != 0 and step.get("is_copied_context") is not True
            turns.append(Turn(role, content, thought, calls, is_trainable=is_made))
        else:
            turns.append(Turn(role, message))
        observation = step.get("observation")
        if observation is None:
            continue
        results = observation.get("results") if isinstance(observation, dict) else None
        if not isinstance(results, list):
            raise unexpected(number, "has an observation without a list of `results`")
        for result in results:
            if not isinstance(result, dict):
                raise unexpected(number, f"has a result that is {kind(result)}")
            call_id = result.get("source_call_id")
            turns.append(
                Turn(
                    "tool",
                    _content(number, result.get("content")),
                    call_id=call_id if isinstance(call_id, str) else None,
                )
            )
    return turns


def _content(number: int, content: Any) -> str | None:
    if isinstance(content, list):
        return text_of_parts(number, content)
    if not isinstance(content, str | None):
        raise unexpected(number, f"has content that is {kind(content)}")
    return content


def _call(number: int, call: Any) -> ToolCall:
    if isinstance(call, dict):
        call_id, name = call.get("tool_call_id"), call.get("function_name")
        if isinstance(call_id, str | None) and isinstance(name, str):
            return ToolCall(call_id, name, to_json(call.get("arguments")))
    raise unexpected(
        number, f"has a tool call without `tool_call_id` and `function_name`: {call!r:.120}"
    )


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    steps: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "tool" and label is None and steps:
            observation = steps[-1].setdefault("observation", {"results": []})
            result: dict[str, Any] = {"content": turn.content or ""}
            if turn.call_id is not None:
                result = {"source_call_id": turn.call_id} | result
            observation["results"].append(result)
            continue
        step: dict[str, Any] = {"step_id": len(steps) + 1}
        if turn.role != "assistant":
            source = {"system": "system", "agent": "agent"}.get(turn.role, "user")
            message = turn.content or ""
            if turn.role == "tool":
                message = (label or "") + message
            steps.append(step | {"source": source, "message": message})
            continue
        thought, content = without_thought(turn)
        step |= {"source": "agent", "message": content or ""}
        if thought is not None:
            step["reasoning_content"] = thought
        if turn.calls:
            step["tool_calls"] = [
                {
                    "tool_call_id": call.call_id or f"call_{step['step_id']}_{place}",
                    "function_name": call.name or "",
                    "arguments": _arguments(call.arguments),
                }
                for place, call in enumerate(turn.calls, start=1)
            ]
        steps.append(step)
    return steps


def _arguments(text: str | None) -> dict[str, Any]:
    """Arguments as ATIF has them, an object; any other value stands under `value`."""
    try:
        value = from_json((text or "{}").encode())
    except RefusedRecord:
        value = text
    return value if isinstance(value, dict) else {"value": value}


DIALECT = Dialect(read=_read, write=_write, field=_STEPS, key="source")


def to_source(trajectory: Trajectory) -> list[Any]:
    """The list of ATIF steps."""
    return to_messages(trajectory, DIALECT)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """The row as an ATIF-v1.7 trajectory, without what ATIF has no place for."""
    other = {key: value for key, value in trajectory.other_information.items() if key != LAYOUT}
    known = other.pop("agent", None)
    agent: dict[str, Any] = {"name": _UNKNOWN, "version": _UNKNOWN}
    if isinstance(known, dict):
        agent |= known
    if trajectory.model_name is not None:
        agent["model_name"] = trajectory.model_name
    if trajectory.tools is not None:
        agent["tool_definitions"] = json.loads(trajectory.tools)
    record: dict[str, Any] = {"schema_version": _VERSION}
    other.pop("schema_version", None)
    if trajectory.task_id is not None:
        record["session_id"] = trajectory.task_id
    record |= {"agent": agent, _STEPS: _write(plain_turns(trajectory), None)}
    extra: dict[str, Any] = {}
    if trajectory.score is not None:
        extra["score"] = trajectory.score
    if other:
        extra["other_information"] = other
    return record | ({"extra": extra} if extra else {})


FORMAT = Format(
    name="atif",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({"schema_version", _STEPS}),
)
