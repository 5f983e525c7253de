"""Synthetic trajectories for benchmarks: as many as asked for, as a stream, always the same ones.

    python tests/bench/_synthetic.py 1000000 lake

writes them to `lake/trajectories`. Trajectory `i` is a function of `(seed, i)` alone, but for
`ingested_at`, which is later where `start` is: nothing is held in memory, and
`trajectories(10_000, seed, start=1_000_000)` are the next 1% of a lake of a million, which share
tasks and near duplicates with it.

What is planted, by share of the trajectories:

| what                                                                       | share  |
|----------------------------------------------------------------------------|--------|
| copies of an earlier one in which some words are others, 1 to 4 on average | 10%    |
| copies of an earlier one with not a letter changed (often another source)  | 1%     |
| boilerplate: the same few sentences with one number in them                | 0.5%   |
| tasks that a benchmark asks word by word (`benchmark_questions`)           | 0.5%   |
| runs without an end                                                        | 3%     |
| steps without output, that repeat the one before, with arguments that are  | 1%     |
| no JSON, with a tool that there is not, answered by an error               | each   |
| observations with an e-mail address or a key                               | 0.5%   |

Three originals in a row are runs at one task. The text is pseudo-words by Zipf's law: as a text
it means nothing, but its words repeat as often as those of a language. About 2,000 characters
each; every twentieth is three times as long.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from udfs.schema import OBSERVATION, STEP, TOOL_CALL

Numbers = npt.NDArray[np.uint64]

SCHEMA = pa.schema(
    [
        ("trajectory_id", pa.string()),
        ("raw_record_id", pa.string()),
        ("raw_record_ids", pa.list_(pa.string())),
        ("content_sha256", pa.string()),
        ("source", pa.string()),
        ("environment", pa.string()),
        ("task_type", pa.string()),
        ("task_id", pa.string()),
        ("user_query", pa.string()),
        ("system_prompt", pa.string()),
        ("tools", pa.string()),
        ("model_name", pa.string()),
        ("score", pa.float64()),
        ("steps", pa.list_(STEP)),
        ("other_information", pa.string()),
        ("license", pa.string()),
        ("is_synthetic", pa.bool_()),
        ("generator", pa.string()),
        ("raw_file", pa.string()),
        ("raw_position", pa.int64()),
        ("raw_sha256", pa.string()),
        ("format", pa.string()),
        ("format_confidence", pa.float64()),
        ("parser_version", pa.string()),
        ("ingested_at", pa.timestamp("us", tz="UTC")),
    ]
)

# source → its share; the sizes of public collections differ as much.
SOURCES = {
    "shop": 0.30,
    "web_qa": 0.25,
    "calls": 0.15,
    "code": 0.10,
    "house": 0.08,
    "phone": 0.06,
    "desk": 0.04,
    "games": 0.02,
}
TOOL_NAMES = ("search", "lookup", "calculate", "open_page", "finish")

NEAR_COPIES = 0.10
EXACT_COPIES = 0.01
BOILERPLATE = 0.005
BENCHMARK_TASKS = 0.005
UNFINISHED = 0.03
BAD_STEPS = 0.01
PRIVATE = 0.005

_RUNS_PER_TASK = 3
_BOILERPLATES = 5
_EMPTY, _REPEATED, _NO_JSON, _UNKNOWN_TOOL, _ERROR = range(5)


def _mixed(*parts: Any) -> Numbers:
    """One hash of whole numbers, elementwise (the finisher of SplitMix64)."""
    h: Numbers = np.uint64(0x9E3779B97F4A7C15)  # type: ignore[assignment]
    with np.errstate(over="ignore"):
        for part in parts:
            h = (h ^ np.asarray(part, dtype=np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            h = h ^ (h >> np.uint64(31))
    return h


def _share(h: Numbers) -> npt.NDArray[np.float64]:
    """A hash as a number from 0 to below 1."""
    share: npt.NDArray[np.float64] = (h >> np.uint64(11)) * 2.0**-53
    return share


def _vocabulary() -> tuple[pa.Array, npt.NDArray[np.int32]]:
    """Pseudo-words, and a table from 16 random bits to one of them by Zipf's law."""
    starts, middles = [*"bdfghklmnprstv", "br", "st", "tr"], [*"aeiou", "ai", "ou"]
    syllables = [start + middle for start in starts for middle in middles]
    count = len(syllables)
    words = [syllables[i] if i < 60 else syllables[i % count] + syllables[i // count]
             for i in range(1_000)]  # fmt: skip
    words += [f"{words[i % 977]}{syllables[i % 113]}{syllables[i % 89]}" for i in range(7_192)]
    weights = 1.0 / (np.arange(len(words)) + 2.7)
    cumulated = np.cumsum(weights) / weights.sum()
    table = np.searchsorted(cumulated, (np.arange(65_536) + 0.5) / 65_536).astype(np.int32)
    return pa.array(words), table


_WORDS, _ZIPF = _vocabulary()


class _Texts:
    """Texts of one batch: each has a key, a length in words, and words that depend on both."""

    def __init__(self, changed: npt.NDArray[np.float64], marks: Numbers) -> None:
        self._changed = changed  # per trajectory: the share of its words that is another
        self._marks = marks  # per trajectory: what decides which

    def __call__(self, owner: Any, keys: Numbers, lengths: npt.NDArray[np.int64]) -> pa.Array:
        """Texts, shape (len(keys),); `owner` is each one's trajectory within the batch."""
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        item = np.repeat(np.arange(len(keys)), lengths)
        place = np.arange(offsets[-1]) - offsets[item]
        h = _mixed(keys[item], place)
        changes = self._changed[owner][item]
        if changes.any():
            other = _mixed(self._marks[owner][item], keys[item], place)
            is_other = _share(other) < changes
            h = np.where(is_other, _mixed(other), h)
        words = _WORDS.take(pa.array(_ZIPF[h >> np.uint64(48)]))
        return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), words), " ")


def benchmark_questions(count: int = 1_000) -> list[str]:
    """Questions as benchmarks have them; runs of `BENCHMARK_TASKS` of the tasks ask one of them."""
    numbers = np.arange(count)
    lengths = 8 + numbers % 9
    plain = _Texts(np.zeros(count), numbers.astype(np.uint64))
    texts = plain(numbers, _mixed(7, numbers), lengths).to_pylist()
    return [f"Which {text} was first?" for text in texts]


def originals(numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Which trajectory each one is a copy of; itself where it is none. Copies have no copies."""
    found = numbers.copy()
    while True:
        h = _mixed(seed, 1, found)
        is_copy = (_share(h) < NEAR_COPIES + EXACT_COPIES) & (found > 0)
        if not is_copy.any():
            return found
        earlier = (_share(_mixed(seed, 2, found)) * found).astype(np.int64)
        found = np.where(is_copy, earlier, found)


def is_boilerplate(numbers: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.bool_]:
    """Which trajectories (or their originals) are boilerplate."""
    result: npt.NDArray[np.bool_] = _share(_mixed(seed, 3, originals(numbers, seed))) < BOILERPLATE
    return result


def trajectories(
    n: int, seed: int = 0, *, start: int = 0, batch_rows: int = 4_096
) -> Iterator[pa.RecordBatch]:
    """Trajectories `start` to `start + n - 1`, in batches of `SCHEMA`."""
    questions = pa.array(benchmark_questions())
    for first in range(start, start + n, batch_rows):
        numbers = np.arange(first, min(first + batch_rows, start + n))
        yield _batch(numbers, seed, start, questions)


def reader(n: int, seed: int = 0, *, start: int = 0) -> pa.RecordBatchReader:
    """The same as a reader, which `deltalake.write_deltalake` takes as it is."""
    return pa.RecordBatchReader.from_batches(SCHEMA, trajectories(n, seed, start=start))


def _batch(
    numbers: npt.NDArray[np.int64], seed: int, start: int, questions: pa.Array
) -> pa.RecordBatch:
    rows = len(numbers)
    family = originals(numbers, seed)
    own, keys = _mixed(seed, 4, numbers), _mixed(seed, 5, family)
    is_plain = is_boilerplate(numbers, seed)
    is_near = (family != numbers) & (_share(_mixed(seed, 1, numbers)) < NEAR_COPIES)
    named = np.where(is_near, numbers, family)
    template = _mixed(seed, 6, family) % np.uint64(_BOILERPLATES)

    # Steps, flat; `owner` is each one's trajectory.
    step_counts = np.where(is_plain, 1, 3 + (_mixed(keys, 1) % np.uint64(4)).astype(np.int64))
    step_counts = np.where(_share(_mixed(keys, 2)) < 0.05, 3 * step_counts, step_counts)
    step_offsets = np.concatenate(([0], np.cumsum(step_counts)))
    owner = np.repeat(np.arange(rows), step_counts)
    place = np.arange(step_offsets[-1]) - step_offsets[owner]
    is_first, is_last = place == 0, place == step_counts[owner] - 1
    keys_of_text = np.where(is_plain, _mixed(seed, 6, template), keys)
    step_keys = _mixed(keys_of_text[owner], 3, place)
    bad = (_share(_mixed(keys[owner], 4, place)) / BAD_STEPS).astype(np.int64)
    bad = np.where(is_plain[owner] | (is_last & (bad != _EMPTY)), 99, bad)
    step_keys = np.where((bad == _REPEATED) & ~is_first, np.roll(step_keys, 1), step_keys)

    words_per_trajectory = 80 * step_counts + 15
    near_changes = 1 + _mixed(own, 1) % np.uint64(4)
    texts = _Texts(np.where(is_near & ~is_plain, near_changes / words_per_trajectory, 0.0), own)

    task = family // _RUNS_PER_TASK
    task_keys = np.where(is_plain, _mixed(seed, 8, template), _mixed(seed, 8, task))
    queries = texts(np.arange(rows), task_keys, 10 + (task_keys % np.uint64(12)).astype(np.int64))
    is_asked = (_share(_mixed(task_keys, 1)) < BENCHMARK_TASKS) & ~is_plain
    asked = questions.take(pa.array(_mixed(task_keys, 2) % np.uint64(len(questions))))
    queries = pc.if_else(pa.array(is_asked), asked, queries)
    numbered = pc.binary_join_element_wise(queries, pa.array(named).cast(pa.string()), " ")
    queries = pc.if_else(pa.array(is_plain), numbered, queries)

    length = np.where(is_plain[owner], 80, 12 + (step_keys % np.uint64(16)).astype(np.int64))
    thoughts = texts(owner, _mixed(step_keys, 1), length)
    arguments = texts(owner, _mixed(step_keys, 2), 3 + (step_keys % np.uint64(5)).astype(np.int64))
    length = 25 + (_mixed(step_keys, 4) % np.uint64(60)).astype(np.int64)
    seen = texts(owner, _mixed(step_keys, 3), length)
    seen = pc.if_else(pa.array(bad == _ERROR), "Error: request timed out, try again.", seen)
    is_private = _share(_mixed(keys[owner], 5, place)) < PRIVATE
    secret = pc.binary_join_element_wise(
        seen, pa.array([f"user{i}@mail.example" for i in (step_keys % np.uint64(9_999))]), " "
    )
    seen = pc.if_else(pa.array(is_private & (bad != _ERROR)), secret, seen)

    # The last step says the answer; the others call a tool.
    is_end = is_last & ~(_share(_mixed(keys[owner], 6)) < UNFINISHED)
    answers = pc.binary_join_element_wise("The answer is", arguments, " ")
    answers = pc.if_else(pa.array(is_plain[owner]), thoughts, answers)
    output = pc.if_else(pa.array(is_end), answers, thoughts)
    output = pc.if_else(pa.array(bad == _EMPTY), "", output)
    has_call = ~is_end & (bad != _EMPTY)
    tool = pa.array(TOOL_NAMES).take(pa.array(_mixed(step_keys, 5) % np.uint64(4)))
    tool = pc.if_else(pa.array(bad == _UNKNOWN_TOOL), "no_such_tool", tool)
    end = pc.if_else(pa.array(bad == _NO_JSON), '"', '"}')
    given = pc.binary_join_element_wise('{"query": "', arguments, end, "")
    call_ids = pa.array([f"call_{i}" for i in range(int(step_counts.max()))]).take(pa.array(place))
    calls = _lists(has_call, TOOL_CALL, [call_ids, tool, given])
    sources = pa.array(["environment"] * len(owner))
    observations = _lists(has_call, OBSERVATION, [sources, tool, call_ids, seen])

    steps = pa.StructArray.from_arrays(
        [
            pa.array(place + 1, pa.int32()),
            pc.if_else(pa.array(is_first), queries.take(pa.array(owner)), pa.scalar(None)),
            pa.nulls(len(owner), pa.string()),
            output,
            calls,
            observations,
            pc.if_else(pa.array(has_call), seen, pa.scalar(None)),
            pa.array(np.ones(len(owner), dtype=bool)),
        ],
        fields=list(STEP),
    )

    ids = _hashes([f"{seed} {number}" for number in numbers.tolist()])
    offsets = pa.array(step_offsets, pa.int32())
    said = pc.binary_join_element_wise(output, given, seen, "\n", null_handling="replace")
    said = pc.binary_join(pa.ListArray.from_arrays(offsets, said), "\n")
    contents = _hashes(pc.binary_join_element_wise(queries, said, "\n").to_pylist())

    source = np.searchsorted(np.cumsum(list(SOURCES.values())), _share(_mixed(own, 2)) - 1e-12)
    names = pa.array(SOURCES).take(pa.array(source))
    tools = "[" + ",".join(map(_tool, TOOL_NAMES)) + "]"
    model = pa.array([f"agent-{i}" for i in range(5)]).take(pa.array(_mixed(own, 3) % np.uint64(5)))
    columns = {
        "trajectory_id": ids,
        "raw_record_id": ids,
        "raw_record_ids": pa.ListArray.from_arrays(pa.array(range(rows + 1), pa.int32()), ids),
        "content_sha256": contents,
        "source": names,
        "environment": names,
        "task_type": pa.array(["questions", "tools", "code"]).take(pa.array(source % 3)),
        "task_id": pa.array(task).cast(pa.string()),
        "user_query": queries,
        "system_prompt": pa.repeat("You are an agent. Think, then act. Use the tools.", rows),
        "tools": pa.repeat(tools, rows),
        "model_name": model,
        "score": pa.array(np.round(_share(_mixed(own, 4)), 2)),
        "steps": pa.ListArray.from_arrays(offsets, steps),
        "other_information": pa.repeat("{}", rows),
        "license": pa.repeat("Apache-2.0", rows),
        "is_synthetic": pa.array(np.ones(rows, dtype=bool)),
        "generator": pa.repeat("tests/bench/_synthetic.py", rows),
        "raw_file": pa.repeat("synthetic.jsonl", rows),
        "raw_position": pa.array(numbers),
        "raw_sha256": ids,
        "format": pa.repeat("chat", rows),
        "format_confidence": pa.array(np.ones(rows)),
        "parser_version": pa.repeat("synthetic-1", rows),
        "ingested_at": pa.array(np.full(rows, 1_767_225_600_000_000 + start)).cast(
            pa.timestamp("us", tz="UTC")
        ),
    }
    return pa.RecordBatch.from_arrays(
        [columns[field.name].cast(field.type) for field in SCHEMA], schema=SCHEMA
    )


def _lists(is_there: npt.NDArray[np.bool_], item: pa.DataType, columns: list[pa.Array]) -> pa.Array:
    """Lists of one struct, or of none."""
    offsets = np.concatenate(([0], np.cumsum(is_there)))
    chosen = [column.filter(pa.array(is_there)) for column in columns]
    items = pa.StructArray.from_arrays(chosen, fields=list(item))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items)


def _hashes(texts: list[str]) -> pa.Array:
    return pa.array([hashlib.sha256(text.encode()).hexdigest() for text in texts])


def _tool(name: str) -> str:
    schema = '{"type":"object","properties":{"query":{"type":"string"}},"required":["query"]}'
    return f'{{"type":"function","function":{{"name":"{name}","parameters":{schema}}}}}'


def main(n: int, lake: Path) -> None:
    from deltalake import WriterProperties, write_deltalake

    write_deltalake(
        lake / "trajectories",
        reader(n),
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=65_536),
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
