"""`api_bank_task`: what a user requires, the calls that do it, and the response.

    {"requirement": "Tell me where parcel 17 is.",
     "apis": [{"api_name": "Track", "input": {"parcel": 17},
       "output": {"api_name": "Track", "input": {"parcel": 17}, "output": "Lyon", "exception": null}}],
     "response": "It is in Lyon."}

Source: API-Bank (Li et al. 2023), its level 3 (`json_test_data/level-3.json` of its repository).

Every call is a step without words, and its `output` the observation (JSON text); the response is
the last step. Its dialogues are `api_bank`, its training rows `instruction`.
"""  # noqa: E501

from __future__ import annotations

from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.events import Done, Seen, to_source, trajectory_of_events
from udfs.formats.jsontext import to_json
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory

_ASKED, _CALLS, _SAID = "requirement", "apis", "response"


def matches(record: Any) -> float:
    """1.0 for a requirement, a response and calls with their results."""
    return 0.0 if _problem(record) else 1.0


def near(record: Any) -> str | None:
    """A requirement and a response without such calls."""
    if isinstance(record, dict) and {_ASKED, _CALLS, _SAID} <= record.keys():
        return _problem(record)
    return None


def _problem(record: Any) -> str | None:
    if not isinstance(record, dict):
        return "it is no object"
    if not all(isinstance(record.get(name), str) for name in (_ASKED, _SAID)):
        return f"`{_ASKED}` and `{_SAID}` are not both texts"
    calls = record.get(_CALLS)
    if not (
        isinstance(calls, list)
        and all(isinstance(each, dict) and isinstance(each.get("api_name"), str) for each in calls)
    ):
        return f"`{_CALLS}` is no list of calls with `api_name`"
    return None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for every call and one for the response.

    Raises:
        RefusedRecord: `unexpected_calls`.
    """
    problem = _problem(record)
    if problem:
        raise RefusedRecord("unexpected_calls", f"It is no task of API-Bank's: {problem}.")
    events: list[Seen | Done] = []
    for call in record[_CALLS]:
        name = call["api_name"]
        events.append(Done(None, calls=[ToolCall(None, name, to_json(call.get("input")))]))
        if "output" in call:
            events.append(Seen(to_json(call["output"]), name))
    events.append(Done(record[_SAID]))
    told = {name: record[name] for name in (_ASKED, _CALLS, _SAID)}
    rest = {name: value for name, value in record.items() if name not in told}
    return [
        trajectory_of_events(rest, raw_key, events, field=None, source=told, query=record[_ASKED])
    ]


FORMAT = Format(
    name="api_bank_task",
    version="1",
    matches=matches,
    near=near,
    parse=parse,
    to_source=to_source,
    keys=frozenset({_ASKED, _CALLS, _SAID}),
)
