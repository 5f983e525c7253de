"""`model_read`: a record that a model read, as it told its turns; nothing in it is the model's.

    {"turns": [{"as": "user", "text": "Where is my parcel?"},
               {"as": "agent", "thought": "…", "text": "…", "calls": [{"name": "track", "arguments": "{…}"}]},
               {"as": "environment", "text": "in Lyon", "name": "track"}],
     "fields": {"score": "$.stars?"}}

An answer is taken only if all its texts stand in the record, to the letter: as a string of the
record, or as a piece of one. `checked` looks for that:

| check            | what is wrong                                                                    |
|------------------|----------------------------------------------------------------------------------|
| `invalid_answer` | it is not of the shape above                                                     |
| `no_steps`       | no turn is the agent's                                                           |
| `not_verbatim`   | a text, name or id stands nowhere in the record                                  |
| `used_twice`     | a text is claimed more often than the record has it                              |
| `out_of_order`   | turns of one side follow each other otherwise than in the record                 |
| `not_carried`    | less than half of the record's text is in the turns; ids and times do not count  |

Arguments may also be an object that the record holds. `fields` are paths, as in a mapping. All
that the turns do not say stays in the other information.
"""  # noqa: E501

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats.events import Done, Seen, to_source
from udfs.formats.fields import apply_fields, check_fields
from udfs.formats.images import with_references
from udfs.formats.jsontext import to_json
from udfs.formats.mapped import COLUMNS, ROLES, told
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory
from udfs.formats.turns import with_thought

LEAST_CARRIED = 0.5
_LETTER = re.compile(r"[^\W\d_]")
_UNSPACED = re.compile("[\u2e80-\uffff]")  # scripts that put no spaces between words

_KEYS = {
    "system": ("text",),
    "user": ("text",),
    "agent": ("text", "thought", "calls"),
    "environment": ("text", "name", "id"),
}
_SHOWN = 80


class Leaf(NamedTuple):
    """A string in a record: the record's own field that it is in or below, and the string."""

    field: str | None
    text: str


def leaves(value: Any, field: str | None = None, *, is_top: bool = True) -> Iterator[Leaf]:
    """The strings of a record, in order."""
    match value:
        case str():
            yield Leaf(field, value)
        case list():
            for item in value:
                yield from leaves(item, field, is_top=False)
        case dict():
            for key, item in value.items():
                yield from leaves(item, key if is_top else field, is_top=False)


def is_said(text: str) -> bool:
    """Whether a string has words, as what somebody said has; ids, kinds, times and links have not,
    and no turn has to carry them."""
    has_words = len(text.split(maxsplit=1)) > 1 and _LETTER.search(text) is not None
    return has_words or _UNSPACED.search(text) is not None


class _Place(NamedTuple):
    leaf: int
    start: int
    end: int


class _Finder:
    """Where texts stand in a record, and which stretches of it are taken."""

    def __init__(self, record: Any) -> None:
        self.leaves = list(leaves(record))
        self.taken: dict[int, list[tuple[int, int]]] = {}
        self._all = [leaf.text for leaf in self.leaves]

    def is_there(self, text: str) -> bool:
        return any(text in each for each in self._all)

    def find(self, text: str, after: tuple[int, int]) -> _Place | None:
        """The first free place behind a place: a whole string if there is one, else a piece."""
        whole = (
            _Place(number, 0, len(text))
            for number, each in enumerate(self._all)
            if each == text and (number, 0) >= after and self._is_free(number, 0, len(text))
        )
        return next(whole, None) or next(self._places(text, after), None)

    def take(self, place: _Place) -> None:
        self.taken.setdefault(place.leaf, []).append((place.start, place.end))

    def _places(self, text: str, after: tuple[int, int]) -> Iterator[_Place]:
        for number in range(after[0], len(self._all)):
            at = self._all[number].find(text, after[1] if number == after[0] else 0)
            while at >= 0:
                if self._is_free(number, at, at + len(text)):
                    yield _Place(number, at, at + len(text))
                at = self._all[number].find(text, at + max(1, len(text)))

    def _is_free(self, leaf: int, start: int, end: int) -> bool:
        return not any(start < e and s < end for s, e in self.taken.get(leaf, ()))


def checked(record: Any, answer: Any) -> list[str]:
    """Check a model's answer against the record that it is about.

    Returns:
        The record's own fields that the turns stand in; none where the record is a list.

    Raises:
        RefusedRecord: with the failed check as the reason, and the turn.
    """
    record = with_references(record)
    turns = _turns(answer)
    if not any(turn["as"] == "agent" for turn in turns):
        raise RefusedRecord("no_steps", "None of the turns is the agent's.")
    finder = _Finder(record)
    values = {to_json(each, sort_keys=True) for each in _objects(record)}
    ends: dict[str, tuple[int, int]] = {}
    last = (0, 0)
    for number, turn in enumerate(turns, start=1):
        places = []
        for what, text in _texts(turn):
            place = finder.find(text, last) or finder.find(text, ends.get(turn["as"], (0, 0)))
            if place is None:
                raise _misplaced(finder, f"The {what} of turn {number}", text)
            finder.take(place)
            places.append(place)
        for what, name in _names(turn):
            if not finder.is_there(name):
                raise _absent(f"The {what} of turn {number}", name)
        for call in turn.get("calls", ()):
            _check_arguments(finder, values, call.get("arguments"), number)
        if places:
            end = max(places)
            last = ends[turn["as"]] = (end.leaf, end.end)
    whole = sum(len(leaf.text) for leaf in finder.leaves if is_said(leaf.text))
    claimed = sum(end - start for taken in finder.taken.values() for start, end in taken)
    if claimed < LEAST_CARRIED * whole:
        raise RefusedRecord(
            "not_carried",
            f"The turns hold {claimed:,} of the {whole:,} characters of text in the record; at "
            f"least {LEAST_CARRIED:.0%} of it should be in them.",
        )
    return list(
        dict.fromkeys(
            field
            for leaf in sorted(finder.taken)
            if (field := finder.leaves[leaf].field) is not None
        )
    )


def _turns(answer: Any) -> list[Mapping[str, Any]]:
    """The turns of an answer, of the right shape."""
    if not isinstance(answer, Mapping) or not isinstance(answer.get("turns"), list):
        raise RefusedRecord("invalid_answer", "It is no JSON object with a list `turns`.")
    if unknown := sorted(set(answer) - {"turns", "fields"}):
        raise RefusedRecord("invalid_answer", f"It has unknown keys: {', '.join(unknown):.200}.")
    for number, turn in enumerate(answer["turns"], start=1):
        where = f"Turn {number}"
        if not isinstance(turn, Mapping) or turn.get("as") not in ROLES:
            raise RefusedRecord(
                "invalid_answer", f"{where} has no `as` that is one of {', '.join(ROLES)}."
            )
        keys = _KEYS[turn["as"]]
        if unknown := sorted(set(turn) - {"as", *keys}):
            raise RefusedRecord("invalid_answer", f"{where} has {', '.join(unknown):.200}.")
        calls = turn.get("calls", [])
        texts = [turn.get(key) for key in keys if key != "calls"]
        if not isinstance(calls, list) or not all(_is_call(call) for call in calls):
            raise RefusedRecord(
                "invalid_answer", f"{where} has `calls` that are no list of name, arguments, id."
            )
        if not all(text is None or isinstance(text, str) for text in texts):
            raise RefusedRecord("invalid_answer", f"{where} holds something that is no text.")
        if not calls and not any(text for text in texts):
            raise RefusedRecord("invalid_answer", f"{where} is empty.")
    try:
        check_fields(answer.get("fields", {}), "fields")
    except ConfigError as error:
        raise RefusedRecord("invalid_answer", str(error)) from None
    if strange := sorted(set(answer.get("fields", {})) - set(COLUMNS)):
        raise RefusedRecord("invalid_answer", f"fields: {', '.join(strange)} are no columns.")
    return list(answer["turns"])


def _is_call(call: Any) -> bool:
    return (
        isinstance(call, Mapping)
        and set(call) <= {"name", "arguments", "id"}
        and isinstance(call.get("name"), str)
        and isinstance(call.get("id"), str | None)
        and isinstance(call.get("arguments"), str | dict | list | None)
    )


def _texts(turn: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key in ("thought", "text"):
        if turn.get(key):
            yield key, turn[key]


def _names(turn: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for each in (turn, *turn.get("calls", ())):
        for key in ("name", "id"):
            if each.get(key):
                yield key, each[key]


def _check_arguments(finder: _Finder, values: set[str], arguments: Any, number: int) -> None:
    if arguments is None:
        return
    if isinstance(arguments, str):
        place = finder.find(arguments, (0, 0))
        if place is not None:
            finder.take(place)
        elif not finder.is_there(arguments):
            raise _absent(f"An argument of turn {number}", arguments)
    elif to_json(arguments, sort_keys=True) not in values:
        raise _absent(f"An argument of turn {number}", to_json(arguments))


def _objects(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _objects(item)


def _misplaced(finder: _Finder, what: str, text: str) -> RefusedRecord:
    if finder.find(text, (0, 0)):
        return RefusedRecord(
            "out_of_order", f"{what} stands before what that side said earlier: {text[:_SHOWN]!r}."
        )
    if finder.is_there(text):
        return RefusedRecord(
            "used_twice", f"{what} is claimed more often than the record has it: {text[:_SHOWN]!r}."
        )
    return _absent(what, text)


def _absent(what: str, text: str) -> RefusedRecord:
    return RefusedRecord(
        "not_verbatim", f"{what} is nowhere in the record, to the letter: {text[:_SHOWN]!r}."
    )


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, of the turns that the answer tells; they are checked again.

    Raises:
        RefusedRecord: as `checked`.
    """
    answer = options.answer
    assert answer is not None  # who calls it sees to it
    fields = checked(record, answer)
    record = with_references(record)
    system_prompt, events = _events(answer["turns"])
    trajectory = told(
        record,
        raw_key,
        events,
        system_prompt,
        read=fields if isinstance(record, dict) else None,
        layout={},
    )
    return apply_fields(record, [trajectory], answer.get("fields", {}))


def _events(turns: Sequence[Mapping[str, Any]]) -> tuple[str | None, list[Seen | Done]]:
    system_prompt = None
    events: list[Seen | Done] = []
    for turn in turns:
        text = turn.get("text")
        if turn["as"] == "agent":
            thought = turn.get("thought") or None
            calls = [_call(call) for call in turn.get("calls", ())]
            events.append(Done(with_thought(thought, text) if thought else text, thought, calls))
        elif not text:
            continue
        elif turn["as"] == "environment":
            events.append(Seen(text, turn.get("name"), turn.get("id")))
        elif turn["as"] == "system" and not events and system_prompt is None:
            system_prompt = text
        else:
            events.append(Seen(text, is_asked=True))
    return system_prompt, events


def _call(call: Mapping[str, Any]) -> ToolCall:
    arguments = call.get("arguments")
    if arguments is not None and not isinstance(arguments, str):
        arguments = to_json(arguments)
    return ToolCall(call.get("id"), call["name"], arguments)


FORMAT = Format(
    name="model_read",
    version="1",
    matches=lambda record: 0.0,
    near=lambda record: None,
    parse=parse,
    to_source=to_source,
)
