"""`weblinx_step`: one turn of a demonstration on web sites, with all that led to it, as a row.

    {"demo": "kite1", "turn": 6, "action": "click(uid=\\"a1b2\\")",
     "action_history": "say(speaker=\\"navigator\\", utterance=\\"Sure.\\")",
     "utterances": "[00:05] Buy a red kite. ;", "candidates": "(uid = a1b2) [[tag]] a …",
     "clean_html": "(html(body(a …", "viewport": "746h x 1536w"}

Source: WebLINX (Lù et al. 2024), the rows that it publishes as tables. The rows with the same
`demo` are one trajectory, in the order of `turn`. That counts what the instructor said, too, and
has gaps where a turn is no row, so no turn is said to be missing. Each row is asked on its own:
the page, what the instructor has said so far, the size of the window and the elements in question
are its step's input, in that order, as in the data set's template. `action_history` repeats the
actions of the rows before, and stays in the other information.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.parts import JOINT, PARTS
from udfs.formats.trajectory import (
    LAYOUT,
    Format,
    Options,
    Part,
    Step,
    Trajectory,
    as_identifier,
    assemble,
)

_DEMO, _TURN, _ACTION, _SAID = "demo", "turn", "action", "utterances"
_SHOWN = ("clean_html", _SAID, "viewport", "candidates")
_ALL = frozenset({_DEMO, _TURN, _ACTION, _SAID, "clean_html"})


def matches(record: Any) -> float:
    """1.0 if demonstration, turn, action, utterances and page are there."""
    return 1.0 if isinstance(record, dict) and record.keys() >= _ALL else 0.0


def near(record: Any) -> str | None:
    """None: the names of its fields are its own."""
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One step, as part of a trajectory.

    Raises:
        RefusedRecord: `unexpected_step`, where demonstration, turn or action are not of the types
            above.
    """
    fields = record if isinstance(record, dict) else {}
    demo, turn, action = as_identifier(fields.get(_DEMO)), fields.get(_TURN), fields.get(_ACTION)
    if not (demo and type(turn) is int and turn >= 0 and isinstance(action, str)):
        raise RefusedRecord(
            "unexpected_step",
            f"`{_DEMO}` has to be a name, `{_TURN}` a number from 0 and `{_ACTION}` a text; found "
            f"{fields.get(_DEMO)!r:.60}, {turn!r:.60} and {action!r:.60}.",
        )
    rest = {name: value for name, value in fields.items() if name not in (_DEMO, _TURN)}
    shown = {name: rest.pop(name) for name in _SHOWN if isinstance(rest.get(name), str)}
    rest["task_id"] = demo
    trajectory = assemble(
        rest,
        raw_key,
        [Step(JOINT.join(shown.values()) if shown else None, None, action, [], [])],
        steps_field=_ACTION,
        layout={_TURN: turn, "input": {name: len(text) for name, text in shown.items()}},
        user_query=shown.get(_SAID),
    )
    return [trajectory._replace(part_of=Part(demo, float(turn)))]


def to_source(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Of every row the turn, what was shown, and the action."""
    found = []
    shared = trajectory.other_information
    rows = shared.get(PARTS) or [{}] * len(trajectory.steps)
    for step, row in zip(trajectory.steps, rows, strict=True):
        layout = row.get(LAYOUT) or shared[LAYOUT]
        shown, start = {}, 0
        for name, length in layout["input"].items():
            shown[name] = (step.input or "")[start : start + length]
            start += length + len(JOINT)
        found.append({_TURN: layout[_TURN]} | shown | {_ACTION: step.output})
    return found


FORMAT = Format(
    name="weblinx_step",
    version="1",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=_ALL,
    part_mark="clean_html",
)
