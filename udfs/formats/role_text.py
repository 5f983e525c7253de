"""`role_text`: turns with `role` and `text`, where the agent is `ai`.

    {"instance_id": "kite-17", "model_name": "m", "target": true, "exit_status": "submitted",
     "trajectory": [
       {"role": "system", "system_prompt": "You fix bugs.", "text": null, "mask": false},
       {"role": "user", "system_prompt": null, "text": "The kite falls.", "mask": false},
       {"role": "ai", "system_prompt": null, "text": "I look.\\n```\\nls\\n```", "mask": true},
       {"role": "user", "system_prompt": null, "text": "kite.py", "mask": false}]}

Source: SWE-agent's runs as Nebius published them (nebius/SWE-agent-trajectories, 2024). Turns of
the user before the agent's first are what is asked: the task, with a demonstration in front of it.
Those after an answer are what its command printed. `target` is the tests' verdict, and so the
score. `mask` says which turns are trained on: where it is true for one of the agent's, those where
it is false are not trainable.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.events import Done, Seen, to_source, trajectory_of_events
from udfs.formats.trajectory import Format, Options, Trajectory

_FIELD, _TEXT, _SYSTEM, _VERDICT = "trajectory", "text", "system_prompt", "target"
_MASK = "mask"
_ROLES = {"system", "user", "ai"}


def matches(record: Any) -> float:
    """1.0 for turns that all have text and one of the three roles."""
    items = record.get(_FIELD) if isinstance(record, dict) else None
    if not (isinstance(items, list) and items):
        return 0.0
    roles = [
        item.get("role") if isinstance(item, dict) and _TEXT in item else None for item in items
    ]
    is_known = all(isinstance(role, str) and role in _ROLES for role in roles)
    return 1.0 if is_known and "ai" in roles else 0.0


def near(record: Any) -> str | None:
    """None: `chat` says which turn is not understood."""
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for every turn of the agent.

    Raises:
        RefusedRecord: `no_steps`, where there are no such turns; `unexpected_turn`, with its
            number, where its text is none.
    """
    if not matches(record):
        raise RefusedRecord("no_steps", f"`{_FIELD}` is no list of system, user and ai turns.")
    events: list[Seen | Done] = []
    system_prompt = None
    is_asked = True
    is_masked = any(turn["role"] == "ai" and turn.get(_MASK) is True for turn in record[_FIELD])
    for number, turn in enumerate(record[_FIELD], start=1):
        text = turn.get(_TEXT)
        if turn["role"] == "system":
            text = text or turn.get(_SYSTEM)
        if not isinstance(text, str):
            raise RefusedRecord("unexpected_turn", f"Turn {number} has no text, but {text!r:.60}.")
        if turn["role"] == "ai":
            is_trainable = not (is_masked and turn.get(_MASK) is False)
            events.append(Done(text, is_trainable=is_trainable))
            is_asked = False
        elif turn["role"] == "system" and system_prompt is None and is_asked:
            system_prompt = text
        else:
            events.append(Seen(text, is_asked=is_asked))
    rest = dict(record)
    if isinstance(rest.get(_VERDICT), bool) and not {"reward", "resolved"} & rest.keys():
        rest["resolved"] = rest.pop(_VERDICT)
    return [
        trajectory_of_events(
            rest,
            raw_key,
            events,
            field=_FIELD,
            source=record[_FIELD],
            system_prompt=system_prompt,
        )
    ]


FORMAT = Format(
    name="role_text",
    version="2",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    refines=("chat", "react_chat"),
    keys=frozenset({_FIELD, "role", _TEXT}),
)
