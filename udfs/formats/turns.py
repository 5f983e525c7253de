"""Conversations as lists of turns: turns to steps, and back exactly.

Every format that is a list of turns or events is read here. A format brings a `Dialect`: how one
list of the source's objects is read as plain turns, and how plain turns are written in the
plainest shape of that source.

* A turn of the agent is a step. A system turn at the very beginning is the system prompt.
* Of the turns between two outputs, the last run of user and system turns is the later step's
  `input` (several are joined by an empty line); all before it, and all turns after the last
  output, are observations of the earlier step, in their order: tools' with source
  `environment`, users' with source `user`.
* A result of a tool is an observation of the step it follows, with the id of the call it
  answers: the latest call of that id before it. It is never moved to an earlier step, since
  the model had not seen it there.
* A thought that the source gives apart from the answer stands in front of it in `output`, with
  an empty line between, as `thought` is part of `output` everywhere.
* Some sources put what the environment answered into the user's turns. Two marks tell: the turn
  begins with one of `OBSERVATION_LABELS` (the label is taken off), or, where no turn does, it
  directly follows an output with a line `Action:`, `ACTION:` or `Act:` whose action is not to
  answer or to finish. Neither is looked for where tools have turns of their own.

While parsing, what the dialect writes for the row is compared with the source, and what differs
(further fields, nulls, other names of roles, content in parts) is kept in the layout. So the way
back is exact for every record, and costs nothing where the source is plain.

| layout    | what it holds                                                                    |
|-----------|----------------------------------------------------------------------------------|
| `field`   | the field that held the turns; missing: `messages`                               |
| `is_list` | true where the record itself is the list of turns                                |
| `given`   | how many first turns are not in the list, but stood elsewhere in the record      |
| `label`   | the label of the environment's turns among the user's ("" for none); missing:    |
|           | the dialect's usual one                                                          |
| `inputs`  | step → lengths in characters of the turns joined in its input                    |
| `turns`   | turn (from 0) → what differs; objects are merged, lists by position, else set    |
| `absent`  | paths of what the plain shape has and the source has not                         |
| `source`  | the whole list, where the plain shape has another number of turns                |
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json
from udfs.formats.trajectory import (
    Observation,
    Step,
    ToolCall,
    Trajectory,
    assemble,
)

OBSERVATION_LABELS = ("Observation: ", "Observation:\n", "OBSERVATION:\n", "Execution result: \n")

# A line of an output that acts on an environment; an answer that ends the task does not.
_ACTION = re.compile(r"\n ?(?:Action|ACTION|Act):(?! ?(?i:answer|finish)\b)")
_JOINT = "\n\n"
_PLAIN_FIELD = "messages"
# Fields whose turns may be JSON text; then `to_messages` gives the list all the same.
TEXT_FIELDS = frozenset({"messages", "conversations", "conversation", "trajectory", "traj"})
# Where a record may say the system prompt, when the turns do not.
_SYSTEM_FIELDS = ("system", "system_prompt")


class Turn(NamedTuple):
    """One turn as it is understood.

    `role` is `system`, `user`, `assistant`, `tool` (the environment), or `agent` (something the
    agent is told that it said itself). `thought` is part of `content`.
    """

    role: str
    content: str | None
    thought: str | None = None
    calls: Sequence[ToolCall] = ()
    call_id: str | None = None
    name: str | None = None
    is_trainable: bool = True


@dataclass(frozen=True)
class Dialect:
    """How one family of sources writes turns.

    * `read(list)` gives the turns of the source's list; it raises `unexpected_turn` with the
      number of what it does not understand.
    * `write(turns, label)` gives the source's plainest shape. `label` is None where the
      environment's turns are the environment's, else they are to be written as the user's,
      after it.
    * `field` is the field that holds the list where several could, `key` what every object in
      it has.
    * `label` is what marks the environment's turns among the user's, unless the layout says.
    """

    read: Callable[[list[Any]], list[Turn]]
    write: Callable[[list[Turn], str | None], list[Any]]
    field: str = _PLAIN_FIELD
    key: str = "role"
    label: str | None = None


class Turns(NamedTuple):
    """The list of turns in a record, and the field it was found in (None: the record itself)."""

    field: str | None
    turns: list[Any]


def find_turns(record: Any, key: str = "role", field: str = _PLAIN_FIELD) -> Turns | None:
    """The list of turns in a record: the record itself, `field`, or the only field with one.

    In `TEXT_FIELDS` it may be the JSON text of a list. A list counts if its first item is an
    object with the given key.

    Raises:
        RefusedRecord: `several_conversations`, where it could be one of several fields.
    """
    asked, answers = _last_found
    if asked is not record:
        answers = {}
        _remember(record, answers)
    if (key, field) not in answers:
        try:
            answers[key, field] = _find_turns(record, key, field)
        except RefusedRecord as refused:
            answers[key, field] = refused
    answer = answers[key, field]
    if isinstance(answer, RefusedRecord):
        raise answer
    return answer


# Several formats ask the same of one record after another. One tuple, so that threads cannot see
# the record of one with the answers for another.
_last_found: tuple[Any, dict[tuple[str, str], Turns | RefusedRecord | None]] = (None, {})


def _remember(record: Any, answers: dict[tuple[str, str], Turns | RefusedRecord | None]) -> None:
    global _last_found
    _last_found = (record, answers)


def _find_turns(record: Any, key: str, field: str) -> Turns | None:
    if isinstance(record, list):
        return Turns(None, record) if _has_turns(record, key) else None
    if not isinstance(record, dict):
        return None
    found = [
        name
        for name, value in record.items()
        if isinstance(value, list) and value and isinstance(value[0], dict) and key in value[0]
    ]
    for name in TEXT_FIELDS & record.keys():
        if (text := record[name]) and isinstance(text, str) and _has_turns(turns_in(text), key):
            found.append(name)
    if not found:
        return None
    if len(found) > 1 and field not in found:
        raise RefusedRecord(
            "several_conversations",
            f"The fields {', '.join(found)} each hold a list of turns, and none is "
            f"`{field}`: which of them is the run is not said.",
        )
    if field not in found:
        field = found[0]
    turns = record[field]
    return Turns(field, turns_in(turns) or [] if isinstance(turns, str) else turns)


@lru_cache(maxsize=2)
def turns_in(text: str) -> list[Any] | None:
    """The list in a field's JSON text, as tables publish what their columns cannot nest.

    It is remembered for a moment, as several formats ask for it; nobody may change it.
    """
    if not text.lstrip().startswith("[{"):
        return None
    try:
        value = from_json(text.encode())
    except RefusedRecord:
        return None
    return value if isinstance(value, list) else None


def _has_turns(value: Any, key: str) -> bool:
    return (
        isinstance(value, list) and bool(value) and isinstance(value[0], dict) and key in value[0]
    )


def require_turns(record: Any, dialect: Dialect) -> Turns:
    """The list of turns in a record.

    Raises:
        RefusedRecord: `no_turns`, `several_conversations`.
    """
    found = find_turns(record, dialect.key, dialect.field)
    if found is None:
        raise RefusedRecord(
            "no_turns",
            f"There is no list of objects with `{dialect.key}`, neither as the record nor as one "
            "of its fields.",
        )
    return found


def trajectory_of(
    record: Any,
    raw_key: str | None,
    found: Turns,
    dialect: Dialect,
    *,
    given: Sequence[Turn] = (),
    thought_of: Callable[[str], str | None] | None = None,
) -> Trajectory:
    """The one trajectory of a record that holds a list of turns.

    Args:
        record: the whole record; its other fields become columns or other information.
        raw_key: its key in a dictionary file.
        found: its turns.
        dialect: how they are written.
        given: turns before the first that stand elsewhere in the record. Where there are none
            and the turns do not begin with the system's, a text `system` or `system_prompt` of
            the record is one.
        thought_of: gives the thought within an output, where the dialect found none.

    Raises:
        RefusedRecord: `unexpected_turn`, with its number and what is wrong with it; `no_steps`,
            where the agent never speaks.
    """
    fields = dict(record) if isinstance(record, dict) else {}
    layout: dict[str, Any] = {}
    if found.field is None:
        layout["is_list"] = True
    elif found.field != _PLAIN_FIELD:
        layout["field"] = found.field
    turns = dialect.read(found.turns)
    if not given and turns and turns[0].role != "system":
        for name in _SYSTEM_FIELDS:
            if isinstance(fields.get(name), str) and fields[name]:
                given = [Turn("system", fields.pop(name))]
                break
    if given:
        layout["given"] = len(given)
    turns, label = _with_observations(turns, dialect.label)
    if label != dialect.label:
        layout["label"] = label
    turns = [*given, *turns]
    conversation = _read(turns, thought_of)
    if conversation.inputs:
        layout["inputs"] = conversation.inputs
    plain = dialect.write(
        _turns_of(conversation.system_prompt, conversation.steps, conversation.inputs)[
            len(given) :
        ],
        label,
    )
    layout |= differences(plain, found.turns)
    return assemble(
        fields,
        raw_key,
        conversation.steps,
        steps_field=found.field,
        layout=layout,
        user_query=next((turn.content for turn in turns if turn.role == "user"), None),
        system_prompt=conversation.system_prompt,
    )


def to_messages(trajectory: Trajectory, dialect: Dialect) -> list[Any]:
    """The turns of the source, one by one, as they were."""
    layout = trajectory.layout
    if "source" in layout:
        return list(layout["source"])
    turns = plain_turns(trajectory)[layout.get("given", 0) :]
    messages = dialect.write(turns, layout.get("label", dialect.label))
    return restored(messages, layout)


def plain_turns(trajectory: Trajectory) -> list[Turn]:
    """The turns that a row stands for."""
    inputs = trajectory.layout.get("inputs", {})
    return _turns_of(trajectory.system_prompt, trajectory.steps, inputs)


def linked(turns: list[Turn]) -> list[Turn]:
    """The turns with a distinct id for every call, and with each result naming its call.

    For formats that ask for ids. A result answers the call of its id among those of the output
    before it; one without id the first call that none has answered. Others name none.
    """
    found: list[Turn] = []
    used: set[str] = set()
    open_calls: list[tuple[str | None, str]] = []  # the id in the source, and the one given
    for number, turn in enumerate(turns, start=1):
        if turn.role == "assistant":
            open_calls = []
            for place, call in enumerate(turn.calls, start=1):
                given = call.call_id
                if given is None or given in used:
                    given = f"call_{number}_{place}"
                used.add(given)
                open_calls.append((call.call_id, given))
            calls = [
                call._replace(call_id=given)
                for call, (_, given) in zip(turn.calls, open_calls, strict=True)
            ]
            turn = turn._replace(calls=calls)
        elif turn.role == "tool":
            answered = next(
                (each for each in open_calls if turn.call_id is None or each[0] == turn.call_id),
                None,
            )
            if answered is not None:
                open_calls.remove(answered)
            turn = turn._replace(call_id=answered and answered[1])
        found.append(turn)
    return found


def with_thought(thought: str, answer: str | None) -> str:
    """An output of a thought and the answer that the source gives apart from it."""
    return thought + _JOINT + answer if answer else thought


def without_thought(turn: Turn) -> tuple[str | None, str | None]:
    """The thought that stands in front of an output, and the rest; the reverse of the above."""
    thought, content = turn.thought, turn.content
    if thought and content is not None:
        if content == thought:
            return thought, None
        if content.startswith(thought + _JOINT):
            return thought, content[len(thought + _JOINT) :]
    return None, content


def _with_observations(turns: list[Turn], usual: str | None) -> tuple[list[Turn], str | None]:
    """The turns with the environment's recognised among the user's, and their label.

    None where there is none among them, "" where they have no label.
    """
    label = None
    for role, content, *_ in turns:
        if role in ("tool", "agent"):
            return turns, usual
        if label is None and role == "user" and content and content.startswith(OBSERVATION_LABELS):
            label = next(each for each in OBSERVATION_LABELS if content.startswith(each))
    found = list(turns)
    acted = spoken = has_tool = False
    for number, turn in enumerate(turns):
        role, content = turn[0], turn[1]
        if role == "assistant":
            spoken = True
            acted = label is None and _acts(content)
            continue
        if spoken and role == "user" and content is not None:
            if label is not None and content.startswith(label):
                found[number] = turn._replace(role="tool", content=content[len(label) :])
                has_tool = True
            elif acted:
                found[number] = turn._replace(role="tool")
                has_tool = True
        acted = False
    return (found, label or "") if has_tool else (turns, usual)


def _acts(output: str | None) -> bool:
    return output is not None and _ACTION.search("\n" + output) is not None


class _Conversation(NamedTuple):
    system_prompt: str | None
    steps: list[Step]
    inputs: dict[str, list[int]]


def _read(
    turns: list[Turn], thought_of: Callable[[str], str | None] | None = None
) -> _Conversation:
    system_prompt = turns[0].content if turns and turns[0].role == "system" else None
    inputs: dict[str, list[int]] = {}
    steps: list[Step] = []
    between: list[Turn] = []
    for turn in turns[1:] if system_prompt is not None else turns:
        role, content, thought, calls, _, _, is_trainable = turn
        if role != "assistant":
            between.append(turn)
            continue
        before = _split_off_input(between, steps) if steps else between
        if len(before) > 1 or (before and before[0].content is None):
            inputs[str(len(steps) + 1)] = [len(each.content or "") for each in before]
        if thought is None and thought_of and content:
            thought = thought_of(content)
        steps.append(Step(_joined(before), thought, content, list(calls), [], is_trainable))
        between = []
    if not steps:
        raise RefusedRecord(
            "no_steps",
            f"None of the {len(turns)} turns is the agent's (role `assistant`): there is nothing "
            "to learn from.",
        )
    _observe(between, steps)
    return _Conversation(system_prompt, steps, inputs)


def _split_off_input(between: list[Turn], steps: list[Step]) -> list[Turn]:
    """Give what belongs to the last step to it, and return the next step's input."""
    start = len(between)
    while start and between[start - 1].role in ("user", "system"):
        start -= 1
    _observe(between[:start], steps)
    return between[start:]


_SOURCES = {"tool": "environment", "user": "user", "agent": "agent", "system": "environment"}
_ROLES = {"environment": "tool", "user": "user", "agent": "agent"}


def _observe(turns: list[Turn], steps: list[Step]) -> None:
    observations = steps[-1].observations
    for role, content, _, _, call_id, name, _ in turns:
        observations.append(Observation(_SOURCES[role], name, call_id, content))


def _joined(turns: list[Turn]) -> str | None:
    if len(turns) == 1:
        return turns[0].content
    if not turns:
        return None
    texts = [turn.content for turn in turns]
    if all(text is None for text in texts):
        return None
    return _JOINT.join(text or "" for text in texts)


def _turns_of(
    system_prompt: str | None, steps: list[Step], inputs: Mapping[str, list[int]]
) -> list[Turn]:
    """The turns that the columns stand for."""
    turns: list[Turn] = []
    if system_prompt is not None:
        turns.append(Turn("system", system_prompt))
    for number, step in enumerate(steps, start=1):
        given, thought, output, calls, observations, is_trainable = step
        lengths = inputs.get(str(number)) if inputs else None
        if lengths is not None:
            start = 0
            for length in lengths:
                turns.append(Turn("user", (given or "")[start : start + length]))
                start += length + len(_JOINT)
        elif given is not None:
            turns.append(Turn("user", given))
        turns.append(Turn("assistant", output, thought, calls, None, None, is_trainable))
        for source, name, call_id, content in observations:
            turns.append(Turn(_ROLES[source], content, None, (), call_id, name))
    return turns


def differences(plain: list[Any], source: list[Any]) -> dict[str, Any]:
    """What `restored` needs to make `source` of `plain`: `turns`, `absent`, or `source`."""
    if len(plain) != len(source):
        return {"source": source}
    turns: dict[str, Any] = {}
    absent: list[list[str | int]] = []
    for number, (ours, theirs) in enumerate(zip(plain, source, strict=True)):
        if ours != theirs:
            difference = _difference(ours, theirs, [number], absent)
            if difference != {} or not isinstance(ours, dict):
                turns[str(number)] = difference
    found = {key: value for key, value in (("turns", turns), ("absent", absent)) if value}
    # An object in place of a list, say, cannot be told from the changes to a list's items.
    if found and restored(plain, found) != source:
        return {"source": source}
    return found


def restored(plain: list[Any], layout: Mapping[str, Any]) -> list[Any]:
    """What `plain` was compared with."""
    if "source" in layout:
        return list(layout["source"])
    messages = list(plain)
    for number, difference in layout.get("turns", {}).items():
        messages[int(number)] = _merge(messages[int(number)], difference)
    for number, *path in layout.get("absent", ()):
        messages[number] = _without(messages[number], path)
    return messages


def _difference(ours: Any, theirs: Any, path: list[Any], absent: list[list[Any]]) -> Any:
    """What `_merge` has to apply to `ours` to get `theirs`, once `absent` is removed."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        absent.extend([*path, key] for key in ours if key not in theirs)
        pairs = {key: (ours.get(key), theirs[key], key in ours) for key in theirs}
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = {
            str(at): (mine, other, True)
            for at, (mine, other) in enumerate(zip(ours, theirs, strict=True))
        }
    else:
        return theirs
    found = {}
    for key, (mine, other, is_there) in pairs.items():
        if is_there and mine == other:
            continue
        difference = _difference(mine, other, [*path, key], absent) if is_there else other
        # An empty difference of two of a kind says that all of it is in `absent`.
        if difference != {} or type(mine) is not type(other):
            found[key] = difference
    return found


def _merge(ours: Any, difference: Any) -> Any:
    if isinstance(ours, dict) and isinstance(difference, dict):
        return ours | {key: _merge(ours.get(key), value) for key, value in difference.items()}
    if isinstance(ours, list) and isinstance(difference, dict):
        return [
            _merge(item, difference[str(at)]) if str(at) in difference else item
            for at, item in enumerate(ours)
        ]
    return difference


def _without(node: Any, path: list[Any]) -> Any:
    key, *below = path
    if isinstance(node, list):
        place = int(key)
        return [*node[:place], _without(node[place], below), *node[place + 1 :]]
    if below:
        return node | {key: _without(node[key], below)}
    rest = dict(node)
    del rest[key]
    return rest


def unexpected(number: int, what: str) -> RefusedRecord:
    """The refusal of a turn (counted from 0) that is not understood."""
    return RefusedRecord("unexpected_turn", f"Turn {number + 1} {what}.")


def kind(value: Any) -> str:
    """What a value is, for a message."""
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"
