"""`toolbench`: a search tree of calls; every path from its root to a leaf is a trajectory.

    {"win": true,
     "tree": {"size": 4, "max_length": 4, "tree": {"node_type": "Action Input", "children": [
       {"node_type": "Thought", "description": "I look it up.", "children": [
         {"node_type": "Action", "description": "track", "children": [
           {"node_type": "Action Input", "description": "{}", "observation": "in Lyon",
            "observation_code": 0, "pruned": false, "children": []}]}]}]}},
     "answer_generation": {"query": "Where is my parcel?", "function": [{"name": "track", …}],
       "finish_type": "give_answer", "train_messages": [[{"role": "system", "content": …}, …]]}}

    {"win": true, "trys": [{"win": false, "chain": [
       {"node_type": "Thought", "description": "I look it up.", "depth": 1},
       {"node_type": "Action", "description": "track", "depth": 2},
       {"node_type": "Action Input", "description": "{}", "observation": "in Lyon", "depth": 3}]}],
     "answer_generation": {…}}

Source: ToolBench (Qin et al. 2023), the answers that its depth-first search wrote, a file a run,
and those of its chains without search (`CoT@1`), where every try is a path of its own.

The paths that end in an answer (`observation_code` 3, in a run that won) come first and have score
1; all others are what the search gave up, with score 0. The first answer is told by the last of
`train_messages`, the conversation as the model saw it, with the search's own words to it ("this is
not the first time …"), if its calls are those of the path. Every other path is told by the tree
alone: a step is a thought with the action and input below it, and a thought above another thought
is a step of its own. The system's and the user's words before it stand in `train_messages`; where
there are none, the query is the input.
`branch` in `other_information` gives each its place in the tree (`udfs.formats.branches`).

What is said of the run as a whole is kept once, with the first path; `finish_type` with all. So
are the nodes of the path of which the conversation is.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.branches import Path, paths, with_branches
from udfs.formats.chat import DIALECT as CHAT
from udfs.formats.jsontext import to_json
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory
from udfs.formats.turns import (
    Dialect,
    Turn,
    Turns,
    kind,
    to_messages,
    trajectory_of,
    unexpected,
)

_TREE, _PATH, _CONVERSATION = "tree", "path", "conversation"
_ANSWERED = 3  # the observation code of a Finish call that gives an answer
_THOUGHT, _ACTION, _INPUT = "Thought", "Action", "Action Input"
_TRIES, _CHAIN = "trys", "chain"


def matches(record: Any) -> float:
    """1.0 for a tree or chains of nodes beside `answer_generation`."""
    return 0.0 if _problem(record) else 1.0


def near(record: Any) -> str | None:
    """`answer_generation` without a tree or chain."""
    if isinstance(record, dict) and "answer_generation" in record:
        return _problem(record)
    return None


def _problem(record: Any) -> str | None:
    if not isinstance(record, dict) or not isinstance(record.get("answer_generation"), dict):
        return "there is no object `answer_generation`"
    if _TREE not in record and _TRIES in record:
        tries = record[_TRIES]
        if isinstance(tries, list) and tries and all(_nodes(each) is not None for each in tries):
            return None
        return f"`{_TRIES}` is no list of objects with a `{_CHAIN}` of nodes"
    tree = record.get(_TREE)
    root = tree.get(_TREE) if isinstance(tree, dict) else None
    if not (isinstance(root, dict) and isinstance(root.get("children"), list)):
        return "`tree.tree` is no node with `children`"
    return None


def _nodes(attempt: Any) -> list[Any] | None:
    """The nodes of one try."""
    chain = attempt.get(_CHAIN) if isinstance(attempt, dict) else None
    is_chain = isinstance(chain, list) and all(isinstance(node, dict) for node in chain)
    return chain if is_chain else None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """A trajectory for every path from the root to a leaf, those that answer first.

    Raises:
        RefusedRecord: `unexpected_tree`, `unexpected_turn` (the node's number on its path),
            `no_steps`.
    """
    problem = _problem(record)
    if problem:
        raise RefusedRecord("unexpected_tree", f"It is no search tree: {problem}.")
    rest = dict(record)
    ways = _ways(rest)
    answer = dict(rest.pop("answer_generation"))
    has_won = rest.pop("win", None)
    answered = [
        path
        for path in ways
        if has_won is True and path.nodes[-1].get("observation_code") == _ANSWERED
    ]
    ways = answered + [path for path in ways if path not in answered]
    query = answer.pop("query", None)
    common = {name: answer.pop(name) for name in ("finish_type", "function") if name in answer} | {
        "question": query
    }
    common = {("functions" if name == "function" else name): common[name] for name in common}
    once = rest | {"answer_generation": answer}
    if not isinstance(has_won, bool):
        once["win"] = has_won
    given = _given(answer, query)
    found = []
    for number, path in enumerate(ways):
        own = common | (once if number == 0 else {})
        if isinstance(has_won, bool):
            own["resolved"] = number < len(answered)
        told = _told(answer, path) if number == 0 and own.get("resolved") else None
        if told is None:
            turns = Turns(_PATH, path.nodes)
            own[_PATH] = path.nodes
            trajectory = trajectory_of(own, raw_key, turns, DIALECT, given=given)
        else:
            own |= {"nodes": path.nodes, _CONVERSATION: told}
            turns = Turns(_CONVERSATION, told)
            trajectory = trajectory_of(own, raw_key, turns, CHAT, thought_of=str)
        found.append((path, trajectory))
    if not found:
        raise RefusedRecord("no_steps", "The tree has no node below its root.")
    return with_branches(found)


def _ways(rest: dict[str, Any]) -> list[Path]:
    """The paths of the search, taken out of its record."""
    if _TREE in rest:
        tree = dict(rest.pop(_TREE))
        root = dict(tree.pop(_TREE))
        found = list(paths(root.pop("children"), "children"))
        rest[_TREE] = tree | {"root": root}
        return found
    tries = rest.pop(_TRIES)
    rest[_TRIES] = [
        {name: value for name, value in attempt.items() if name != _CHAIN} for attempt in tries
    ]
    return [Path(nodes, (number,)) for number, each in enumerate(tries) if (nodes := _nodes(each))]


def _told(answer: dict[str, Any], path: Path) -> list[Any] | None:
    """The conversation that led to the answer, taken out of its field, if it is this path's."""
    conversations = answer.get("train_messages")
    if not (isinstance(conversations, list) and conversations):
        return None
    last = conversations[-1]
    if not isinstance(last, list):
        return None
    made = [call[1:] for turn in CHAT.read(last) for call in turn.calls]
    if made != [call[1:] for turn in DIALECT.read(path.nodes) for call in turn.calls]:
        return None
    answer["train_messages"] = conversations[:-1]
    return last


def _given(answer: dict[str, Any], query: Any) -> list[Turn]:
    """What stood before the model's first words, as the run's messages say it."""
    conversations = answer.get("train_messages")
    if isinstance(conversations, list) and conversations and isinstance(conversations[0], list):
        turns = CHAT.read(conversations[0])
        said = next(
            (number for number, turn in enumerate(turns) if turn.role == "assistant"), len(turns)
        )
        if said:
            return turns[:said]
    return [Turn("user", query)] if isinstance(query, str) else []


def _read(nodes: list[Any]) -> list[Turn]:
    turns: list[Turn] = []
    thought: str | None = None
    action: str | None = None

    def close() -> None:
        nonlocal thought, action
        calls = [] if action is None else [ToolCall(None, action, None)]
        if thought is not None or calls:
            turns.append(Turn("assistant", thought, thought or None, calls))
        thought = action = None

    for number, node in enumerate(nodes):
        what, text = node.get("node_type"), node.get("description")
        if not isinstance(text, str):
            raise unexpected(number, f"has a description that is {kind(text)}, not text")
        if what == _THOUGHT:
            close()
            thought = text
        elif what == _ACTION:
            if action is not None:
                close()
            action = text
        elif what == _INPUT and action is not None:
            turns.append(
                Turn("assistant", thought, thought or None, [ToolCall(None, action, text)])
            )
            if "observation" in node:
                seen = node["observation"]
                if not isinstance(seen, str | None):
                    seen = to_json(seen)
                turns.append(Turn("tool", seen, name=action))
            thought = action = None
        else:
            raise unexpected(
                number,
                f"has the node type {what!r:.60}, where Thought, Action, or Action Input behind "
                "an Action was expected",
            )
    close()
    return turns


def _write(turns: list[Turn], label: str | None) -> list[Any]:
    nodes: list[dict[str, Any]] = []
    for turn in turns:
        if turn.role != "assistant":
            if nodes:
                nodes[-1]["observation"] = turn.content
            continue
        if turn.content is not None:
            nodes.append({"node_type": _THOUGHT, "description": turn.content})
        for call in turn.calls:
            nodes.append({"node_type": _ACTION, "description": call.name})
            if call.arguments is not None:
                nodes.append({"node_type": _INPUT, "description": call.arguments})
    return nodes


DIALECT = Dialect(read=_read, write=_write, field=_PATH, key="node_type")


def to_source(trajectory: Trajectory) -> list[Any]:
    """The conversation, or the nodes of the trajectory's path without their children."""
    is_told = trajectory.layout.get("field") == _CONVERSATION
    return to_messages(trajectory, CHAT if is_told else DIALECT)


FORMAT = Format(
    name="toolbench",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({"answer_generation"}),
)
