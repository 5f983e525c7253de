"""Workers: the same results as without, in the same order; errors come through; none is missed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from udfs import settings
from udfs.errors import ConfigError, WorkerError
from udfs.formats.arrow import parse_records
from udfs.workers import Workers


def columns(count: int, declared: str | None = None) -> list[pa.Array]:
    """Arguments of `parse_records`, 20 KB a record."""
    records = [
        {
            "id": f"run-{number}",
            "messages": [
                {"role": "user", "content": "x" * 20_000},
                {"role": "assistant", "content": f"answer {number}"},
            ],
        }
        for number in range(count)
    ]
    raw = pa.array([json.dumps(record).encode() for record in records], pa.binary())
    nothing = pa.nulls(count, pa.string())
    return [raw, nothing, pa.array([declared] * count, pa.string()), nothing]


@pytest.fixture
def started() -> Callable[[int], Workers]:
    """Workers that are ready before anything is asked."""

    def start(count: int) -> Workers:
        workers = Workers(count)
        workers.start()
        return workers

    return start


def test_results_are_those_of_the_function_in_its_order(
    started: Callable[[int], Workers],
) -> None:
    given = columns(300)  # several slices for each worker

    assert started(2).run(parse_records, given).equals(parse_records(*given))


def test_they_start_once_there_is_enough_to_do() -> None:
    workers = Workers(2)
    given = columns(20)

    for _ in range(60):  # 24 MB
        assert workers.run(parse_records, given).equals(parse_records(*given))
    workers.wait_until_started()

    assert workers.run(parse_records, given).equals(parse_records(*given))
    assert len(workers.processes) == 2


def test_one_worker_means_none_beside_this_process() -> None:
    workers = Workers(1)
    given = columns(1_000)

    workers.run(parse_records, given)

    assert workers.processes == []


def test_an_error_of_the_function_comes_through(started: Callable[[int], Workers]) -> None:
    with pytest.raises(ConfigError, match="no format 'nonsense'"):
        started(2).run(parse_records, columns(10, declared="nonsense"))


def test_a_worker_that_is_killed_is_said(started: Callable[[int], Workers]) -> None:
    workers = started(2)
    for process in workers.processes:
        os.kill(process, signal.SIGKILL)

    with pytest.raises(WorkerError, match="ended with status -9"):
        workers.run(parse_records, columns(10))


def test_workers_end_with_this_process_however_it_ends() -> None:
    program = """
        import os, signal, sys
        from udfs.workers import Workers
        workers = Workers(2)
        workers.start()
        print(*workers.processes, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == -signal.SIGKILL
    for process in ended.stdout.split():
        wait_for_end_of(int(process))


def wait_for_end_of(process: int) -> None:
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"process {process} still runs")


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_a_number_of_workers_that_is_none_is_refused(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAJLAKE_WORKERS", text)

    with pytest.raises(ConfigError, match="TRAJLAKE_WORKERS"):
        settings.worker_count()
