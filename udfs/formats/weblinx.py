"""`weblinx`: a demonstration on web sites: an instructor's wishes, and what the navigator did.

    {"shortcode": "kite1", "form": {"description": "Buy a kite", "tasks": ["Shopping"]},
     "replay": {"data": [
       {"type": "chat", "timestamp": 2.1, "speaker": "instructor", "utterance": "Buy a red kite."},
       {"type": "chat", "timestamp": 4.0, "speaker": "navigator", "utterance": "Sure."},
       {"type": "browser", "timestamp": 9.7,
        "state": {"page": "page-1-0.html", "screenshot": "screenshot-1-0.png"},
        "action": {"intent": "click", "event_id": 1, "arguments": {
          "metadata": {"url": "https://kites.example/", …}, "properties": {"clientX": 7.0, …},
          "element": {"tagName": "A", "xpath": "id(\\"k\\")/a[1]", "outerHTML": "<a …", …}}}}]}}

Source: WebLINX (Lù et al. 2024), the demonstrations of WebLINX-full: a folder's `replay.json`,
which may stand under `replay` beside what its other files say, as the Agent Data Protocol lands
them (its `datasets/weblinx/sample_raw.json`). The rows of single turns are `weblinx_step`.

What the instructor says is asked. What the navigator says, and every event in the browser, is a
step. An event is a call, named by its intent, with the arguments that say what was done: the
element without its markup and box, and for a page or tab its address or number. The page and the
screenshot that it was done on are seen before it, by the names of their files. All else of an
event (the mouse, the markup, the time) stays in the layout.
"""

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.events import Done, Seen, to_source, trajectory_of_events
from udfs.formats.jsontext import to_json
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory

_REPLAY, _DATA, _ID = "replay", "data", "shortcode"
_NAVIGATOR, _INSTRUCTOR = "navigator", "instructor"
_STATES = ("page", "screenshot")
# Where the mouse was, and the markup of an element, which the page has too.
_BESIDE, _MARKUP = ("metadata", "properties"), ("innerHTML", "outerHTML", "bbox")
_TABS = ("tabId", "tabIdOrigin")


def matches(record: Any) -> float:
    """1.0 for a replay whose first turn is a chat's or a browser's."""
    turns = _turns(record)
    return 1.0 if turns and _is_turn(turns[0]) else 0.0


def _turns(record: Any) -> list[Any]:
    if not isinstance(record, dict):
        return []
    replay = record.get(_REPLAY)
    turns = (replay if isinstance(replay, dict) else record).get(_DATA)
    return turns if isinstance(turns, list) else []


def _is_turn(turn: Any) -> bool:
    if not (isinstance(turn, dict) and "timestamp" in turn):
        return False
    if turn.get("type") == "chat":
        return "speaker" in turn and "utterance" in turn
    return turn.get("type") == "browser" and isinstance(turn.get("action"), dict)


def near(record: Any) -> str | None:
    """None: the shape is its own."""
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for everything that the navigator said or did.

    Raises:
        RefusedRecord: `no_steps`, or `unexpected_item` with the turn's number.
    """
    turns = _turns(record)
    events: list[Seen | Done] = []
    for number, turn in enumerate(turns, start=1):
        seen, event = _read(number, turn)
        # The page was there when the instructor spoke; what he said asks for the action on it.
        place = len(events)
        while seen and place and isinstance(last := events[place - 1], Seen) and last.is_asked:
            place -= 1
        events[place:place] = seen
        events.append(event)
    if not any(isinstance(event, Done) for event in events):
        raise RefusedRecord(
            "no_steps", f"`{_REPLAY}.{_DATA}` or `{_DATA}` has no turn of the navigator's."
        )
    rest = dict(record)
    if "task_id" not in rest and isinstance(rest.get(_ID), str):
        rest["task_id"] = rest.pop(_ID)
    field = _REPLAY if isinstance(record.get(_REPLAY), dict) else _DATA
    return [trajectory_of_events(rest, raw_key, events, field=field, source=record[field])]


def _read(number: int, turn: Any) -> tuple[list[Seen], Seen | Done]:
    """What there was to see, and what was said or done."""
    if not _is_turn(turn):
        raise _unexpected(number, turn)
    if turn["type"] == "chat":
        speaker, said = turn["speaker"], turn["utterance"]
        if not isinstance(said, str) or speaker not in (_NAVIGATOR, _INSTRUCTOR):
            raise _unexpected(number, turn)
        return [], Done(said) if speaker == _NAVIGATOR else Seen(said, is_asked=True)
    intent, arguments = turn["action"].get("intent"), turn["action"].get("arguments")
    if not (isinstance(intent, str) and isinstance(arguments, dict | None)):
        raise _unexpected(number, turn)
    state = turn.get("state")
    seen = [
        Seen(name, what)
        for what in _STATES
        if isinstance(state, dict) and isinstance(name := state.get(what), str)
    ]
    return seen, Done(None, calls=[ToolCall(None, intent, to_json(_told(arguments or {})))])


def _told(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that say what was done."""
    told = {name: value for name, value in arguments.items() if name not in _BESIDE}
    element = told.get("element")
    if isinstance(element, dict):
        told["element"] = {name: element[name] for name in element if name not in _MARKUP}
    if told:
        return told
    metadata, properties = (
        value if isinstance(value := arguments.get(name), dict) else {} for name in _BESIDE
    )
    if metadata.get("url"):
        return {"url": metadata["url"]}
    return {name: properties[name] for name in _TABS if name in properties}


def _unexpected(number: int, turn: Any) -> RefusedRecord:
    return RefusedRecord(
        "unexpected_item",
        f"Turn {number} is neither what the instructor or the navigator said nor an action in "
        f"the browser, but {turn!r:.120}.",
    )


FORMAT = Format(
    name="weblinx",
    version="1",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
)
