"""Tokenising an export, a chunk of positions at a time, each into a file of its own.

A worker process imports this module and what it imports, so it leaves out whatever is slow to
import and not needed there: models.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orchestration.printing import note
from train.data import Export, Pair, Sample
from train.encode import Encoder, Refused, Tokens
from udfs.errors import WorkerError
from udfs.folders import atomic_file
from udfs.settings import worker_count

_LINES_PER_BATCH = 64
_LINE_EVERY_S = 10.0

# What comes of a chunk: segments, and refused samples without tokens, in the order of the plan.
_SCHEMA = pa.schema(
    [
        ("position", pa.int64()),
        ("part", pa.int32()),
        ("trajectory_id", pa.string()),
        ("weight", pa.float32()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("pair_id", pa.string()),
    ]
)


@dataclass(frozen=True)
class Chunk:
    """Positions `start` to `stop` - 1 of a split, and the file for what comes of them."""

    split: str
    start: int
    stop: int
    file: Path

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Segment:
    """A tokenised sample, a part of one or a side of a pair, with its place in the export."""

    position: int
    trajectory_id: str
    weight: float
    tokens: Tokens
    pair_id: str | None = None

    def __len__(self) -> int:
        return len(self.tokens.input_ids)

    @property
    def trained_tokens(self) -> int:
        return int(self.tokens.loss_mask.sum())


def encode_chunks(export: Export, encode: Encoder, chunks: Sequence[Chunk]) -> None:
    """Write the files of chunks, by processes beside this one where there is enough to do.

    Every file appears whole or not at all.

    Raises:
        TrainingError: the export holds a row that is no sample.
        WorkerError: a process was killed.
    """
    positions = sum(len(chunk) for chunk in chunks)
    workers = min(worker_count(), positions // max(map(len, chunks), default=1))
    with _progress(positions) as advance:
        if workers <= 1:
            for chunk in chunks:
                _encode_chunk(export, encode, chunk)
                advance(chunk)
            return
        with ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin_work,
            initargs=(export, encode),
        ) as pool:
            futures = {pool.submit(_work, chunk): chunk for chunk in chunks}
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(futures[future])
            except BrokenProcessPool:
                raise WorkerError(
                    "A process that tokenises ended before it was done. If it was killed, memory "
                    "may be short: set TRAJLAKE_WORKERS=1 and run again; it goes on from what is "
                    "done."
                ) from None
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def read_chunk(file: Path) -> Iterator[Segment | Refused]:
    """What came of a chunk, in the order of the plan."""
    with pa.memory_map(str(file)) as source, pa.ipc.open_file(source) as chunk:
        for number in range(chunk.num_record_batches):
            batch = chunk.get_batch(number)
            ids, masks = batch.column("input_ids"), batch.column("loss_mask")
            for i, line in enumerate(batch.drop_columns(["input_ids", "loss_mask"]).to_pylist()):
                trajectory_id, pair_id = line["trajectory_id"], line["pair_id"]
                if line["reason"] is not None:
                    yield Refused(trajectory_id, line["reason"], line["detail"], pair_id)
                    continue
                tokens = Tokens(
                    ids[i].values.to_numpy().copy(),  # segments of open rows outlive the file
                    masks[i].values.to_numpy(zero_copy_only=False),
                    line["part"],
                )
                yield Segment(line["position"], trajectory_id, line["weight"], tokens, pair_id)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Chunk], None]]:
    """Samples done, rate and time left: a bar in a terminal, a line now and then elsewhere."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    began = said_at = time.monotonic()
    done = 0
    with Progress(
        TextColumn("tokenising"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=total, rate=0.0)

        def advance(chunk: Chunk) -> None:
            nonlocal done, said_at
            done += len(chunk)
            now = time.monotonic()
            rate = done / (now - began)
            bar.update(task, completed=done, rate=rate)
            if bar.disable and now - said_at > _LINE_EVERY_S:
                said_at = now
                left = (total - done) / rate
                note(f"tokenising: {done:,} of {total:,}, {rate:,.0f}/s, {left:,.0f} s left")

        yield advance


# --- in a worker process --------------------------------------------------------------------------

_at_work: tuple[Export, Encoder]


def _begin_work(export: Export, encode: Encoder) -> None:
    global _at_work
    _at_work = export, encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot say goodbye."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> None:
    _encode_chunk(*_at_work, chunk)


def _encode_chunk(export: Export, encode: Encoder, chunk: Chunk) -> None:
    units = export.pairs if export.is_of_pairs else export.samples
    lines = (
        line
        for unit in units(chunk.split, chunk.start, chunk.stop)
        for line in _lines(unit, encode(unit))
    )
    with atomic_file(chunk.file) as staging, pa.ipc.new_file(str(staging), _SCHEMA) as file:
        while some := list(islice(lines, _LINES_PER_BATCH)):
            file.write_batch(record_batch(_SCHEMA, zip(*some, strict=True)))


def _lines(unit: Sample | Pair, outcome: list[Tokens] | Refused) -> Iterator[tuple[Any, ...]]:
    pair_id = unit.pair_id if isinstance(unit, Pair) else None
    if isinstance(outcome, Refused):
        why = (outcome.reason, outcome.detail, pair_id)
        yield unit.position, 0, outcome.trajectory_id, None, None, None, *why
        return
    samples = (unit.chosen, unit.rejected) if isinstance(unit, Pair) else repeat(unit)
    for sample, part in zip(samples, outcome, strict=False):
        tokens = (part.input_ids, part.loss_mask)
        where = (unit.position, part.part, sample.trajectory_id, sample.weight)
        yield *where, *tokens, None, None, pair_id


def record_batch(schema: pa.Schema, columns: Iterable[Iterable[Any]]) -> pa.RecordBatch:
    """Columns of Python values, or of arrays of numbers where a column is of lists."""
    arrays = [
        pa.array(list(column), type) for column, type in zip(columns, schema.types, strict=True)
    ]
    return pa.record_batch(arrays, schema=schema)
