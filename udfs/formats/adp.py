"""`adp`: the Agent Data Protocol's standardised trajectories, a list of actions and observations.

    {"id": "t1", "details": {"dataset": "d"}, "content": [
       {"class_": "text_observation", "source": "user", "name": null, "content": "Where is it?"},
       {"class_": "api_action", "function": "track", "kwargs": {"n": 17},
        "description": "I look it up."},
       {"class_": "text_observation", "source": "environment", "name": null, "content": "Lyon"},
       {"class_": "message_action", "content": "It is in Lyon.", "description": null}]}

Source: Agent Data Protocol (Song et al. 2025), schema versions 1.0 to 1.2.

Every action is a step. An api_action is a call; a code_action is a call whose name is the language
and whose argument is `code`; a message_action is the agent's words. `reasoning_content` and
`description` are thoughts, and stand in the output before the words. A text_observation of a user
without a call's id is the user's, of the system the system's, any other is the environment's; a
json_observation is the same with an object, which is read as JSON text. Of a web_observation the
accessibility tree is the content, else the HTML, else the address; of an image_observation its
path; all else of them stays in the layout.

`to_record` writes a row in version 1.2; what that has no place for is in `details`
(`udfs.formats.slots`). Version 1.2 asks that what follows a call answers it and shares its id, and
knows no source `environment`: what answers no call is the user's there.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.slots import SLOT, with_carried
from udfs.formats.trajectory import LAYOUT, Format, Options, ToolCall, Trajectory
from udfs.formats.turns import (
    Dialect,
    Turn,
    Turns,
    kind,
    linked,
    plain_turns,
    to_messages,
    trajectory_of,
    unexpected,
    with_thought,
    without_thought,
)

_CONTENT, _CLASS = "content", "class_"
_ACTIONS = ("api_action", "code_action", "message_action")
_OBSERVATIONS = ("text_observation", "json_observation", "web_observation", "image_observation")
_CLASSES = {*_ACTIONS, *_OBSERVATIONS}
_VERSION = "1.2.0"
# Sources that are no tool and no agent; the first drafts said `user_msg`.
_TOLD_BY = {"user": "user", "user_msg": "user", "system": "system"}
_CURRENT_SOURCES = {
    "user": "user",
    "system": "system",
    "environment": "user",
    "agent": "assistant",
}


def matches(record: Any) -> float:
    """1.0 for a content whose first item has a class of ADP's."""
    return 1.0 if _items(record) is not None else 0.0


def near(record: Any) -> str | None:
    """Items of an unknown class."""
    items = record.get(_CONTENT) if isinstance(record, dict) else None
    if isinstance(items, list) and items and isinstance(items[0], dict) and _CLASS in items[0]:
        return f"its first item is of class {items[0][_CLASS]!r:.60}"
    return None


def _items(record: Any) -> list[Any] | None:
    items = record.get(_CONTENT) if isinstance(record, dict) else None
    if isinstance(items, list) and items and isinstance(items[0], dict):
        what = items[0].get(_CLASS)
        if isinstance(what, str) and what in _CLASSES:
            return items
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory.

    Raises:
        RefusedRecord: `unexpected_record`, `unexpected_turn`, `no_steps`, `unexpected_slot`.
    """
    items = _items(record)
    if items is None:
        raise RefusedRecord(
            "unexpected_record",
            f"`content` is no list of objects whose `{_CLASS}` is one of "
            f"{', '.join(sorted(_CLASSES))}.",
        )
    rest = dict(record)
    if rest.get("schema_version") == _VERSION:
        del rest["schema_version"]
    slot = None
    details = rest.get("details")
    if isinstance(details, dict):
        details = dict(rest.pop("details"))
        slot = details.pop(SLOT, None)
        for name in ("model_name", "tools"):
            if name in details and name not in rest:
                rest[name] = details.pop(name)
        if "score" in details and "reward" not in rest:
            rest["reward"] = details.pop("score")
        if isinstance(details.get("other_information"), dict):
            rest = details.pop("other_information") | rest
        if details:
            rest["details"] = details
    trajectory = trajectory_of(rest, raw_key, Turns(_CONTENT, items), DIALECT)
    return [with_carried(trajectory, slot, to_source)]


def _read(items: list[Any]) -> list[Turn]:
    return [_turn(number, item) for number, item in enumerate(items)]


def _turn(number: int, item: Any) -> Turn:
    what = item.get(_CLASS) if isinstance(item, dict) else None
    if not (isinstance(what, str) and what in _CLASSES):
        raise unexpected(number, f"has class {what!r:.60}; known are {', '.join(sorted(_CLASSES))}")
    return _action(number, what, item) if what in _ACTIONS else _observation(number, what, item)


def _action(number: int, what: str, item: dict[str, Any]) -> Turn:
    thoughts = [
        item[name] for name in ("reasoning_content", "description") if _is_said(item.get(name))
    ]
    thought = "\n\n".join(thoughts) or None
    content = item.get(_CONTENT)
    calls = []
    if what == "message_action":
        if not isinstance(content, str):
            raise unexpected(number, f"is a message whose content is {kind(content)}")
    else:
        name = item.get("function" if what == "api_action" else "language")
        call_id = item.get("tool_call_id")
        if not isinstance(name, str) or not isinstance(call_id, str | None):
            raise unexpected(number, f"is an action without a name: {item!r:.120}")
        arguments = item.get("kwargs") if what == "api_action" else {"code": content}
        calls = [ToolCall(call_id, name, to_json(arguments))]
        content = None
    if thought is not None:
        content = with_thought(thought, content)
    return Turn("assistant", content, thought, calls)


def _observation(number: int, what: str, item: dict[str, Any]) -> Turn:
    names = ("axtree", "html", "url") if what == "web_observation" else (_CONTENT,)
    content = next((item[name] for name in names if _is_said(item.get(name))), None)
    if what == "json_observation":
        content = to_json(item.get(_CONTENT))
    elif content is None and what == "text_observation":
        content = item.get(_CONTENT)
        if not isinstance(content, str | None):
            raise unexpected(number, f"is a text whose content is {kind(content)}")
    call_id, name, source = item.get("tool_call_id"), item.get("name"), item.get("source")
    role = "tool"
    is_told = what in ("text_observation", "json_observation")
    if is_told and call_id is None and str(source) in _TOLD_BY:
        role = _TOLD_BY[str(source)]
    elif is_told and source in ("agent", "assistant"):
        role = "agent"
    return Turn(
        role,
        content,
        call_id=call_id if isinstance(call_id, str) else None,
        name=name if isinstance(name, str) else None,
    )


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    items: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role != "assistant":
            items.append(_text_observation(turn, label))
        elif turn.calls:
            description = turn.content
            for call in turn.calls:
                items.append(_api_action(call, description))
                description = None
        else:
            thought, content = without_thought(turn)
            items.append(
                {_CLASS: "message_action", _CONTENT: content or "", "description": thought}
            )
    return items


def _text_observation(turn: Turn, label: str | None) -> dict[str, Any]:
    source, content = {"tool": "environment"}.get(turn.role, turn.role), turn.content or ""
    if turn.role == "tool" and label is not None:
        source, content = "user", label + content
    item = {_CLASS: "text_observation", "source": source, "name": turn.name, _CONTENT: content}
    return item | ({"tool_call_id": turn.call_id} if turn.call_id is not None else {})


def _api_action(call: ToolCall, description: str | None) -> dict[str, Any]:
    try:
        arguments = from_json((call.arguments or "{}").encode())
    except RefusedRecord:
        arguments = call.arguments
    if not isinstance(arguments, dict):
        arguments = {"value": arguments}
    item = {
        _CLASS: "api_action",
        "function": call.name or "",
        "kwargs": arguments,
        "description": description,
    }
    return item | ({"tool_call_id": call.call_id} if call.call_id is not None else {})


DIALECT = Dialect(read=_read, write=_write, field=_CONTENT, key=_CLASS)


def to_source(trajectory: Trajectory) -> list[Any]:
    """The list of actions and observations."""
    return to_messages(trajectory, DIALECT)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """The row as an ADP trajectory, without what ADP has no place for."""
    details: dict[str, Any] = {}
    if trajectory.model_name is not None:
        details["model_name"] = trajectory.model_name
    if trajectory.tools is not None:
        details["tools"] = from_json(trajectory.tools.encode())
    if trajectory.score is not None:
        details["score"] = trajectory.score
    other = {key: value for key, value in trajectory.other_information.items() if key != LAYOUT}
    other.pop("schema_version", None)
    if other:
        details["other_information"] = other
    turns = linked(plain_turns(trajectory))
    answered = {turn.call_id for turn in turns if turn.role == "tool"}
    items = _write([_with_answered_last(turn, answered) for turn in turns], None)
    for item, after in zip(items, [*items[1:], None], strict=True):
        call_id = item.get("tool_call_id")
        if item[_CLASS] == "text_observation":
            del item["name"]
            item["source"] = _CURRENT_SOURCES[item["source"]]
        elif call_id is not None and call_id not in answered:
            if after is not None and after[_CLASS] == "text_observation":
                after["tool_call_id"] = call_id
            else:
                del item["tool_call_id"]
    return {
        "schema_version": _VERSION,
        "id": trajectory.task_id or "",
        _CONTENT: items,
        "details": details,
    }


def _with_answered_last(turn: Turn, answered: set[str | None]) -> Turn:
    """The turn with a call last that was answered, as what follows a call has to answer it."""
    calls = sorted(turn.calls, key=lambda call: call.call_id in answered)
    return turn._replace(calls=calls)


FORMAT = Format(
    name="adp",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({_CONTENT, _CLASS}),
)
