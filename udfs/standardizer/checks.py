"""Whether a mapping fits records: tried on a sample before it is taken.

| check               | what is wrong                                                               |
|---------------------|-----------------------------------------------------------------------------|
| `no_json`           | the reply holds no JSON object                                              |
| `invalid_mapping`   | it is no mapping; the place and what exists are said                        |
| `swapped_roles`     | a kind that says whose turn it is (`user`, `assistant` …) is given to another |
| `path_not_found`    | a path that was followed leads nowhere in any record                        |
| `missing_field`, `unexpected_turn`, `unexpected_value`, `no_steps` | more than a tenth of the records are refused so |
| `empty_outputs`     | in more than a tenth of the records the agent puts nothing out              |
| `not_carried`       | too much text of what is read, or of the whole record, is in no turn; ids, kinds and times do not count |
| `not_lossless`      | a record does not come back from its row                                    |
"""  # noqa: E501

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from udfs.errors import ConfigError, RefusedRecord
from udfs.formats.events import to_source
from udfs.formats.images import with_references
from udfs.formats.jsontext import from_json, too_deep
from udfs.formats.mapped import Reading, all_parts, check_mapping, fields_read, parse
from udfs.formats.model_read import is_said
from udfs.formats.trajectory import Options, Trajectory

# Of the sampled records, so many have to be read.
LEAST_COVERED = 0.9
# Of the text in the fields that a mapping reads, so much has to be in turns; and of all text.
LEAST_CARRIED = 0.8
LEAST_CARRIED_OF_ALL = 0.25

_SHOWN_PATHS = 5
# Kinds that name whose turn it is, and whose it cannot be then.
_NOT_THE_AGENTS = {"user", "human", "system", "developer"}
_THE_AGENTS = {"assistant", "agent", "gpt", "bot", "ai"}


class Verdict(NamedTuple):
    """What came of it. `failed_check` is null for a mapping that fits; then `detail` says how much
    of the text it carries, and where the rest is, which stays in the other information."""

    failed_check: str | None
    detail: str | None
    sampled: int
    covered: int


class Sample(NamedTuple):
    """A decoded record, and its key in a dictionary file."""

    record: Any
    raw_key: str | None = None


def check(mapping: Any, samples: Sequence[Sample], *, is_reused: bool = False) -> Verdict:
    """Try a mapping on records of one shape.

    Args:
        mapping: what a model answered; anything.
        samples: at least one record.
        is_reused: it was made for another shape of the source, so paths may lead nowhere.
    """
    covered = 0

    def failed(name: str, detail: str) -> Verdict:
        return Verdict(name, detail, len(samples), covered)

    try:
        check_mapping(mapping, "the mapping")
    except ConfigError as error:
        return failed("invalid_mapping", str(error))
    if swapped := next(_swapped(mapping["read"]), None):
        return failed("swapped_roles", swapped)
    refusals: list[RefusedRecord] = []
    silent = 0
    asked: set[tuple[int, str]] = set()
    found: set[tuple[int, str]] = set()
    labels = tuple(_labels(mapping["read"]))
    carried, carried_of_all = _Carried(labels), _Carried(labels)
    for record, raw_key in samples:
        record = with_references(record)
        try:
            reading = Reading(record, mapping)
            asked |= reading.asked
            found |= reading.used
            (trajectory,) = parse(record, raw_key, Options(mapping=mapping))
            texts = _texts(trajectory)
            carried.add(_read_part(record, mapping), texts)
            carried_of_all.add(record, texts)
        except RefusedRecord as refused:
            refusals.append(refused)
            continue
        except RecursionError:
            refusals.append(too_deep())
            continue
        covered += 1
        silent += not any(step.output or step.tool_calls for step in trajectory.steps)
        if not _comes_back(record, mapping, trajectory):
            return failed("not_lossless", "A record does not come back from what was made of it.")
    if covered < LEAST_COVERED * len(samples):
        worst = Counter(refused.reason for refused in refusals).most_common(1)[0][0]
        detail = next(refused.detail for refused in refusals if refused.reason == worst)
        return failed(
            worst,
            f"{len(refusals)} of {len(samples)} records cannot be read so. One of them: {detail}",
        )
    lost = sorted({path for _, path in asked - found})
    if lost and not is_reused:
        return failed(
            "path_not_found",
            f"None of {covered} records has anything at {', '.join(lost):.300}.",
        )
    if silent > (1 - LEAST_COVERED) * len(samples):
        return failed(
            "empty_outputs",
            f"In {silent} of {len(samples)} records no turn of the agent has a text or a call.",
        )
    for each, least, where in (
        (carried, LEAST_CARRIED, "in the fields that are read"),
        (carried_of_all, LEAST_CARRIED_OF_ALL, "in the records"),
    ):
        if each.share < least:
            return failed(
                "not_carried",
                f"{each.share:.0%} of the text {where} is in turns; it has to be {least:.0%}. "
                f"Left out is above all what is at {', '.join(each.left_out())}.",
            )
    left = ", ".join(carried_of_all.left_out())
    detail = f"{carried_of_all.share:.1%} of the records' text is in turns or columns"
    detail += f"; left out is what is at {left}." if left else "."
    return Verdict(None, detail, len(samples), covered)


def _swapped(read: Any) -> Iterator[str]:
    """Kinds whose name says whose turn it is, and whose parts say otherwise."""
    for part in read:
        if "kind" in part:
            for kind, parts in part["read"].items():
                sides = {each["as"] for each in parts if "as" in each}
                name = kind.lower()
                if name in _NOT_THE_AGENTS and "agent" in sides:
                    yield f"Items of kind '{kind}' are read as the agent's."
                if name in _THE_AGENTS and sides and sides <= {"user", "system"}:
                    yield f"Items of kind '{kind}' are not read as the agent's."
                yield from _swapped([each for each in parts if "read" in each])
        elif "read" in part:
            yield from _swapped(part["read"])


def _labels(read: Any) -> Iterator[str]:
    for part in all_parts(read):
        yield from part.get("labels", ())


class _Carried:
    """How much of the text of records is in turns, by the path where it stands."""

    def __init__(self, labels: tuple[str, ...]) -> None:
        self._labels = labels
        self._whole = 0
        self._left: Counter[str] = Counter()

    @property
    def share(self) -> float:
        return 1 - self._left.total() / self._whole if self._whole else 1.0

    def add(self, value: Any, texts: str) -> None:
        """Count the strings of a value, and those that are not in the texts of turns."""
        for path, text in strings(value):
            if is_said(text):
                self._whole += len(text)
                self._left[path] += self._missing(text, texts)

    def _missing(self, text: str, texts: str) -> int:
        """How many characters of a string are in no turn."""
        if text.strip() in texts:
            return 0
        if text.lstrip()[:1] in ("{", "["):
            try:
                value = from_json(text.encode())
            except RefusedRecord:
                pass
            else:
                return sum(self._missing(each, texts) for _, each in strings(value))
        lines = text.split("\n") if self._labels else [text]
        return sum(len(line) for line in lines if self._unlabelled(line) not in texts)

    def _unlabelled(self, line: str) -> str:
        label = next((each for each in self._labels if line.startswith(each)), "")
        return line.removeprefix(label).strip()

    def left_out(self) -> list[str]:
        return [path for path, size in self._left.most_common(_SHOWN_PATHS) if size]


def strings(value: Any, path: str = "$") -> Iterator[tuple[str, str]]:
    """The strings in a value, each with its path; items of a list share one."""
    match value:
        case str():
            yield path, value
        case list():
            for item in value:
                yield from strings(item, f"{path}[*]")
        case dict():
            for key, item in value.items():
                yield from strings(item, f"{path}.{key}")


def _texts(trajectory: Trajectory) -> str:
    """All text that the turns of a trajectory hold, and its columns, as one text to search."""
    found = [trajectory.system_prompt, trajectory.tools, trajectory.user_query]
    found += [trajectory.task_id, trajectory.model_name]
    for step in trajectory.steps:
        found += [step.input, step.thought, step.output]
        for call in step.tool_calls:
            found += [call.call_id, call.name, call.arguments]
        for seen in step.observations:
            found += [seen.name, seen.call_id, seen.content]
    texts = "\0".join(text for text in found if text)
    # In JSON text, as that of arguments, strings are escaped.
    return texts + "\0" + texts.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")


def _read_part(record: Any, mapping: Mapping[str, Any]) -> Any:
    names = fields_read(record, mapping)
    return record if names is None else {name: record[name] for name in names}


def _comes_back(record: Any, mapping: Mapping[str, Any], trajectory: Trajectory) -> bool:
    return bool(to_source(trajectory) == _read_part(record, mapping))
