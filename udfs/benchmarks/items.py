"""The items of benchmarks: which files there are, and the texts in each.

| file                                         | items                                       |
|----------------------------------------------|---------------------------------------------|
| `.json` `.jsonl` `.ndjson` `.parquet`        | as landing reads records (`udfs.landing`)   |
| `.csv`, with a header                        | one a row                                   |
| any of these + `.gz`, `.zst`                 | the same                                    |

A benchmark is the folder below the benchmarks folder that holds the file; a file beside those
folders is a benchmark by its own name without endings. An item is a text or an object. Where
nothing is declared, the first of the usual names that holds a text gives it, whatever their case.

What cannot be read ends the build, since a check against half a benchmark would say "clean" of
what nobody looked for. What is read and cannot be searched for is a row with a `problem`, which a
data test counts:

| problem            | when                                                                       |
|--------------------|----------------------------------------------------------------------------|
| `no_text`          | the item has no text where its benchmark's texts are                       |
| `few_words`        | its text has fewer than 4 words: they stand anywhere by chance             |
| `common_text`      | more than 10 items of the benchmark have the same words: an instruction    |
| `unsupported_file` | a file of another kind                                                     |
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import zstandard

from udfs import lake
from udfs.benchmarks.declared import BenchmarkSettings
from udfs.benchmarks.words import WORDS_VERSION, normalised, text_sha256
from udfs.errors import ConfigError, RefusedRecord
from udfs.formats.fields import ABSENT, inside, path_steps
from udfs.formats.jsontext import from_json
from udfs.formats.trajectory import as_identifier
from udfs.landing.files import RawFile, list_files, read_frames

TABLE = "benchmark_items"

ITEMS = pa.schema(
    [
        ("benchmark_text_id", pa.string()),
        ("benchmark", pa.string()),
        ("item_id", pa.string()),
        ("text_number", pa.int32()),
        ("text", pa.string()),
        ("text_sha256", pa.string()),
        ("answer", pa.string()),
        ("problem", pa.string()),
        ("problem_detail", pa.string()),
        ("benchmark_file", pa.string()),
        ("file_sha256", pa.string()),
        ("read_by", pa.string()),
        ("word_count", pa.int32()),
        ("item_position", pa.int64()),
    ]
)

# Changes whenever the rows of some file do.
_READER_VERSION = f"1.{WORDS_VERSION}"

_TEXT_NAMES = (
    *("question", "query", "instruction", "problem", "problem_statement", "prompt", "task"),
    *("intent", "confirmed_task", "goal", "stem", "turns", "messages", "conversations"),
    *("conversation", "text", "input"),
)
_ID_NAMES = (
    *("id", "_id", "item_id", "question_id", "task_id", "query_id", "instance_id"),
    *("annotation_id", "qid", "uid", "key"),
)
_ANSWER_NAMES = (
    *("answer", "answers", "final_answer", "expected_answer", "ground_truth", "target"),
    *("solution", "output"),
)
_ROLE_NAMES, _CONTENT_NAMES = ("role", "from"), ("content", "value")
_USERS = ("user", "human")

# Fewer words are no evidence; nor is what more items of a benchmark share.
FEWEST_WORDS = 4
COMMON = 10

# The largest field of a CSV file, far beyond any task.
_LARGEST_FIELD = 1 << 30


class _Item(NamedTuple):
    """One item as it stands in a file: its number there from 1, its key in a dictionary."""

    position: int
    value: Any
    key: str | None = None


def read_benchmarks(
    folder: Path, declared: Mapping[str, BenchmarkSettings], is_required: bool = False
) -> pa.Table | None:
    """All items of all benchmarks, as rows of `ITEMS`; None where the lake has them already.

    They are held in memory: whoever searches for them holds them as well.

    Args:
        folder: the benchmarks folder; none is as good as an empty one.
        declared: what is declared about benchmarks, by name.
        is_required: whether somebody has named the folder, so that it has to be there.

    Raises:
        ConfigError: a file that cannot be read to its end, or a benchmark without a text.
    """
    if is_required and not folder.is_dir():
        raise ConfigError(
            f"The benchmarks folder {folder} does not exist. Create it, or point "
            "TRAJLAKE_BENCHMARKS at the folder that holds your benchmarks."
        )
    files = list_files(folder) if folder.is_dir() else []
    known = _known_files()
    read_by = {file.source: _read_by(declared.get(file.source)) for file in files}
    try:
        hashes = {file.name: file.sha256() for file in files}
    except OSError as error:
        raise ConfigError(
            f"A file below {folder} cannot be read ({error}). Give yourself the right to read "
            "it, or move it away."
        ) from None
    if known == {(f.source, f.name, hashes[f.name], read_by[f.source]) for f in files}:
        return None
    rows: list[dict[str, Any]] = []
    ids: dict[str, set[str]] = {}
    for file in files:
        settings = declared.get(file.source, BenchmarkSettings())
        found = list(_rows_of_file(file, settings, ids.setdefault(file.source, set())))
        if not found:
            raise ConfigError(
                f"The benchmark file '{file.name}' holds no item. Get the whole file, or move it "
                "out of the benchmarks folder."
            )
        of_file = {"file_sha256": hashes[file.name], "read_by": read_by[file.source]}
        rows += [row | of_file for row in found]
    _check_texts(rows)
    return _table(rows)


def _known_files() -> set[tuple[str, str, str, str]] | None:
    """Which files the table in the lake was read from, and how; None where there is no table."""
    if lake.open_table(TABLE) is None:
        return None
    with lake.in_memory() as connection:
        return set(
            connection.execute(
                "select distinct benchmark, benchmark_file, file_sha256, read_by "
                f"from {lake.table_scan(TABLE)}"
            ).fetchall()
        )


def _read_by(settings: BenchmarkSettings | None) -> str:
    return f"{_READER_VERSION}-{(settings or BenchmarkSettings()).digest}"


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows with what follows from their texts, and from those of all others."""
    words = normalised(pa.array([row["text"] for row in rows], pa.string()))
    items = {
        (row["benchmark"], row["item_id"], text) for row, text in zip(rows, words, strict=True)
    }
    shared = Counter((benchmark, text) for benchmark, _, text in items)
    for row, text in zip(rows, words, strict=True):
        identity = (row["benchmark"], row["item_id"], row["text_number"])
        row["benchmark_text_id"] = hashlib.sha256(repr(identity).encode()).hexdigest()
        if row["text"] is None:
            continue
        row["text_sha256"] = text_sha256(text)
        row["word_count"] = len(text.split())
        copies = shared[row["benchmark"], text]
        if row["word_count"] < FEWEST_WORDS:
            row["problem"] = "few_words"
            row["problem_detail"] = f"it has fewer than {FEWEST_WORDS} words"
        elif copies > COMMON:
            row["problem"] = "common_text"
            row["problem_detail"] = f"{copies:,} items have these words, at most {COMMON} may"
    return pa.Table.from_pylist(rows, ITEMS)


def _check_texts(rows: list[dict[str, Any]]) -> None:
    """Refuse a benchmark whose items have no text at all: its texts have another name."""
    with_text = {row["benchmark"] for row in rows if row["text"] is not None}
    for row in rows:
        if row["benchmark"] not in with_text:
            raise ConfigError(
                f"The benchmark '{row['benchmark']}' has no text in any item "
                f"('{row['benchmark_file']}': {row['problem_detail']}). Say where the text is in "
                "models/bronze/benchmarks.yml: `text: <path>`, and `items: <path>` where a file "
                "is one document around a list; or move the file away."
            )


def _rows_of_file(
    file: RawFile, settings: BenchmarkSettings, ids: set[str]
) -> Iterator[dict[str, Any]]:
    """The rows of one file, without what is the same in all of them. `ids` are those that the
    benchmark has used."""
    place = {"benchmark": file.source, "benchmark_file": file.name}
    nothing = {"text_number": 1, "text": None, "answer": None}
    if not (file.is_supported or file.ending == ".csv"):
        note = {
            "item_id": file.name,
            "problem": "unsupported_file",
            "problem_detail": "it ends in none of .json .jsonl .ndjson .parquet .csv (.gz .zst)",
        }
        yield place | nothing | note | {"item_position": None}
        return
    for item in _items(file, settings):
        item_id = _item_id(item, settings)
        if item_id is None or item_id in ids:
            item_id = f"{file.name}:{item.position}"
        ids.add(item_id)
        texts = _texts(item.value, settings)
        of_item = place | {"item_id": item_id, "item_position": item.position}
        if not texts:
            note = {"problem": "no_text", "problem_detail": f"the item {_shape(item.value)}"}
            yield of_item | nothing | note
        for number, text in enumerate(texts, start=1):
            yield of_item | {
                "text_number": number,
                "text": text,
                "answer": _answer(item.value, settings),
                "problem": None,
                "problem_detail": None,
            }


def _items(file: RawFile, settings: BenchmarkSettings) -> Iterator[_Item]:
    if file.ending == ".csv":
        yield from _csv_items(file)
        return
    container = "record" if settings.items and not settings.container else settings.container
    for number, frame in enumerate(read_frames(file, container), start=1):
        position = frame.position or number
        place = f"item {position}"
        if frame.offset is not None:
            place += f", which begins at byte {frame.offset:,}"
        if frame.problem:
            raise _unreadable(file, place, f"{frame.problem}: {frame.detail}")
        try:
            value = from_json(frame.raw)
        except RefusedRecord as error:
            raise _unreadable(file, place, str(error)) from None
        if settings.items:
            yield from _declared_items(file, value, settings.items)
        elif isinstance(value, list) and all(isinstance(each, str) for each in value):
            for number_inside, text in enumerate(value, start=1):
                yield _Item(number_inside, text)
        else:
            yield _Item(position, value, frame.key)


def _unreadable(file: RawFile, place: str, why: str) -> ConfigError:
    return ConfigError(
        f"The benchmark file '{file.name}' cannot be read at {place}: {why.rstrip('.')}. Correct "
        "the file, or move it out of the benchmarks folder."
    )


def _declared_items(file: RawFile, document: Any, path: str) -> Iterator[_Item]:
    found = _at(document, path)
    if isinstance(found, dict):
        for place, (key, value) in enumerate(found.items(), start=1):
            yield _Item(place, value, key)
    elif isinstance(found, list):
        for place, value in enumerate(found, start=1):
            yield _Item(place, value)
    else:
        raise ConfigError(
            f"The benchmark file '{file.name}' has no list at `{path}`, where "
            f"models/bronze/benchmarks.yml declares its items; the document {_shape(document)}. "
            "Correct `items` there."
        )


def _csv_items(file: RawFile) -> Iterator[_Item]:
    csv.field_size_limit(_LARGEST_FIELD)
    number = 0
    with ExitStack() as stack:
        try:
            raw: Any = stack.enter_context(file.path.open("rb"))
            if file.packing == ".gz":
                raw = stack.enter_context(gzip.GzipFile(fileobj=raw))
            elif file.packing == ".zst":
                unpacker = zstandard.ZstdDecompressor()
                raw = stack.enter_context(unpacker.stream_reader(raw, read_across_frames=True))
            text = stack.enter_context(io.TextIOWrapper(raw, "utf-8-sig", newline=""))
            for number, row in enumerate(csv.DictReader(text, strict=True), start=1):
                if None in row or None in row.values():
                    raise csv.Error("it has more or fewer fields than the header")
                yield _Item(number, row)
        except (csv.Error, OSError, EOFError, ValueError, zstandard.ZstdError) as error:
            place = f"or behind row {number} below the header"
            why = f"{error}; it has to be UTF-8 with commas and a header, and rows as wide as that"
            raise _unreadable(file, place, why) from None


def _texts(value: Any, settings: BenchmarkSettings) -> list[str]:
    """The texts of an item, each once."""
    if settings.text:
        found = [text for path in settings.text for text in _plain_texts(_at(value, path))]
    else:
        found = list(_plain_texts(value))
    return list(dict.fromkeys(found))


def _plain_texts(value: Any) -> Iterator[str]:
    """The texts of a value: itself, those of a list, the user's turns of a conversation, or what
    has the first of the usual names."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, list):
        for each in value:
            yield from _plain_texts(each)
    elif isinstance(value, dict):
        role, content = _named(value, _ROLE_NAMES), _named(value, _CONTENT_NAMES)
        if isinstance(role, str) and content is not ABSENT:
            if role.lower() in _USERS:
                yield from _plain_texts(content)
            return
        for name in _TEXT_NAMES:
            found = list(_plain_texts(_named(value, (name,))))
            if found:
                yield from found
                return


def _item_id(item: _Item, settings: BenchmarkSettings) -> str | None:
    """What names an item: what is declared, a usual name, or its key in a dictionary."""
    if settings.id:
        return as_identifier(_at(item.value, settings.id))
    for name in _ID_NAMES:
        found = as_identifier(_named(item.value, (name,)))
        if found is not None and found.strip():
            return found
    return item.key


def _answer(value: Any, settings: BenchmarkSettings) -> str | None:
    """An item's answer as it stands there; as JSON text, where it is none."""
    found = (
        _at(value, settings.answer) if settings.answer else _named(value, _ANSWER_NAMES)
    )  # fmt: skip
    if found is ABSENT or found is None:
        return None
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """What an object has under the first of some names, whatever their case; else `ABSENT`."""
    if not isinstance(value, dict):
        return ABSENT
    given = {key.lower(): key for key in reversed(value)}
    return next((value[given[name]] for name in names if name in given), ABSENT)


def _at(value: Any, path: str) -> Any:
    for step in path_steps(path):
        value = inside(value, step)
    return value


def _shape(value: Any) -> str:
    """What a value is, for an error: "has the keys a, b"."""
    if isinstance(value, dict):
        return f"has the keys {', '.join(list(value)[:20])}"
    return f"is a {type(value).__name__}"
