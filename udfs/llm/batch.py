"""The Batch API: questions are handed in together, and a later build collects the answers.

OpenAI and others answer a file of requests within a day, for less (half, at OpenAI). Nobody waits:
a build submits what is unanswered and ends; every later one collects what has come, and leaves
alone what is still under way.

What was submitted is remembered in the Delta table `<table>_batches` before the endpoint is told
to begin, so no crash can make it forgotten and paid for twice. What a batch did not answer
(it expired, was cancelled or refused) becomes a failed row, and is free to be asked again.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import IO, TYPE_CHECKING, Any, TypeVar

import orjson
import pyarrow as pa

from udfs import lake
from udfs.errors import EndpointError
from udfs.llm import asking
from udfs.llm.asking import Asker, request_body
from udfs.llm.endpoint import Endpoint
from udfs.llm.journal import Journal
from udfs.llm.limits import Budget
from udfs.llm.progress import say, usd
from udfs.llm.reply import Failed, Reply, Unanswered, declined, read_completion

if TYPE_CHECKING:
    import openai
    from openai.types import Batch

T = TypeVar("T")

SCHEMA = pa.schema(
    [
        ("custom_id", pa.string()),  # the key of the row that the answer will be
        ("input_file_id", pa.string()),  # the batch's input, by which its endpoint knows it
        ("submitted_at", pa.timestamp("us", tz="UTC")),
    ]
)

# What OpenAI takes in one file, with some room.
_MOST_REQUESTS = 50_000
_MOST_BYTES = 190_000_000

_IS_OVER = frozenset({"completed", "failed", "expired", "cancelled"})

# A batch that its endpoint does not list so long after it was submitted was never begun.
_LISTED_AFTER = timedelta(hours=1)

_PAGE = 100


def run(
    endpoint: Endpoint,
    items: Callable[[], Iterator[T]],
    answer: Callable[[Asker, T], Awaitable[dict[str, Any]]],
    *,
    key: Callable[[T], str],
    keys: Iterable[str],
    journal: Journal,
    what: str,
    announcement: Callable[[int], Iterable[str]],
    budget: Budget | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Collect what earlier builds submitted, then ask about the rest, by a batch or at once.

    A question of `answer` after its first is asked at once, whatever the transport.

    Args:
        endpoint: who is asked.
        items: what about; called anew for every pass over them.
        answer: as in `udfs.llm.run`.
        key: an item's key, that of its row.
        keys: all of them.
        journal: of the table that the rows are for.
        what: what is being done, as in "rating".
        announcement: gives the lines to print before so many new questions are sent.
        budget: what may be spent; `endpoint.max_usd` otherwise.

    Raises:
        ConfigError: there is no key.
        EndpointError: asking cannot go on.
    """
    assert endpoint.key  # before anything is announced
    budget = budget or Budget(endpoint.max_usd)
    new = set(keys)
    rest: Iterator[T] = items()
    with tempfile.TemporaryFile() as file:
        if waiting := submitted(journal.table, new):
            new.difference_update(waiting)
            rest = (item for item in rest if key(item) in new)
            with _connected(endpoint) as client:
                collected = _collect(endpoint, client, waiting, file, what)
            if collected:
                yield from asking.run(
                    endpoint,
                    (item for item in items() if key(item) in collected),
                    answer,
                    total=len(collected),
                    journal=journal,
                    what=what,
                    budget=budget,
                    first=lambda item: collected[key(item)],
                )
    if not new:
        return
    if endpoint.transport == "batch":
        yield from _Submission(endpoint, answer, key, journal, what, budget).rows(
            rest, len(new), announcement(len(new))
        )
    else:
        yield from asking.run(
            endpoint,
            rest,
            answer,
            total=len(new),
            journal=journal,
            what=what,
            announcement=announcement(len(new)),
            budget=budget,
        )


class _Submission:
    """Files of first requests, each handed in as a batch."""

    def __init__(
        self,
        endpoint: Endpoint,
        answer: Callable[[Asker, T], Awaitable[dict[str, Any]]],
        key: Callable[[T], str],
        journal: Journal,
        what: str,
        budget: Budget,
    ) -> None:
        self._endpoint = endpoint
        self._answer: Callable[[Asker, Any], Awaitable[dict[str, Any]]] = answer
        self._key: Callable[[Any], str] = key
        self._journal = journal
        self._what = what
        self._budget = budget
        self._ids: list[str] = []

    def rows(
        self, items: Iterator[Any], total: int, announcement: Iterable[str]
    ) -> Iterator[list[dict[str, Any]]]:
        """Submit every item's first request; rows are only of those that need none."""
        for line in announcement:
            say(line)
        rows: list[dict[str, Any]] = []
        done = 0
        with (
            _connected(self._endpoint) as client,
            tempfile.NamedTemporaryFile(suffix=".jsonl") as file,
            asyncio.Runner() as runner,
        ):
            for item in items:
                first = runner.run(self._first_request(item))
                if isinstance(first, dict):
                    self._journal.append(first)
                    rows.append(first)
                else:
                    if not self._budget.spend(self._endpoint.most_usd(first, is_batch=True)):
                        break
                    request = b'{"custom_id":%s,"method":"POST","url":"/v1/chat/completions",' % (
                        orjson.dumps(self._key(item))
                    )
                    file.write(request + b'"body":%s}\n' % first)
                    self._ids.append(self._key(item))
                    if len(self._ids) == _MOST_REQUESTS or file.tell() > _MOST_BYTES:
                        self._submit(client, file)
                done += 1
            self._submit(client, file)
        if self._budget.is_over:
            say(
                f"{self._what}: stopped at {self._endpoint.prefix}_max_usd: the requests submitted "
                f"can cost {usd(self._budget.spent_usd)}, and one more could exceed it. "
                f"{total - done:,} are left for a later build."
            )
        if rows:
            yield rows

    async def _first_request(self, item: Any) -> bytes | dict[str, Any]:
        """The body that an item's answer begins with, or its row where it asks nothing."""
        recorder = _Recorder(self._endpoint)
        try:
            return await self._answer(recorder, item)
        except _Recorded:
            return recorder.body

    def _submit(self, client: openai.OpenAI, file: IO[bytes]) -> None:
        if not self._ids:
            return
        file.flush()
        with _plain_errors(self._endpoint), open(file.name, "rb") as requests:
            input_file_id = client.files.create(file=requests, purpose="batch").id
        # Remembered first: a crash from here on leaves no batch that nobody knows of.
        memory = f"{self._journal.table}_batches"
        count = len(self._ids)
        columns = [self._ids, [input_file_id] * count, [datetime.now(UTC)] * count]
        lake.write(
            memory,
            pa.table(columns, schema=SCHEMA).to_reader(),
            lake.WriteOptions(strategy="append"),
        )

        def forget() -> None:
            table = lake.open_table(memory)
            if table is not None:
                table.delete(f"input_file_id = {lake.sql_text(input_file_id)}")

        with _plain_errors(self._endpoint, when_refused=forget):
            # Not repeated: a request whose answer was lost could have begun the batch.
            batch = client.with_options(max_retries=0).batches.create(
                input_file_id=input_file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
            )
        say(
            f"{self._what}: {count:,} requests submitted as {batch.id}. Build again later "
            "to collect the answers; they come within a day."
        )
        self._ids = []
        file.seek(0)
        file.truncate()


class _Recorded(BaseException):
    """The first request is known. No `Exception`, so that no answer function takes it for one."""


class _Recorder(Asker):
    """Keeps the first request instead of sending it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.body = b""

    async def ask(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Reply:
        self.body = request_body(self._endpoint, messages, fields)
        raise _Recorded


class _Collected:
    """What batches brought for each of their keys; the lines themselves lie in a file."""

    def __init__(self, endpoint: Endpoint, file: IO[bytes]) -> None:
        self._endpoint = endpoint
        self._file = file
        self._lines: dict[str, tuple[int, int]] = {}
        self._missing: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._lines.keys() | self._missing.keys())

    def __contains__(self, key: str) -> bool:
        return key in self._lines or key in self._missing

    def __getitem__(self, key: str) -> Reply | Unanswered:
        if key not in self._lines:
            return Failed(self._missing[key], Reply(cost_usd=0.0))
        at, size = self._lines[key]
        self._file.seek(at)
        line = orjson.loads(self._file.read(size))
        response, error = line.get("response") or {}, line.get("error") or {}
        body = orjson.dumps(response.get("body") or error).decode()
        if error or response.get("status_code") != 200:
            code = error.get("code") or response.get("status_code")
            why = f"{code}: {error.get('message') or body}"
            return declined(self._endpoint, response.get("status_code") or 0, body, why)
        try:
            return read_completion(self._endpoint, body, latency_ms=None, is_batch=True)
        except Failed as failure:
            return failure

    def add(self, lines: Iterable[bytes]) -> None:
        """Take in a file of answers, in pieces as they come."""
        at = self._file.seek(0, os.SEEK_END)
        self._file.writelines(lines)
        self._file.seek(at)
        for line in self._file:
            self._lines[orjson.loads(line)["custom_id"]] = (at, len(line))
            at += len(line)

    def miss(self, key: str, why: str) -> None:
        """Say why there is nothing for a key, unless there is."""
        if key not in self._lines:
            self._missing[key] = why


def submitted(table: str, keys: set[str]) -> dict[str, tuple[str, datetime]]:
    """The keys that were submitted → their last input file, and when."""
    memory = f"{table}_batches"
    if not keys or lake.open_table(memory) is None:
        return {}
    wanted = pa.table({"custom_id": sorted(keys)})
    with lake.in_memory() as connection:
        found = connection.from_arrow(wanted).query(
            "wanted",
            f"""
            select
                custom_id,
                arg_max(input_file_id, submitted_at),
                epoch_us(max(submitted_at)),
            from {lake.table_scan(memory)}
            semi join wanted using (custom_id)
            group by custom_id
            """,
        )
        return {
            key: (file_id, datetime.fromtimestamp(us / 1e6, UTC))
            for key, file_id, us in found.fetchall()
        }


def _collect(
    endpoint: Endpoint,
    client: openai.OpenAI,
    submitted: Mapping[str, tuple[str, datetime]],
    file: IO[bytes],
    what: str,
) -> _Collected:
    """What has come of the batches that are over. Those still under way are left out."""
    collected = _Collected(endpoint, file)
    keys: dict[str, list[str]] = {}
    for key, (file_id, _) in submitted.items():
        keys.setdefault(file_id, []).append(key)
    batches: dict[str, Batch] = {}
    with _plain_errors(endpoint):
        for batch in client.batches.list(limit=_PAGE):
            if batch.input_file_id in keys:
                batches.setdefault(batch.input_file_id, batch)
                if len(batches) == len(keys):
                    break
    for file_id, its_keys in keys.items():
        found = batches.get(file_id)
        if found is None:
            if datetime.now(UTC) - submitted[its_keys[0]][1] > _LISTED_AFTER:
                for key in its_keys:
                    collected.miss(key, f"BatchUnknown: the endpoint has no batch of {file_id}")
            continue
        counts = found.request_counts
        progress = f", {counts.completed:,} of {counts.total:,} done" if counts else ""
        say(f"{what}: {found.id} is {found.status}{progress}; {len(its_keys):,} wait for it.")
        if found.status not in _IS_OVER:
            continue
        for output in (found.output_file_id, found.error_file_id):
            if output:
                with (
                    _plain_errors(endpoint),
                    client.files.with_streaming_response.content(output) as response,
                ):
                    collected.add(response.iter_bytes())
        errors = (found.errors and found.errors.data) or []
        said = "; ".join(error.message or "" for error in errors)
        for key in its_keys:
            collected.miss(key, f"Batch{found.status.title()}: {said or 'no answer in its files'}")
    return collected


def _connected(endpoint: Endpoint) -> openai.OpenAI:
    import openai

    return openai.OpenAI(
        api_key=endpoint.key, base_url=endpoint.address, max_retries=endpoint.max_retries
    )


@contextmanager
def _plain_errors(
    endpoint: Endpoint, when_refused: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """The client's errors as ours. `when_refused` is called where the endpoint itself said no."""
    import openai

    from udfs.llm.client import general_error

    try:
        yield
    except openai.APIStatusError as error:
        when_refused()
        why = endpoint.without_key(f"{type(error).__name__}: {error}")
        raise general_error(endpoint, error) or EndpointError(
            f"The Batch API at {error.request.url.host} refuses ({why}). Set the var "
            f"{endpoint.prefix}_transport to online, if it has none."
        ) from None
    except openai.OpenAIError as error:
        raise EndpointError(
            f"The Batch API cannot be reached ({type(error).__name__}: {error}). Nothing is lost: "
            "run `dbt build` again."
        ) from None
