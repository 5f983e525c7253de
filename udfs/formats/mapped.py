"""`mapped`: any shape of record, read as a mapping says: data, not code.

    {"read": [
        {"as": "user", "text": "$.goal"},
        {"list": "$.log", "kind": "$.type", "read": {
            "plan":   [{"as": "agent", "text": "$.body", "thought": "$.why?",
                        "calls": {"at": "$.tool?", "name": "$.name", "arguments": "$.args"}}],
            "result": [{"as": "environment", "text": "$.body", "name": "$.tool?"}],
            "ping":   []}}],
     "fields": {"task_id": "$.run", "score": "$.verdict.stars?"}}

A mapping is written by hand into a source's entry, or by a model that is shown samples of records
nobody wrote a parser for (`udfs.standardizer`). It can only say where things are, so whatever it
says, nothing comes out that the record does not hold.

`read` is a list of parts, read in order. A part is a turn or a group.

| key of a turn | what it says                                                              |
|---------------|---------------------------------------------------------------------------|
| `as`          | whose turn it is: `system`, `user`, `agent`, `environment`                |
| `text`        | path to its text                                                          |
| `thought`     | `agent`: path to a thought that stands apart from the text                |
| `calls`       | `agent`: its calls of tools: `at` (path to one or a list of them) and, from there, `name`, `arguments`, `id` |
| `name`, `id`  | `environment`: path to the tool's name, and to the id of the call that it answers |

| key of a group | what it says                                                             |
|----------------|--------------------------------------------------------------------------|
| `list`         | path to a list, whose items are read one after the other; of an object, its values; several paths: parallel lists, whose items are read side by side, as `$[0]`, `$[1]` |
| `labels`       | `list` names a text, cut where a line begins with one of these labels; its pieces have `$.label` and `$.text` |
| `kind`         | path to a value that says what sort of item it is                        |
| `read`         | the parts of an item; with `kind`, an object: value → parts (none: no turn) |

Paths are those of `udfs.formats.fields`, from the record or, within a list, from its item; `$` is
that itself, and `[*]` all items of a list, whose texts are joined by a line break. Every item has
to have a path that does not end in `?`. A value that is no text is its JSON text. A turn with
nothing in it is none. An item whose kind the mapping does not know refuses the record.

`fields` are columns, as in a source's entry: `user_query`, `task_id`, `model_name`, `score`,
`tools`. Without it, columns are filled as for any other format.

The way back is that of `udfs.formats.events`: the fields that were read stay in the layout, with
references in place of the longer texts that columns hold. `mapping` there is the mapping's id.
"""  # noqa: E501

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats.events import SHORTEST, Done, Seen, source_layout, steps_of, to_source
from udfs.formats.fields import ABSENT, FIELDS, apply_fields, check_fields, inside, path_steps
from udfs.formats.images import with_references
from udfs.formats.jsontext import from_json, to_json
from udfs.formats.trajectory import Format, Options, ToolCall, Trajectory, assemble
from udfs.formats.turns import with_thought

ROLES = ("system", "user", "agent", "environment")
COLUMNS = tuple(name for name in FIELDS if not name.startswith("group_"))

_TURN = {
    "system": ("text",),
    "user": ("text",),
    "agent": ("text", "thought", "calls"),
    "environment": ("text", "name", "id"),
}
_CALLS = ("at", "name", "arguments", "id")
_GROUP = ("list", "labels", "kind", "read")
_MOST_PARTS = 100
_DEEPEST = 6
_SHOWN = 12


def mapping_id(mapping: Mapping[str, Any]) -> str:
    """The hash that names a mapping, 16 hexadecimal digits; the order of its kinds is no matter."""
    return hashlib.sha256(to_json(mapping, sort_keys=True).encode()).hexdigest()[:16]


def check_mapping(mapping: Any, where: str) -> None:
    """Check that a mapping is one.

    Raises:
        ConfigError: with `where`, the place within the mapping, what is wrong and what exists.
    """
    _check_keys(mapping, ("read", "fields"), where)
    parts = _check_parts(mapping.get("read"), f"{where}: read", 1)
    if parts > _MOST_PARTS:
        raise ConfigError(f"{where}: it has {parts} parts; {_MOST_PARTS} are the most.")
    if not any(role == "agent" for role in roles(mapping["read"])):
        raise ConfigError(f"{where}: no part is `as: agent`, so there is no one to learn from.")
    if "fields" in mapping:
        check_fields(mapping["fields"], where)
        for name in mapping["fields"]:
            if name not in COLUMNS:
                raise ConfigError(
                    f"{where}: '{name}' is no column. Columns: {', '.join(COLUMNS)}. Grouping "
                    "keys belong to the `fields` of the source."
                )


def roles(parts: Any) -> Iterator[str]:
    """Whose turns parts make, in order."""
    for part in all_parts(parts):
        if "as" in part:
            yield part["as"]


def all_parts(read: Any) -> Iterator[Mapping[str, Any]]:
    """Every part of a `read`, and the parts of its groups."""
    for parts in read.values() if isinstance(read, Mapping) else (read,):
        for part in parts:
            yield part
            if "read" in part:
                yield from all_parts(part["read"])


def _check_parts(parts: Any, where: str, depth: int) -> int:
    """Check a list of parts, and count them."""
    if depth > _DEEPEST:
        raise ConfigError(f"{where}: groups within groups, {_DEEPEST} are the most.")
    if not isinstance(parts, list):
        raise ConfigError(f"{where} is {parts!r:.80} and has to be a list of parts.")
    return sum(_check_part(part, f"{where}[{number}]", depth) for number, part in enumerate(parts))


def _check_part(part: Any, where: str, depth: int) -> int:
    if isinstance(part, Mapping) and "read" in part:
        return 1 + _check_group(part, where, depth)
    if not isinstance(part, Mapping) or part.get("as") not in ROLES:
        raise ConfigError(
            f"{where} is {part!r:.80}. A part is a group with `read`, or a turn with `as` one of "
            f"{', '.join(ROLES)}."
        )
    keys = _TURN[part["as"]]
    _check_keys(part, ("as", *keys), where)
    if not any(key in part for key in keys):
        raise ConfigError(f"{where} says nothing. Give {' or '.join(keys)}.")
    for key in keys:
        if key == "calls" and key in part:
            calls = part[key]
            _check_keys(calls, _CALLS, f"{where}.calls")
            if not {"at", "name"} <= set(calls):
                raise ConfigError(f"{where}.calls needs `at` and `name`.")
            for each in calls:
                _check_path(calls[each], f"{where}.calls.{each}")
        elif key in part:
            _check_path(part[key], f"{where}.{key}")
    return 1


def _check_group(group: Mapping[str, Any], where: str, depth: int) -> int:
    _check_keys(group, _GROUP, where)
    lists = group.get("list", [])
    for path in lists if isinstance(lists, list) else [lists]:
        _check_path(path, f"{where}.list")
    labels = group.get("labels")
    if labels is not None:
        if not isinstance(lists, str):
            raise ConfigError(f"{where}: `labels` cut one text; give its path as `list`.")
        if not isinstance(labels, list) or not all(isinstance(t, str) and t for t in labels):
            raise ConfigError(f"{where}.labels is {labels!r:.80} and has to be a list of texts.")
    read = group["read"]
    if "kind" not in group:
        return _check_parts(read, f"{where}.read", depth + 1)
    _check_path(group["kind"], f"{where}.kind")
    if not isinstance(read, Mapping):
        raise ConfigError(
            f"{where}.read is {read!r:.80}; with `kind` it has to be an object, kind → parts."
        )
    return sum(
        _check_parts(parts, f"{where}.read[{kind!r}]", depth + 1) for kind, parts in read.items()
    )


def _check_keys(value: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r:.80} and has to be an object.")
    for key in value:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r:.40}. Keys: {', '.join(known)}.")


def _check_path(path: Any, where: str) -> None:
    try:
        if not isinstance(path, str):
            raise ValueError("it is no text")
        _path(path)
    except ValueError as error:
        raise ConfigError(
            f"{where} is {path!r:.80}: {error}. A path looks like `$.body`, `$.parts[*].text` or "
            "`$['a key']`, with a `?` at its end where some have no such field."
        ) from None


class _Path(NamedTuple):
    """A path cut at each `[*]`."""

    segments: tuple[tuple[str | int, ...], ...]
    is_optional: bool


@lru_cache(maxsize=4_096)
def _path(path: str) -> _Path:
    text = path.removesuffix("?")
    if not text.startswith("$"):
        text = f"$.{text}" if text and not text.startswith(("[", ".")) else f"${text}"
    first, *rest = text[1:].split("[*]")
    return _Path(
        tuple(() if not each else path_steps(f"${each}") for each in (first, *rest)),
        path.endswith("?"),
    )


class Reading:
    """One record, read as a mapping says.

    `system_prompt` and `events` are what was found. `asked` are the paths that were followed,
    `used` those that led somewhere, as (id of the object in the mapping, path).

    Raises:
        RefusedRecord: `missing_field`, where a path leads nowhere; `unexpected_turn`, where an
            item is of a kind that the mapping does not know; `unexpected_value`, where a list is
            none, or a text with labels no text.
    """

    def __init__(self, record: Any, mapping: Mapping[str, Any]) -> None:
        self.system_prompt: str | None = None
        self.events: list[Seen | Done] = []
        self.asked: set[tuple[int, str]] = set()
        self.used: set[tuple[int, str]] = set()
        self._read(mapping["read"], record)

    def _read(self, parts: Sequence[Mapping[str, Any]], node: Any) -> None:
        for part in parts:
            if "read" not in part:
                self._turn(part, node)
                continue
            for number, item in enumerate(self._items(part, node), start=1):
                if "kind" in part:
                    self._read(self._of_kind(part, item, number), item)
                else:
                    self._read(part["read"], item)

    def _items(self, group: Mapping[str, Any], node: Any) -> list[Any]:
        if "list" not in group:
            return [node]
        paths = group["list"]
        if isinstance(paths, list):
            lists = [self._list(group, path, node) for path in paths]
            return list(map(list, itertools.zip_longest(*lists)))
        if "labels" in group:
            texts = self._values(group, paths, node)
            if not all(isinstance(text, str) for text in texts):
                raise RefusedRecord("unexpected_value", f"What is at {paths} is no text to cut.")
            return [piece for text in texts for piece in pieces(text, group["labels"])]
        return self._list(group, paths, node)

    def _list(self, group: Mapping[str, Any], path: str, node: Any) -> list[Any]:
        items: list[Any] = []
        for value in self._values(group, path, node):
            if isinstance(value, str):
                try:
                    value = from_json(value.encode())
                except RefusedRecord:
                    value = None
            if not isinstance(value, list | dict):
                raise RefusedRecord("unexpected_value", f"What is at {path} is no list.")
            items.extend(value.values() if isinstance(value, dict) else value)
        return items

    def _of_kind(self, group: Mapping[str, Any], item: Any, number: int) -> Any:
        values = self._values(group, group["kind"], item)
        value = values[0] if values else None
        kind = value if isinstance(value, str) else to_json(value)
        if kind not in group["read"]:
            known = ", ".join(list(group["read"])[:_SHOWN])
            raise RefusedRecord(
                "unexpected_turn",
                f"Item {number} of {group.get('list', 'the record')} has {kind!r:.60} at "
                f"{group['kind']}; the mapping knows {known:.200}.",
            )
        return group["read"][kind]

    def _turn(self, part: Mapping[str, Any], node: Any) -> None:
        text = self._text(part, "text", node)
        if part["as"] == "agent":
            thought = self._text(part, "thought", node)
            calls = list(self._calls(part["calls"], node)) if "calls" in part else []
            if text is None and thought is None and not calls:
                return
            output = with_thought(thought, text) if thought else text
            self.events.append(Done(output, thought, calls))
        elif text is None:
            return
        elif part["as"] == "system" and not self.events and self.system_prompt is None:
            self.system_prompt = text
        elif part["as"] == "environment":
            name, call_id = self._text(part, "name", node), self._text(part, "id", node)
            self.events.append(Seen(text, name, call_id))
        else:
            self.events.append(Seen(text, is_asked=True))

    def _calls(self, calls: Mapping[str, Any], node: Any) -> Iterator[ToolCall]:
        for value in self._values(calls, calls["at"], node):
            for each in value if isinstance(value, list) else [value]:
                name = self._text(calls, "name", each)
                arguments = self._text(calls, "arguments", each)
                if name is not None or arguments is not None:
                    yield ToolCall(self._text(calls, "id", each), name, arguments)

    def _text(self, part: Mapping[str, Any], key: str, node: Any) -> str | None:
        if key not in part:
            return None
        values = self._values(part, part[key], node)
        if not values:
            return None
        return "\n".join(value if isinstance(value, str) else to_json(value) for value in values)

    def _values(self, part: Mapping[str, Any], path: str, node: Any) -> list[Any]:
        """What is at a path of a part, nulls left out."""
        (first, *rest), is_optional = _path(path)
        self.asked.add((id(part), path))
        value = node
        for step in first:
            value = inside(value, step)
        if value is ABSENT:
            if is_optional:
                return []
            keys = ", ".join(list(node)[:_SHOWN]) if isinstance(node, dict) else "no keys"
            raise RefusedRecord(
                "missing_field",
                f"The mapping says {path}, where there is nothing; it has {keys:.200}.",
            )
        self.used.add((id(part), path))
        values = [value]
        for segment in rest:
            values = [item for each in values for item in _listed(each)]
            for step in segment:
                values = [found for each in values if (found := inside(each, step)) is not ABSENT]
        return [each for each in values if each is not None]


def _listed(value: Any) -> Sequence[Any]:
    if isinstance(value, str):
        try:
            value = from_json(value.encode())
        except RefusedRecord:
            return ()
    return value if isinstance(value, list) else ()


def pieces(text: str, labels: Sequence[str]) -> list[dict[str, str]]:
    """A text, cut where a line begins with one of the labels; each piece with its label.

    What stands in front of the first label is a piece with the label "", unless it is white
    space. White space around a piece is left out.
    """
    longest_first = sorted(labels, key=len, reverse=True)
    cuts = list(re.finditer(rf"^(?:{'|'.join(map(re.escape, longest_first))})", text, re.MULTILINE))
    ends = [*(cut.start() for cut in cuts), len(text)]
    found = [
        {"label": cut[0], "text": text[cut.end() : end].strip()}
        for cut, end in zip(cuts, ends[1:], strict=True)
    ]
    head = text[: ends[0]].strip()
    return [{"label": "", "text": head}, *found] if head else found


def fields_read(record: Any, mapping: Mapping[str, Any]) -> list[str] | None:
    """The record's own fields that a mapping reads turns from; None where that is all of it."""
    if not isinstance(record, dict):
        return None
    names = set(_first_names(mapping["read"]))
    return None if None in names else [name for name in record if name in names]


def _first_names(parts: Any) -> Iterator[str | None]:
    """The first name of every path from the record; None for the record itself."""
    for part in parts:
        if "list" in part:
            lists = part["list"]
            paths = lists if isinstance(lists, list) else [lists]
        elif "read" in part:
            paths = []
            for below in part["read"].values() if "kind" in part else [part["read"]]:
                yield from _first_names(below)
        else:
            paths = [part[key] for key in ("text", "thought", "name", "id") if key in part]
            paths += [part["calls"]["at"]] if "calls" in part else []
        for path in paths:
            (first, *_), _ = _path(path)
            yield str(first[0]) if first and isinstance(first[0], str) else None


def parse(record: Any, raw_key: str | None, options: Options) -> list[Trajectory]:
    """One trajectory, a step for every turn of the agent.

    Raises:
        RefusedRecord: as `Reading`; `no_steps`, where the agent never speaks; as `apply_fields`.
    """
    mapping = options.mapping
    assert mapping is not None  # the settings of a source see to it
    record = with_references(record)
    reading = Reading(record, mapping)
    if not any(isinstance(event, Done) for event in reading.events):
        raise RefusedRecord(
            "no_steps", "Read as the mapping says, the agent never speaks in this record."
        )
    names = fields_read(record, mapping)
    trajectory = told(
        record,
        raw_key,
        reading.events,
        reading.system_prompt,
        read=list(record) if names is None and isinstance(record, dict) else names,
        layout={"mapping": mapping_id(mapping)},
    )
    return apply_fields(record, [trajectory], mapping.get("fields", {}))


def told(
    record: Any,
    raw_key: str | None,
    events: Sequence[Seen | Done],
    system_prompt: str | None,
    *,
    read: Sequence[str] | None,
    layout: dict[str, Any],
) -> Trajectory:
    """The trajectory of events that were read from the named fields (None: from a list)."""
    steps, texts = steps_of(None, events)
    if system_prompt is not None and len(system_prompt) >= SHORTEST:
        texts.setdefault(system_prompt, ["system_prompt"])
    for number, step in enumerate(steps):
        # What is said behind a thought is a piece of the output.
        at = len(with_thought(step.thought, " ")) - 1 if step.thought else 0
        if at and step.output is not None and len(step.output) >= at + SHORTEST:
            texts.setdefault(step.output[at:], ["output", number, at, len(step.output)])
    source = record if read is None else {name: record[name] for name in read}
    rest = {} if read is None else {key: record[key] for key in record if key not in source}
    return assemble(
        rest,
        raw_key,
        steps,
        steps_field=None,
        layout=layout | source_layout(source, texts),
        user_query=next((e.text for e in events if isinstance(e, Seen) and e.is_asked), None),
        system_prompt=system_prompt,
    )


def _never(record: Any) -> float:
    """No record is seen to have it: a mapping says so."""
    return 0.0


FORMAT = Format(
    name="mapped",
    version="1",
    matches=_never,
    near=lambda record: None,
    parse=parse,
    to_source=to_source,
)
