"""Rows of the layouts: pure functions from an Arrow table to what a trainer's reader expects.

Each takes the rows that the plan, the trajectories or the pairs give (`orchestration.export.source`
says which columns) and returns the layout's rows, an Arrow table for Parquet or a list of records
for JSON lines, and what it had to change on the way, counted. What is counted stands in the
manifest. Where each target's shape was read: docs/exports.md.

A *message* is one of `conversations.messages`; a *flag* says of a message whether it is learned
from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from udfs.errors import ExportError, RefusedRecord
from udfs.formats.interchange import to_record
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.trajectory import ToolCall
from udfs.formats.turns import Turn, linked

Message = Mapping[str, Any]
Record = dict[str, Any]
Noted = Mapping[str, int]

# What stands around calls beside text in a `function_call` of LLaMA-Factory's, and between turns
# that are one there.
_CALL_MARKS = ("<tool_call>", "</tool_call>")
_JOINT = "\n\n"

SFT_COLUMNS = (
    "position",
    "epoch",
    "trajectory_id",
    "source",
    "messages",
    "tools",
    "loss_flags",
    "weight",
)
_PLACE = ("position", "epoch", "trajectory_id", "source")
_PROMPT_CHOSEN = pa.schema(
    [
        ("position", pa.int64()),
        ("epoch", pa.int32()),
        ("trajectory_id", pa.string()),
        ("source", pa.string()),
        ("step_id", pa.int32()),
        ("prompt", pa.string()),
        ("chosen", pa.string()),
        ("tools", pa.string()),
        ("weight", pa.float64()),
    ]
)
PAIR_COLUMNS = (
    "position",
    "pair_id",
    "level",
    "task_key",
    "source",
    "chosen_id",
    "rejected_id",
    "margin_on",
    "chosen_value",
    "rejected_value",
    "weight",
)


# ------------------------------------------------------------------------------------------------
# Supervised rows
# ------------------------------------------------------------------------------------------------


def sft(rows: pa.Table) -> tuple[pa.Table, Noted]:
    """The rows as they are: messages with tools, a flag for each message, a weight."""
    return rows.select(SFT_COLUMNS), {}


def axolotl(rows: pa.Table) -> tuple[pa.Table, Noted]:
    """Messages that say themselves whether they are learned from, in `train`.

    Arguments that are no JSON become a JSON text of themselves, since axolotl parses them all.
    """
    messages = rows["messages"].combine_chunks()
    items, noted = _with_json_arguments(messages.flatten())
    names = [field.name for field in items.type]
    children = [*items.flatten(), rows["loss_flags"].combine_chunks().flatten()]
    said = pa.StructArray.from_arrays(children, [*names, "train"])
    told = pa.ListArray.from_arrays(_offsets(messages), said)
    columns = {
        name: told if name == "messages" else rows[name]
        for name in SFT_COLUMNS
        if name != "loss_flags"
    }
    return pa.table(columns), noted


def openai(rows: pa.Table) -> tuple[list[Record], Noted]:
    """Fine-tuning records: `messages`, in which an answer has weight 1 or 0, and `tools`.

    Every call has an id of its own, and every turn of a tool answers a call; one that answers none
    is the user's turn, as OpenAI knows no other.
    """
    noted: Counter[str] = Counter()
    records = []
    for messages, flags, tools in _rows_of(rows, "messages", "loss_flags", "tools"):
        turns = linked([_turn(message) for message in messages])
        noted["tool_turns_told_by_the_user"] += sum(
            turn.role == "tool" and turn.call_id is None for turn in turns
        )
        record: Record = {
            "messages": [
                _openai_message(turn, is_learned)
                for turn, is_learned in zip(turns, flags, strict=True)
            ]
        }
        if tools is not None:
            record["tools"] = [_wrapped(tool) for tool in from_json(tools.encode())]
        records.append(record)
    return records, +noted


def sharegpt(rows: pa.Table) -> tuple[list[Record], Noted]:
    """LLaMA-Factory's records: `conversations` of from/value turns, `system`, `tools` as text.

    There the agent's turns and all others alternate, the agent's last. So turns between two of the
    agent's are one, with an empty line between; where there is none, an empty one stands there;
    and what comes after the agent's last is left out, as nothing learns from it. `loss` says
    whether a turn is learned from, as some data sets have it; LLaMA-Factory does not read it.
    """
    noted: Counter[str] = Counter()
    records = []
    names = (*_PLACE, "messages", "loss_flags", "tools", "weight")
    for position, epoch, trajectory_id, source, messages, flags, tools, weight in _rows_of(
        rows, *names
    ):
        system, turns = _alternating(messages, flags, noted)
        records.append(
            {
                "conversations": turns,
                "system": system,
                "tools": "" if tools is None else _bare_tools(tools),
                "position": position,
                "epoch": epoch,
                "trajectory_id": trajectory_id,
                "source": source,
                "weight": weight,
            }
        )
    return records, +noted


def prompt_chosen(rows: pa.Table) -> tuple[pa.Table, Noted]:
    """A row for every output that is learned from: all that came before it, and the output.

    FIG. 9A's rows, `prompt` and `chosen` as texts. The prompt is ¶25's history: the system prompt,
    then every input, `Action: ` output and `Observation: ` text so far, a line each. Calls stand
    behind the output's text, as a JSON list.
    """
    found: list[tuple[Any, ...]] = []
    names = (*_PLACE, "messages", "message_steps", "loss_flags", "tools", "weight")
    for *place, messages, steps, flags, tools, weight in _rows_of(rows, *names):
        said: list[str] = []
        for message, step_id, is_learned in zip(messages, steps, flags, strict=True):
            text = _spoken(message)
            if is_learned:
                found.append((*place, step_id, "\n".join(said), text, tools, weight))
            role = message["role"]
            label = {"assistant": "Action: ", "tool": "Observation: "}.get(role, "")
            said.append(label + text)
    columns = zip(*found, strict=True) if found else [()] * len(_PROMPT_CHOSEN)
    arrays = [
        pa.array(column, field.type) for column, field in zip(columns, _PROMPT_CHOSEN, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=_PROMPT_CHOSEN), {}


# ------------------------------------------------------------------------------------------------
# Rows of pairs
# ------------------------------------------------------------------------------------------------


def dpo(rows: pa.Table) -> tuple[pa.Table, Noted]:
    """Preference rows with an explicit prompt, as messages: TRL's, and those of `train.dpo`.

    The prompt is the chosen run's, up to the first output in which the two differ; each
    continuation begins with that output and ends with its last. `*_loss_flags` has one flag per
    message of a continuation: true where it is the agent's, and, if the recipe learns from the run,
    where it does from the message.

    Raises:
        ExportError: a pair has a continuation without a message.
    """
    chosen, rejected = _bounds(rows, "chosen"), _bounds(rows, "rejected")
    prompts = _parts(rows["chosen_messages"], [(0, start) for start, _ in chosen])
    others = _parts(rows["rejected_messages"], [(0, start) for start, _ in rejected])
    parts = {
        "prompt": prompts,
        "chosen": _parts(rows["chosen_messages"], chosen),
        "rejected": _parts(rows["rejected_messages"], rejected),
        "tools": rows["tools"],
        "chosen_loss_flags": _parts(rows["chosen_flags"], chosen),
        "rejected_loss_flags": _parts(rows["rejected_flags"], rejected),
    }
    differ = sum(prompts[i] != others[i] for i in range(rows.num_rows))
    noted = {"pairs_whose_prompts_differ": differ} if differ else {}
    return pa.table({name: rows[name] for name in PAIR_COLUMNS} | parts), noted


def reward(rows: pa.Table) -> tuple[pa.Table, Noted]:
    """TRL's preference rows with an implicit prompt: both runs, from the beginning to the last
    output.

    Raises:
        ExportError: a pair has a continuation without a message.
    """
    parts = {
        side: _parts(rows[f"{side}_messages"], [(0, end) for _, end in _bounds(rows, side)])
        for side in ("chosen", "rejected")
    }
    return pa.table(
        {name: rows[name] for name in PAIR_COLUMNS} | parts | {"tools": rows["tools"]}
    ), {}


def _bounds(rows: pa.Table, side: str) -> list[tuple[int, int]]:
    """Of each pair, where one side's continuation begins and ends among its messages.

    It begins with the first output after the common steps; should the step there have none, with
    the step after. It ends with its last output: behind that, some environments say whether the run
    was right, which a reward model would learn to read.
    """
    bounds = []
    names = ("pair_id", "prefix_steps", f"{side}_last_step", f"{side}_steps")
    for (pair_id, prefix, last, steps), roles in zip(
        _rows_of(rows, *names), _roles(rows, side), strict=True
    ):
        first = prefix + 1
        start = next(
            (
                place
                for place, (step, role) in enumerate(zip(steps, roles, strict=True))
                if step is not None and (step > first or (step == first and role == "assistant"))
            ),
            len(steps),
        )
        end = 1 + max(
            (
                place
                for place in range(start, len(steps))
                if roles[place] == "assistant" and steps[place] <= last
            ),
            default=start - 1,
        )
        if start == end:
            raise ExportError(
                f"Pair {pair_id}: its {side} continuation, steps {first} to {last}, has no "
                "message. Run `dbt build --full-refresh --select preference_pairs`, then export "
                "again."
            )
        bounds.append((start, end))
    return bounds


def _roles(rows: pa.Table, side: str) -> list[list[str]]:
    messages = rows[f"{side}_messages"].combine_chunks()
    roles = messages.flatten().field("role").to_pylist()
    return [roles[start:end] for start, end in pairwise(_offsets(messages).to_pylist())]


def _parts(column: pa.ChunkedArray, bounds: Sequence[tuple[int, int]]) -> pa.ListArray:
    """Of each list in a column, the items from a place to another."""
    lists = column.combine_chunks()
    begins = _offsets(lists).to_numpy()[:-1]
    taken = [
        np.arange(begin + start, begin + end)
        for begin, (start, end) in zip(begins, bounds, strict=True)
    ]
    items = lists.flatten().take(pa.array(np.concatenate(taken or [np.arange(0)])))
    lengths = accumulate((end - start for start, end in bounds), initial=0)
    return pa.ListArray.from_arrays(pa.array(lengths, pa.int32()), items)


# ------------------------------------------------------------------------------------------------
# Trajectories in the formats that others read
# ------------------------------------------------------------------------------------------------


def interchange(name: str, rows: pa.Table) -> tuple[list[Record], Noted]:
    """Trajectories as records of an interchange format (`udfs.formats.interchange`).

    A step that the recipe does not learn from is masked in the record, as if its source had done
    so: the format's own reader here finds that in the record's slot.
    """
    trajectories = rows.to_pylist()
    for row in trajectories:
        for step in row["steps"]:
            if says_something(step) and step["step_id"] not in row["trained_steps"]:
                step["is_trainable"] = False
    return [to_record(name, row) for row in trajectories], {}


def says_something(step: Mapping[str, Any]) -> bool:
    """Whether the agent says something in a step: by text, a call, or a response of its own."""
    return bool(
        step["tool_calls"]
        or (step["output"] or "").strip()
        or any(seen["source"] == "agent" for seen in step["observations"])
    )


# ------------------------------------------------------------------------------------------------
# Messages
# ------------------------------------------------------------------------------------------------


def _spoken(message: Message) -> str:
    """What a message says, as one text."""
    parts = [message["content"]] if message["content"] else []
    if message["tool_calls"]:
        parts.append(to_json([_named(call) for call in message["tool_calls"]]))
    return "\n".join(parts)


def _named(call: Mapping[str, Any]) -> Record:
    """A call as name and arguments; these are text where they are no JSON."""
    function = call["function"]
    return {"name": function["name"], "arguments": _value(function["arguments"])}


def _value(arguments: str | None) -> Any:
    try:
        return from_json((arguments or "").encode())
    except RefusedRecord:
        return arguments


def _turn(message: Message) -> Turn:
    calls = [
        ToolCall(call["id"], call["function"]["name"], call["function"]["arguments"])
        for call in message["tool_calls"] or ()
    ]
    return Turn(
        message["role"],
        message["content"],
        calls=calls,
        call_id=message["tool_call_id"],
        name=message["name"],
    )


def _openai_message(turn: Turn, is_learned: bool) -> Record:
    if turn.role == "assistant":
        message: Record = {"role": "assistant", "content": turn.content}
        if turn.calls:
            message["tool_calls"] = [
                {
                    "id": call.call_id,
                    "type": "function",
                    "function": {"name": call.name or "", "arguments": call.arguments or "{}"},
                }
                for call in turn.calls
            ]
        return message | {"weight": int(is_learned)}
    if turn.role == "tool" and turn.call_id is not None:
        return {"role": "tool", "tool_call_id": turn.call_id, "content": turn.content or ""}
    role = "user" if turn.role == "tool" else turn.role
    return {"role": role, "content": turn.content or ""}


def _alternating(
    messages: Sequence[Message], flags: Sequence[bool], noted: Counter[str]
) -> tuple[str, list[Record]]:
    """A conversation's system prompt and its turns as LLaMA-Factory wants them."""
    system = ""
    turns: list[Record] = []
    for message, is_learned in zip(messages, flags, strict=True):
        role, is_answer_next = message["role"], len(turns) % 2 == 1
        if role == "system" and not turns:
            system = message["content"] or ""
        elif role == "assistant":
            if not is_answer_next:
                source = "observation" if turns else "human"
                turns.append({"from": source, "value": "", "loss": False})
                noted["empty_turns"] += 1
            turns.append(_sharegpt_answer(message, is_learned, noted))
        else:
            source, text = ("observation" if role == "tool" else "human"), message["content"] or ""
            if not is_answer_next:
                turns.append({"from": source, "value": text, "loss": False})
                continue
            before = turns[-1]
            before["value"] += _JOINT + text
            if source == "human":
                before["from"] = source
            noted["joined_turns"] += 1
    if len(turns) % 2:
        turns.pop()
        noted["turns_after_the_last_output"] += 1
    return system, turns


def _sharegpt_answer(message: Message, is_learned: bool, noted: Counter[str]) -> Record:
    text = message["content"] or ""
    if not message["tool_calls"]:
        return {"from": "gpt", "value": text, "loss": is_learned}
    calls = [_named(call) for call in message["tool_calls"]]
    value = to_json(calls if len(calls) > 1 else calls[0])
    if text:
        value = text + value.join(_CALL_MARKS)
        noted["calls_beside_text"] += 1
    return {"from": "function_call", "value": value, "loss": is_learned}


def _with_json_arguments(messages: pa.StructArray) -> tuple[pa.StructArray, Noted]:
    """Messages whose calls have arguments that a JSON reader accepts."""
    calls = messages.field("tool_calls")
    function = calls.flatten().field("function")
    texts = function.field("arguments").to_pylist()
    mended = [text if text is None or _is_json(text) else to_json(text) for text in texts]
    count = sum(new is not old for new, old in zip(mended, texts, strict=True))
    if not count:
        return messages, {}
    functions = pa.StructArray.from_arrays(
        [function.field("name"), pa.array(mended, pa.string())], ["name", "arguments"]
    )
    flat = calls.flatten()
    items = pa.StructArray.from_arrays(
        [flat.field("id"), flat.field("type"), functions], ["id", "type", "function"]
    )
    lists = pa.ListArray.from_arrays(_offsets(calls), items, mask=calls.is_null())
    names = [field.name for field in messages.type]
    children = [lists if name == "tool_calls" else messages.field(name) for name in names]
    return pa.StructArray.from_arrays(children, names), {"arguments_that_are_no_json": count}


def _is_json(text: str) -> bool:
    try:
        from_json(text.encode())
    except RefusedRecord:
        return False
    return True


def _wrapped(tool: Any) -> Any:
    """A tool as OpenAI has it: `{"type": "function", "function": …}`."""
    is_bare = isinstance(tool, dict) and "name" in tool and "function" not in tool
    return {"type": "function", "function": tool} if is_bare else tool


def _bare_tools(text: str) -> str:
    """The JSON text of tools without what OpenAI puts around each function."""
    tools = [
        tool["function"]
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict)
        else tool
        for tool in from_json(text.encode())
    ]
    return to_json(tools)


# ------------------------------------------------------------------------------------------------
# Arrow as Python
# ------------------------------------------------------------------------------------------------


def _rows_of(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(rows[name].to_pylist() for name in names), strict=True)


def _offsets(lists: pa.ListArray) -> pa.Array:
    """Where each list begins in `lists.flatten()`, which leaves out what no list holds."""
    lengths = lists.value_lengths().fill_null(0).to_numpy()
    return pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
