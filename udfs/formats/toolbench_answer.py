"""`toolbench_answer`: ToolBench's converted answers, messages nested in one another.

    {"query": "Where is my parcel?", "available_tools": [{"name": "track", …}],
     "answer": {"method": "DFS", "total_steps": 2, "final_answer": "In Lyon.", "answer_details": [
       {"role": "user", "message": "Where is my parcel?", "next": [
         {"role": "tool", "message": {"name": "track", "arguments": "{}", "response": "in Lyon"},
          "next": []}]}]}}

Source: ToolBench (Qin et al. 2023), what its evaluation makes of search trees and chains.

Every path through `next` is a trajectory; `branch` in `other_information` gives each its place
(`udfs.formats.branches`). A tool's message is a call with its response, the agent's message right
before it the words it came with; the message may be an object, or one printed as JSON or by
Python. ToolBench's own conversion prints it by Python and may cut it after 100 characters
(`toolbench/tooleval/evaluation/dataclass.py`): then the call has its name, its arguments if they
are whole, and the message as it is for a response. Whether the answer was right is not in the
record, so there is no score.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.branches import paths, with_branches
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory
from udfs.formats.turns import Dialect, Turn, Turns, kind, to_messages, trajectory_of, unexpected

_PATH = "path"
_DETAILS = "answer_details"
# The beginning of a call that Python printed.
_TEXT = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PRINTED = re.compile(rf"\{{'name': {_TEXT}(?:, 'arguments': {_TEXT})?")


def matches(record: Any) -> float:
    return 1.0 if _details(record) else 0.0


def _details(record: Any) -> list[Any]:
    answer = record.get("answer") if isinstance(record, dict) else None
    details = answer.get(_DETAILS) if isinstance(answer, dict) else None
    if isinstance(details, list) and details:
        first = details[0]
        if isinstance(first, dict) and "role" in first and "next" in first:
            return details
    return []


def near(record: Any) -> str | None:
    answer = record.get("answer") if isinstance(record, dict) else None
    if isinstance(answer, dict) and _DETAILS in answer:
        return f"`answer.{_DETAILS}` is no list of objects with `role` and `next`"
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    details = _details(record)
    if not details:
        raise RefusedRecord("unexpected_tree", f"`answer.{_DETAILS}` is no tree of messages.")
    rest = dict(record)
    answer = dict(rest.pop("answer"))
    answer.pop(_DETAILS)
    common = {"question": rest.pop("query", None), "tools": rest.pop("available_tools", None)}
    common = {name: value for name, value in common.items() if value is not None}
    found = []
    for number, path in enumerate(paths(details, "next")):
        once = rest | {"answer": answer} if number == 0 else {}
        own = common | once | {_PATH: path.nodes}
        turns = Turns(_PATH, path.nodes)
        found.append((path, trajectory_of(own, raw_key, turns, DIALECT)))
    return with_branches(found)


def _read(nodes: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    for number, node in enumerate(nodes):
        role, message = node.get("role"), node.get("message")
        if role == "tool":
            call = _call_in(message) or _cut_call_in(message)
            if call is None:
                turns.append(
                    Turn("tool", message if isinstance(message, str) else to_json(message))
                )
                continue
            name, arguments, response = (call.get(key) for key in ("name", "arguments", "response"))
            arguments = arguments if isinstance(arguments, str | None) else to_json(arguments)
            calls = [ToolCall(None, name, arguments)]
            # The words before a call stand in a node of their own.
            if turns and turns[-1].role == "assistant" and not turns[-1].calls:
                turns[-1] = turns[-1]._replace(calls=calls)
            else:
                turns.append(Turn("assistant", None, calls=calls))
            response = response if isinstance(response, str | None) else to_json(response)
            turns.append(Turn("tool", response, name=name))
        elif role in ("system", "user", "assistant") and isinstance(message, str):
            turns.append(Turn(role, message))
        else:
            raise unexpected(number, f"has role {role!r:.60} and a message that is {kind(message)}")
    return turns


def _call_in(message: Any) -> dict[str, Any] | None:
    """The call in a tool's message: an object, or one printed as JSON or by Python."""
    if isinstance(message, str):
        try:
            message = from_json(message.encode())
        except RefusedRecord:
            try:
                message = ast.literal_eval(message)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                return None
    is_call = isinstance(message, dict) and isinstance(message.get("name"), str)
    return message if is_call else None


def _cut_call_in(message: Any) -> dict[str, Any] | None:
    """The call whose printed text breaks off; it has the text for a response."""
    found = _PRINTED.match(message) if isinstance(message, str) else None
    if found is None:
        return None
    name, arguments = (text and ast.literal_eval(text) for text in found.groups())
    return {"name": name, "arguments": arguments, "response": message}


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    nodes: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role == "assistant":
            if turn.content is not None:
                nodes.append({"role": "assistant", "message": turn.content})
            nodes.extend(
                {"role": "tool", "message": {"name": call.name, "arguments": call.arguments}}
                for call in turn.calls
            )
        elif turn.role == "tool" and turn.name is not None and nodes:
            message = nodes[-1]["message"]
            if isinstance(message, dict):
                message["response"] = turn.content
        elif turn.role == "tool" and label is not None:
            nodes.append({"role": "user", "message": label + (turn.content or "")})
        else:
            nodes.append({"role": turn.role, "message": turn.content})
    return nodes


DIALECT = Dialect(read=_read, write=_write, field=_PATH)


def to_source(trajectory: Trajectory) -> list[Any]:
    return to_messages(trajectory, DIALECT)


FORMAT = Format(
    name="toolbench_answer",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({"answer"}),
)
