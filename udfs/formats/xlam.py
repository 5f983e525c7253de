"""`xlam`: xLAM's unified data format 2.0: tools, and steps with calls or a conversation.

    {"unique_trajectory_id": "t1", "task_instruction": "Answer with tools.",
     "few_shot_examples": [], "query": "Where is my parcel?",
     "tools": [{"name": "track", "description": "…", "parameters": {…}}],
     "steps": [
       {"step_id": "1", "thought": "I look it up.",
        "tool_calls": [{"name": "track", "arguments": {"n": 17}}],
        "next_observation": "in Lyon", "user_input": ""},
       {"step_id": "2", "thought": "It is in Lyon.", "tool_calls": [],
        "next_observation": "", "user_input": "Thanks."}]}

    {"unique_trajectory_id": "t1", "task_instruction": "Answer with tools.", "tools": […],
     "conversation": [
       {"role": "user", "content": "Where is my parcel?"},
       {"role": "assistant", "content": "I look it up.", "tool_calls": [
         {"id": "c1", "type": "function", "function": {"name": "track", "arguments": {"n": 17}}}]},
       {"role": "tool", "tool_call_id": "c1", "content": "in Lyon"}]}

Source: xLAM (Zhang et al. 2024) and its unified format for function calling; with `conversation`,
ActionStudio (Zhang et al. 2025), as its `data_pipeline/data_converters.py` reads its data.

`task_instruction` is the system prompt, `query` the first input, `user_input` what the user says
after the step. The turns of a conversation are OpenAI's (`udfs.formats.chat`). Examples are no
part of the run and stay in the other information. `to_record` writes a row with steps; what it has
no place for is in `other_information` (`udfs.formats.slots`).
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.chat import DIALECT as CHAT
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.slots import opened, with_carried
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
)

_STEPS, _ID, _OTHER = "steps", "unique_trajectory_id", "other_information"
_TOLD, _ASKED = "task_instruction", "query"
_CONVERSATION = "conversation"


def matches(record: Any) -> float:
    """1.0 for steps with thought, calls and `next_observation`; for turns with an instruction."""
    return 0.0 if _problem(record) else 1.0


def near(record: Any) -> str | None:
    """The id of this format beside other steps."""
    if isinstance(record, dict) and _ID in record:
        return _problem(record)
    return None


def _problem(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get(_ASKED), str | None):
        return "`query` is no text"
    if _STEPS not in record and isinstance(record.get(_TOLD), str):
        turns = record.get(_CONVERSATION)
        if isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]:
            return None
        return f"`{_CONVERSATION}` is no list of turns"
    steps = record.get(_STEPS)
    if not (isinstance(steps, list) and steps and isinstance(steps[0], dict)):
        return "`steps` is no list of objects"
    if not {"thought", "tool_calls", "next_observation"} <= steps[0].keys():
        return "its first step has not `thought`, `tool_calls` and `next_observation`"
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory.

    Raises:
        RefusedRecord: `unexpected_record`, `unexpected_turn` (the step's number),
            `unexpected_slot`.
    """
    problem = _problem(record)
    if problem:
        raise RefusedRecord("unexpected_record", f"It is no trajectory of xLAM's: {problem}.")
    rest, slot = opened(record, _OTHER)
    if not rest.keys() & {"task_id", "instance_id", "id"} and _ID in rest:
        rest["task_id"] = rest.pop(_ID)
    if "score" in rest and "reward" not in rest:
        rest["reward"] = rest.pop("score")
    given = []
    for name, role in ((_TOLD, "system"), (_ASKED, "user")):
        if isinstance(rest.get(name), str) and rest[name]:
            given.append(Turn(role, rest.pop(name)))
    field, dialect = (_STEPS, DIALECT) if _STEPS in record else (_CONVERSATION, CHAT)
    turns = Turns(field, record[field])
    trajectory = trajectory_of(rest, raw_key, turns, dialect, given=given)
    return [with_carried(trajectory, slot, to_source)]


def _read(steps: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number, step in enumerate(steps):
        if not isinstance(step, dict):
            raise unexpected(number, f"is {kind(step)}, not an object")
        thought, calls, said = (step.get(name) for name in ("thought", "tool_calls", "user_input"))
        if not isinstance(thought, str | None):
            raise unexpected(number, f"has a `thought` that is {kind(thought)}, not text")
        if not isinstance(calls, list | None):
            raise unexpected(number, f"has `tool_calls` that are {kind(calls)}, not a list")
        if not isinstance(said, str | None):
            raise unexpected(number, f"has a `user_input` that is {kind(said)}, not text")
        made = [_call(number, call) for call in calls or ()]
        content = thought if thought or not made else None
        turns.append(Turn("assistant", content, content or None, made))
        seen = step.get("next_observation")
        if seen not in (None, "", [], {}):
            turns.append(Turn("tool", seen if isinstance(seen, str) else to_json(seen)))
        if said:
            turns.append(Turn("user", said))
    return turns


def _call(number: int, call: Any) -> ToolCall:
    if isinstance(call, dict) and isinstance(call.get("name"), str):
        arguments = call.get("arguments")
        return ToolCall(
            None, call["name"], arguments if isinstance(arguments, str) else to_json(arguments)
        )
    raise unexpected(number, f"has a tool call without a `name`: {call!r:.120}")


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    steps: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "assistant":
            steps.append(
                {
                    "thought": turn.content or "",
                    "tool_calls": [
                        {"name": call.name, "arguments": _value(call.arguments)}
                        for call in turn.calls
                    ],
                    "step_id": str(len(steps) + 1),
                    "next_observation": "",
                    "user_input": "",
                }
            )
            continue
        if not steps:
            continue  # given before the steps; `to_record` and the layout have it
        name = "next_observation" if turn.role in ("tool", "agent") else "user_input"
        there, text = steps[-1][name], turn.content or ""
        if turn.role == "tool" and label is not None:
            text = label + text
        steps[-1][name] = f"{there}\n{text}" if there else text
    return steps


def _value(arguments: str | None) -> Any:
    try:
        return from_json((arguments or "{}").encode())
    except RefusedRecord:
        return arguments


DIALECT = Dialect(read=_read, write=_write, field=_STEPS, key="thought")


def to_source(trajectory: Trajectory) -> list[Any]:
    """The list of steps, or of turns."""
    is_told = trajectory.layout.get("field") == _CONVERSATION
    return to_messages(trajectory, CHAT if is_told else DIALECT)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """The row in xLAM's format, without what it has no place for."""
    other = {key: value for key, value in trajectory.other_information.items() if key != LAYOUT}
    if trajectory.score is not None:
        other["score"] = trajectory.score
    if trajectory.model_name is not None:
        other["model_name"] = trajectory.model_name
    return {
        _ID: trajectory.task_id,
        _TOLD: trajectory.system_prompt or "",
        "few_shot_examples": other.pop("few_shot_examples", []),
        _ASKED: trajectory.steps[0].input or "",
        "tools": from_json((trajectory.tools or "[]").encode()),
        _STEPS: _write(plain_turns(trajectory), None),
        _OTHER: other,
    }


FORMAT = Format(
    name="xlam",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    refines=("chat",),
)
