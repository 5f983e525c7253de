"""Functions over Arrow arrays, run by processes beside this one.

Python runs one thread at a time. A function that costs time per record, as parsing does, is run
by as many processes as there are cores, once there is enough to do. Arguments and results are
Arrow streams in pipes: nothing is pickled, and a worker ends when its pipe does, in whatever way
this process ends.

A message is its length (8 bytes), then an Arrow stream of one batch. Its metadata names the
function, or the error instead of a result.
"""

from __future__ import annotations

import atexit
import gc
import queue
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import IO

import pyarrow as pa

from udfs import errors

# What workers take at a time: enough to make a message worth it, little enough to share out.
_SLICE_BYTES = 1 << 20

# Starting takes a second of every core. Less work than this is done sooner without.
_BYTES_BEFORE_START = 16 << 20

_LENGTH = struct.Struct("<q")
_PROJECT = Path(__file__).parents[1]

ArrayFunction = Callable[..., pa.Array]


class Workers:
    """Some processes that run functions over arrays, or none as long as there is little to do.

    Args:
        count: how many; with one, everything is run here.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._bytes = 0
        self._lock = threading.Lock()
        self._workers: list[_Worker] = []
        self._free: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        self._starting: threading.Thread | None = None

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that were started."""
        return [worker.process_id for worker in self._workers]

    def start(self) -> None:
        """Start them, and wait until they are ready."""
        self._workers = [_Worker() for _ in range(self._count)]
        for worker in self._workers:
            worker.wait_until_ready()
            self._free.put(worker)
        self._threads = ThreadPoolExecutor(self._count, thread_name_prefix="worker")

    def wait_until_started(self) -> None:
        """Wait for those that are being started, where there are any."""
        if self._starting is not None:
            self._starting.join()

    def run(self, function: ArrayFunction, columns: Sequence[pa.Array]) -> pa.Array:
        """A function's result: an array of the length of its arguments.

        Args:
            function: a pure function on the top level of a module, row by row.
            columns: its arguments, arrays of one length.

        Raises:
            WorkerError: a worker ended before it answered.
            TrajlakeError: whatever the function raises.
        """
        size, rows = sum(column.nbytes for column in columns), len(columns[0])
        self._start_if_worthwhile(size)
        if self._threads is None:
            return function(*columns)
        some = max(1, rows * _SLICE_BYTES // max(size, 1))
        parts = self._threads.map(
            lambda start: self._run_slice(function, [each.slice(start, some) for each in columns]),
            range(0, max(rows, 1), some),
        )
        return pa.concat_arrays(list(parts))

    def _start_if_worthwhile(self, size: int) -> None:
        """Begin to start the workers; until they are ready, work is done here."""
        with self._lock:
            self._bytes += size
            is_due = self._bytes > _BYTES_BEFORE_START and self._count > 1
            if is_due and self._starting is None:
                self._starting = threading.Thread(target=self.start, daemon=True)
                self._starting.start()

    def _run_slice(self, function: ArrayFunction, columns: list[pa.Array]) -> pa.Array:
        worker = self._free.get()
        try:
            return worker.run(function, columns)
        finally:
            self._free.put(worker)


class _Worker:
    """One process; it is asked by one thread at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd=_PROJECT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self._process.kill)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def wait_until_ready(self) -> None:
        self._receive()

    def run(self, function: ArrayFunction, columns: list[pa.Array]) -> pa.Array:
        batch = pa.RecordBatch.from_arrays(columns, [str(n) for n in range(len(columns))])
        pipe = self._process.stdin
        assert pipe is not None
        try:
            _send(pipe, batch, {"function": f"{function.__module__}:{function.__name__}"})
        except BrokenPipeError:
            raise self._has_ended() from None
        made = self._receive()
        metadata = made.schema.metadata or {}
        if b"error" in metadata:
            raise getattr(errors, metadata[b"error"].decode())(metadata[b"message"].decode())
        return made.column(0)

    def _receive(self) -> pa.RecordBatch:
        pipe = self._process.stdout
        assert pipe is not None
        made = _receive(pipe)
        if made is None:
            raise self._has_ended()
        return made

    def _has_ended(self) -> errors.WorkerError:
        return errors.WorkerError(
            f"A worker process ended with status {self._process.wait()} before it answered. "
            "If it was killed, memory may be short: set TRAJLAKE_WORKERS=1 to work without."
        )


def _send(pipe: IO[bytes], batch: pa.RecordBatch, metadata: dict[str, str]) -> None:
    sink = pa.BufferOutputStream()
    batch = batch.replace_schema_metadata(metadata)
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    message = sink.getvalue()
    pipe.write(_LENGTH.pack(message.size))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> pa.RecordBatch | None:
    """The next message; None where the pipe has ended."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    message = pipe.read(size)
    if len(message) < size:
        return None
    with pa.ipc.open_stream(message) as stream:
        return stream.read_next_batch()


def _work(given: IO[bytes], made: IO[bytes]) -> None:
    """Run what is asked for, until nothing more comes."""
    nothing = pa.RecordBatch.from_pylist([], pa.schema([]))
    import_module("udfs.formats.arrow")  # what it is mostly for, before it says that it is ready
    # Records become millions of small objects without cycles: look for cycles seldom.
    gc.freeze()
    gc.set_threshold(100_000)
    _send(made, nothing, {})
    while (batch := _receive(given)) is not None:
        module, name = batch.schema.metadata[b"function"].decode().split(":")
        try:
            result = getattr(import_module(module), name)(*batch.columns)
        except errors.TrajlakeError as error:
            _send(made, nothing, {"error": type(error).__name__, "message": str(error)})
        else:
            _send(made, pa.RecordBatch.from_arrays([result], ["result"]), {})


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _work(sys.stdin.buffer, sys.stdout.buffer)
