"""`react_chat`: role/content turns whose texts are ReAct's thoughts, actions and observations.

    {"reward": true, "f1": 1.0, "traj": [
       {"role": "user", "content": "Who painted the ceiling?"},
       {"role": "assistant", "content": "Thought: I have to look.\\nAction: search[ceiling]"},
       {"role": "user", "content": "Observation: Painted in 1512."},
       {"role": "assistant", "content": "Action: finish[unknown]"}]}

Source: FireAct's runs of chat models (Chen et al. 2023), AgentTuning's knowledge-graph tasks.
A user's turn after an output that begins with exactly `Observation: ` is the environment's; the
label is taken off, and put back by `to_source`. Any other user's turn is input. Output is kept as
it is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats import chat
from udfs.formats.react_text import LABEL, thought_of
from udfs.formats.trajectory import Format, Options, Trajectory
from udfs.formats.turns import find_turns, require_turns, to_messages, trajectory_of

_OBSERVATION = "Observation: "
_DIALECT = replace(chat.DIALECT, label=_OBSERVATION)


def matches(record: Any) -> float:
    """0.9 if some outputs are labelled as ReAct's and some users' turns as observations."""
    try:
        found = find_turns(record)
    except RefusedRecord:
        return 0.0
    if found is None:
        return 0.0
    outputs = []
    has_observation = False
    for turn in found.turns:
        if not isinstance(turn, dict) or turn.get("tool_calls"):
            return 0.0
        role, content = turn.get("role"), turn.get("content")
        if role == "user":
            has_observation |= isinstance(content, str) and content.startswith(_OBSERVATION)
        elif role == "assistant":
            outputs.append(content)
        elif role != "system":
            return 0.0
    if not has_observation:
        return 0.0
    is_labelled = any(isinstance(text, str) and LABEL.search("\n" + text) for text in outputs)
    return 0.9 if is_labelled else 0.0


def near(record: Any) -> str | None:
    """None: whatever looks like this looks like `chat`, which says it."""
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for every turn of the agent; raises as `chat` does."""
    found = require_turns(record, _DIALECT)
    return [trajectory_of(record, raw_key, found, _DIALECT, thought_of=thought_of)]


def to_source(trajectory: Trajectory) -> list[Any]:
    """The turns, with the labels put back."""
    return to_messages(trajectory, _DIALECT)


FORMAT = Format(
    name="react_chat",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({"role"}),
    refines=("chat",),
)
