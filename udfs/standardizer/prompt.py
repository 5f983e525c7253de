"""What a model is shown of unknown records, and how its reply is read.

Records stand in the question as JSON, one a line: a line break in a record is written `\\n`, so no
record can end its line and speak outside it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from udfs.errors import RefusedRecord
from udfs.formats.jsontext import from_json, to_json
from udfs.standardizer.checks import Sample, strings
from udfs.standardizer.shape import Shape, is_deep

MAPPING_VERSION = "mapping-v1"
RECORD_VERSION = "record-v1"

_PROMPTS = Path(__file__).parent / "prompts"
MAPPING_TEMPLATE = (_PROMPTS / f"{MAPPING_VERSION}.txt").read_text(encoding="utf-8")
RECORD_TEMPLATE = (_PROMPTS / f"{RECORD_VERSION}.txt").read_text(encoding="utf-8")

# How much of records is shown: of a text, of a list, of a record, and how many records.
_TEXT = 400
_ITEMS = (6, 2)
_KEYS = 60
_RECORD = 12_000
_RECORDS = 3
_DEEPEST = 12
_MOST_VALUES, _LONGEST_VALUE = 20, 40
_LINES = 3

Message = dict[str, str]


def mapping_question(shape: Shape, samples: Sequence[Sample]) -> list[Message]:
    """The first question about a shape, with shortened records of it.

    The records shown are the longest, the shortest and one between: what one lacks, another has.
    """
    by_length = sorted(samples, key=lambda sample: len(to_json(sample.record)))
    picked = {0: None, len(by_length) // 2: None, len(by_length) - 1: None}
    shown = [_shown(by_length[at].record) for at in list(picked)[::-1][:_RECORDS]]
    parts = [
        "The keys of such a record (null stands for any value, a list shows its items' keys, * "
        "stands for keys that are data):",
        to_json(shape)[:_RECORD],
        "Values that come again and again, by path:",
        *[f"{path}: {to_json(values)}" for path, values in repeated_values(samples).items()],
        "How lines of longer texts begin again and again, by path:",
        *[f"{path}: {to_json(words)}" for path, words in repeated_beginnings(samples).items()],
        f"{len(shown)} records, one a line. Long texts and lists are shortened, which […] marks.",
        *shown,
    ]
    return [
        {"role": "system", "content": MAPPING_TEMPLATE},
        {"role": "user", "content": "\n".join(parts)},
    ]


def repeated_values(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """Short texts in lists that repeat, by path: among them are the kinds of items."""
    found: dict[str, Counter[str]] = {}
    for sample in samples:
        for path, text in strings(sample.record):
            if "[*]" in path:
                found.setdefault(path, Counter())[text] += 1
    return {
        path: [value for value, _ in values.most_common()]
        for path, values in found.items()
        if len(values) <= _MOST_VALUES
        and values.total() >= 3 * len(values)
        and max(map(len, values)) <= _LONGEST_VALUE
    }


def repeated_beginnings(samples: Sequence[Sample]) -> dict[str, list[str]]:
    """First words of lines in texts that repeat, by path: among them are labels of speakers."""
    found: dict[str, Counter[str]] = {}
    for sample in samples:
        for path, text in strings(sample.record):
            if text.count("\n") >= _LINES:
                words = (line.split(maxsplit=1)[0] for line in text.split("\n") if line.strip())
                found.setdefault(path, Counter()).update(words)
    frequent = {
        path: [
            word
            for word, count in words.most_common(_MOST_VALUES)
            if count >= _LINES and len(word) <= _LONGEST_VALUE
        ]
        for path, words in found.items()
    }
    return {path: words for path, words in frequent.items() if words}


def with_failed_check(
    messages: list[Message], reply: str, failed_check: str, detail: str
) -> list[Message]:
    """The question after an answer that failed a check, which is shown."""
    return [
        *messages,
        {"role": "assistant", "content": reply},
        {
            "role": "user",
            "content": f"The mapping was tried and failed the check {failed_check}: {detail}\n"
            "Answer with the corrected mapping and nothing else.",
        },
    ]


def record_question(record: Any) -> list[Message]:
    """The question about one record, which is shown whole."""
    return [
        {"role": "system", "content": RECORD_TEMPLATE},
        {"role": "user", "content": f"The record, in one line:\n{to_json(record)}"},
    ]


def read_reply(text: str | None) -> Any:
    """The JSON object in a reply, be it alone, in a code fence or among words.

    Raises:
        RefusedRecord: `no_json`, with what is there.
    """
    text = (text or "").strip()
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    for each in (text, fenced[1] if fenced else "", text[text.find("{") : text.rfind("}") + 1]):
        try:
            value = from_json(each.encode())
        except RefusedRecord:
            continue
        if isinstance(value, dict) and not is_deep(value):
            return value
    raise RefusedRecord("no_json", f"The reply is no JSON object; it begins {text[:80]!r}.")


def _shown(record: Any) -> str:
    """A record as one line of JSON, shortened until it is short enough."""
    text_length, (first, last) = _TEXT, _ITEMS
    while True:
        line = json.dumps(_shortened(record, text_length, first, last, 0), ensure_ascii=False)
        if len(line) <= _RECORD or text_length <= 20:
            return line[: 2 * _RECORD]
        text_length, first, last = text_length // 2, max(2, first - 1), 1


def _shortened(value: Any, text: int, first: int, last: int, depth: int) -> Any:
    if isinstance(value, str):
        if value.lstrip()[:1] in ("{", "[") and len(value) > 2:
            try:
                inner = from_json(value.encode())
            except RefusedRecord:
                pass
            else:
                return {"[JSON text]": _shortened(inner, text, first, last, depth + 1)}
        if len(value) <= text:
            return value
        head, tail = value[: text * 3 // 4], value[-text // 4 :]
        return f"{head}[… {len(value) - len(head) - len(tail):,} characters …]{tail}"
    if depth >= _DEEPEST and isinstance(value, dict | list):
        return "[… deeper …]"
    if isinstance(value, list):
        items = value
        if len(value) > first + last:
            items = [*value[:first], f"[… {len(value) - first - last:,} items …]", *value[-last:]]
        return [_shortened(item, text, first, last, depth + 1) for item in items]
    if isinstance(value, dict):
        found = {
            key[:80]: _shortened(item, text, first, last, depth + 1)
            for key, item in list(value.items())[:_KEYS]
        }
        if len(value) > _KEYS:
            found["[…]"] = f"{len(value) - _KEYS:,} keys more"
        return found
    return value
