"""`chat`: a list of role/content turns, with OpenAI's tool calls where there are any.

    {"id": "order-17", "resolved": true, "tools": [{"type": "function", "function": …}],
     "messages": [
       {"role": "system", "content": "You answer with the help of tools."},
       {"role": "user", "content": "Where is my parcel?"},
       {"role": "assistant", "content": null, "tool_calls": [{"id": "call_1", "type": "function",
         "function": {"name": "track", "arguments": "{\\"parcel\\": 17}"}}]},
       {"role": "tool", "tool_call_id": "call_1", "content": "in Lyon"},
       {"role": "assistant", "content": "It is in Lyon."}]}

Source: OpenAI's chat completions and fine-tuning format, as OpenHands, SWE-smith, AgentTuning,
CodeActInstruct, Lumos and many others publish it. The turns may stand in any field, or be the
record. How turns become steps: `udfs.formats.turns`.

Content in parts is the text of its parts, one a line; for an image part the line is `<image>`,
and the part with its reference stays in the layout. `reasoning_content` is a thought.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.slots import SLOT, with_carried
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory
from udfs.formats.turns import (
    Dialect,
    Turn,
    find_turns,
    kind,
    linked,
    plain_turns,
    require_turns,
    to_messages,
    trajectory_of,
    unexpected,
    with_thought,
    without_thought,
)

# What the roles of the field's data sets mean.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "environment": "tool",
}
_THOUGHTS = ("reasoning_content", "reasoning")
_TEXT_PARTS = {"text", "input_text", "output_text"}
_IMAGE_PARTS = {"image_url", "input_image", "image"}
_IMAGE = "<image>"


def matches(record: Any) -> float:
    """0.9 with tool calls or tool turns, 0.75 for any other list of turns with roles."""
    try:
        found = find_turns(record)
    except RefusedRecord:
        return 0.0
    if found is None or _is_one_step_of_many(record, found.turns):
        return 0.0
    for turn in found.turns:
        if isinstance(turn, dict) and (
            turn.get("role") == "tool" or turn.get("tool_calls") or turn.get("function_call")
        ):
            return 0.9
    return 0.75


def near(record: Any) -> str | None:
    """Lists of objects that are no turns, or turns that are no run."""
    try:
        found = find_turns(record)
    except RefusedRecord as refused:
        return refused.detail.rstrip(".")
    if found is not None:
        return (
            f"`{found.field}` holds one exchange, and `prompt` and `output` repeat it: the record "
            "is one step of a longer run, which has to be put together from several records"
        )
    fields = record if isinstance(record, dict) else {"the record": record}
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            keys = ", ".join(list(value[0])[:8])
            return f"`{name:.60}` is a list of objects without `role`; they have {keys:.200}"
    return None


def _is_one_step_of_many(record: Any, turns: list[Any]) -> bool:
    """Whether `output` is the only answer in the turns again, beside the `prompt` that led to it.

    Data made for training on single steps looks so (NNetNav): the rows of one run share an id,
    and each holds the whole prompt of its step. As a conversation of its own such a row would
    claim to be a run that began and ended there.
    """
    if not (isinstance(record, dict) and "prompt" in record and isinstance(turns[-1], dict)):
        return False
    prompt, output, answer = (record.get("prompt"), record.get("output"), turns[-1].get("content"))
    if not (isinstance(prompt, str) and isinstance(output, str) and isinstance(answer, str)):
        return False
    answers = [turn for turn in turns if isinstance(turn, dict) and turn.get("role") == "assistant"]
    return len(answers) == 1 and answers[0] is turns[-1] and answer.strip() in output


def _read(turns: list[Any]) -> list[Turn]:
    return [_turn(number, raw) for number, raw in enumerate(turns)]


def _turn(number: int, raw: Any) -> Turn:
    if not isinstance(raw, dict):
        raise unexpected(number, f"is {kind(raw)}, not an object")
    role = raw.get("role")
    known = ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        raise unexpected(number, f"has role {role!r:.60}; known are {', '.join(ROLES)}")
    content = raw.get("content")
    if isinstance(content, str) and len(raw) == 2:
        return Turn(known, content)  # as most are: nothing but role and content
    if not isinstance(content, str):
        content = _content_of_parts(number, raw)
    if known == "assistant":
        thought = next((raw[name] for name in _THOUGHTS if _is_said(raw.get(name))), None)
        return Turn(
            known,
            content if thought is None else with_thought(thought, content),
            thought,
            _tool_calls(number, raw),
            # OpenAI's fine-tuning format masks an answer by weight 0.
            is_trainable=raw.get("weight") != 0,
        )
    call_id, name = raw.get("tool_call_id"), raw.get("name")
    if call_id is None and isinstance(ids := raw.get("tool_call_ids"), list) and len(ids) == 1:
        call_id = ids[0]  # SWE-agent's history
    return Turn(
        known,
        content,
        call_id=call_id if isinstance(call_id, str) else None,
        name=name if isinstance(name, str) else None,
    )


def _is_said(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _content_of_parts(number: int, turn: dict[str, Any]) -> str | None:
    """The text of a turn whose content is null or OpenAI's list of parts."""
    content = turn.get("content")
    if content is None:
        if "content" in turn or turn.get("tool_calls") or turn.get("function_call"):
            return None
        raise unexpected(number, f"has neither content nor calls, but {', '.join(turn):.200}")
    if not isinstance(content, list):
        raise unexpected(number, f"has content that is {kind(content)}, not text")
    return text_of_parts(number, content)


def text_of_parts(number: int, parts: list[Any]) -> str:
    """The text of content in parts, a line or more a part.

    Raises:
        RefusedRecord: `unexpected_turn`, for a part that is neither text nor an image.
    """
    texts = []
    for part in parts:
        if not isinstance(part, dict):
            raise unexpected(number, f"has a content part that is {kind(part)}, not an object")
        what = part.get("type")
        if not isinstance(what, str):
            raise unexpected(number, f"has a content part whose type is {kind(what)}")
        if what in _IMAGE_PARTS:
            texts.append(_IMAGE)
        elif what in _TEXT_PARTS:
            if not isinstance(part.get("text"), str):
                raise unexpected(number, "has a text part without text")
            texts.append(part["text"])
        else:
            raise unexpected(
                number,
                f"has a content part of type {what!r:.60}; text and images are read so far",
            )
    return "\n".join(texts)


def _tool_calls(number: int, turn: dict[str, Any]) -> list[ToolCall]:
    """OpenAI's `tool_calls`, or its older `function_call` as a call without id.

    A call may have its name and arguments in `function`, or directly; arguments that are not
    text are written as JSON.
    """
    calls, legacy = turn.get("tool_calls"), turn.get("function_call")
    if not calls:
        return [tool_call(number, legacy)] if legacy else []
    if not isinstance(calls, list):
        raise unexpected(number, f"has `tool_calls` that are {kind(calls)}, not a list")
    return [tool_call(number, call) for call in calls]


def tool_call(number: int, call: Any) -> ToolCall:
    """One call of OpenAI's; `number` is the turn's, for the refusal `unexpected_turn`."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if isinstance(function, dict):
        call_id, name = call.get("id"), function.get("name")
        arguments = function.get("arguments")
        if _is_text(call_id) and _is_text(name) and not (name is None and arguments is None):
            if not _is_text(arguments):
                arguments = to_json(arguments)
            return ToolCall(call_id, name, arguments)
    raise unexpected(
        number,
        "has a tool call that is not an object with `id`, `function.name` and "
        f"`function.arguments`: {call!r:.120}",
    )


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    return [_message(turn, label) for turn in turns]


def _message(turn: Turn, label: str | None) -> dict[str, Any]:
    role, content, _, _, call_id, name, _ = turn
    if role == "assistant":
        return _answer(turn)
    if role == "agent":
        role = "tool"
    if role == "tool" and label is not None:
        role, content = "user", label + (content or "")
    message = {"role": role, "content": content}
    if call_id is not None:
        message["tool_call_id"] = call_id
    if name is not None:
        message["name"] = name
    return message


def _answer(turn: Turn) -> dict[str, Any]:
    if turn.thought is None and not turn.calls:
        return {"role": "assistant", "content": turn.content}
    thought, content = without_thought(turn)
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if thought is not None:
        message["reasoning_content"] = thought
    calls = [
        {
            "id": call.call_id,
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for call in turn.calls
    ]
    if len(calls) == 1 and calls[0]["id"] is None:
        message["function_call"] = calls[0]["function"]
    elif calls:
        message["tool_calls"] = calls
    return message


DIALECT = Dialect(read=_read, write=_write)


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for every turn of the agent.

    Raises:
        RefusedRecord: as `require_turns` and `trajectory_of` do.
    """
    slot = None
    if isinstance(record, dict) and SLOT in record:
        record = dict(record)
        slot = record.pop(SLOT)
    trajectory = trajectory_of(record, raw_key, require_turns(record, DIALECT), DIALECT)
    return [with_carried(trajectory, slot, to_source)]


def to_source(trajectory: Trajectory) -> list[Any]:
    """The list of turns."""
    return to_messages(trajectory, DIALECT)


def to_record(trajectory: Trajectory) -> dict[str, Any]:
    """The row as messages and tools; other information is left to the slot.

    Every call has an id, and every turn of a tool answers a call. What the environment shows
    otherwise is the user's turn, as OpenAI knows no other.
    """
    turns = [
        turn._replace(role="user")
        if turn.role in ("tool", "agent") and turn.call_id is None
        else turn
        for turn in linked(plain_turns(trajectory))
    ]
    columns = {
        "task_id": trajectory.task_id,
        "model_name": trajectory.model_name,
        "reward": trajectory.score,
        "tools": None if trajectory.tools is None else from_json(trajectory.tools.encode()),
    }
    said = {name: value for name, value in columns.items() if value is not None}
    return {"messages": _write(turns, None)} | said


FORMAT = Format(
    name="chat",
    version="3",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({"role"}),
)
