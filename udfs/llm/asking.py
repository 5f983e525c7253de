"""Asking: many questions at once to one endpoint, bounded, journaled, within a budget.

Retries, Retry-After and time-outs are the client's. What is added is what a long paid run needs:

* every row is in the journal before anything else happens to it, and rows come out in batches as
  replies arrive;
* an error that holds for every question (a refused key, an unknown model, an endpoint that is
  down) ends the run at once; one that holds for a single question is the answer function's;
* a budget is never exceeded: before a question is sent, the most it can cost is set aside.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import orjson

from udfs.errors import EndpointError
from udfs.llm.endpoint import CHARACTERS_PER_TOKEN, Endpoint
from udfs.llm.journal import Journal
from udfs.llm.limits import Budget, Pace
from udfs.llm.progress import RunProgress, usd
from udfs.llm.reply import Failed, Refused, Reply, Unanswered, read_completion

T = TypeVar("T")

# A batch is a Delta commit: large enough to keep files few, frequent enough to see a run grow.
_COMMIT_ROWS = 1_000
_COMMIT_SECONDS = 20.0

# Items read at a time, and batches kept for a writer that lags.
_READ_ITEMS = 16
_AHEAD_BATCHES = 5

# So many failures with no answer between them: the endpoint is down, not unlucky.
_FAILURES_IN_A_ROW = 20

# How long replies under way are waited for when a run ends early: they are being paid for.
_DRAIN_SECONDS = 30.0


class _NotAsked(BaseException):
    """The run is ending and this item has cost nothing so far: a later build takes it up.

    No `Exception`, so that no answer function takes it for one of its own.
    """


class Asker:
    """What an answer function asks with; each item has one of its own."""

    def __init__(self, run: _Run[Any], first: Reply | Unanswered | None = None) -> None:
        self._run = run
        self.is_failed = False  # whether the last question failed
        self._has_asked = False
        self._first = first  # what came by another way and needs no asking

    async def ask(self, messages: Sequence[Mapping[str, Any]], **fields: Any) -> Reply:
        """Send one chat completion request and wait for its reply.

        Args:
            messages: the conversation, in the API's shape.
            fields: further fields of this request (`response_format` …), over the endpoint's
                parameters.

        Raises:
            TooLong: it does not fit the model's context.
            Refused: there is a refusal instead of a text.
            Unsupported: the endpoint answers 400 or 422 to a request with further fields.
            Failed: there is no usable reply, after the client's retries.
        """
        try:
            if self._first is not None:
                reply = self._run.take(self._first)
            else:
                body = request_body(self._run.endpoint, messages, fields)
                reply = await self._run.ask(
                    body, is_first=not self._has_asked, has_fields=bool(fields)
                )
        except Unanswered as error:
            self.is_failed = isinstance(error, Failed)
            raise
        finally:
            self._has_asked = True
            self._first = None
        self.is_failed = False
        return reply


def request_body(
    endpoint: Endpoint, messages: Sequence[Mapping[str, Any]], fields: Mapping[str, Any]
) -> bytes:
    """The body of a chat completion request."""
    return orjson.dumps(
        {"model": endpoint.model, "messages": messages, **endpoint.parameters, **fields}
    )


def run(
    endpoint: Endpoint,
    items: Iterator[T],
    answer: Callable[[Asker, T], Awaitable[dict[str, Any]]],
    *,
    total: int,
    journal: Journal,
    what: str,
    announcement: Iterable[str] = (),
    budget: Budget | None = None,
    first: Callable[[T], Reply | Unanswered | None] = lambda item: None,
) -> Iterator[list[dict[str, Any]]]:
    """Ask about every item, and hand on the rows in batches as replies arrive.

    Args:
        endpoint: who is asked.
        items: what about; read in a thread of its own, a little ahead of the asking.
        answer: asks about one item and makes its row. `TooLong`, `Refused` and `Failed` are its
            business; every other error ends the run.
        total: how many items there are.
        journal: of the table that the rows are for.
        what: what is being done, as in "rating".
        announcement: lines to print before anything is sent.
        budget: what may be spent, where several runs share it; `endpoint.max_usd` otherwise.
        first: what the first question about an item brought, where it was asked by another way.

    Raises:
        ConfigError: there is no key.
        EndpointError: asking cannot go on; what was answered before is handed on first.
    """
    assert endpoint.key  # before anything is announced
    with RunProgress(what, total) as progress:
        for line in announcement:
            progress.say(line)
        budget = budget or Budget(endpoint.max_usd)
        under_way = _Run(endpoint, items, answer, first, journal, progress, budget)
        under_way.start()
        try:
            yield from under_way.rows_in_batches()
        finally:
            under_way.stop()
        for line in under_way.closing_lines():
            progress.say(line)
    if under_way.error:
        raise under_way.error


class _Run(Generic[T]):
    """An event loop in a thread, which asks, and a queue of the rows it made."""

    def __init__(
        self,
        endpoint: Endpoint,
        items: Iterator[T],
        answer: Callable[[Asker, T], Awaitable[dict[str, Any]]],
        first: Callable[[T], Reply | Unanswered | None],
        journal: Journal,
        progress: RunProgress,
        budget: Budget,
    ) -> None:
        self.endpoint = endpoint
        self.error: Exception | None = None
        self._items = items
        self._answer = answer
        self._first = first
        self._journal = journal
        self._progress = progress
        self._budget = budget
        self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._rows: list[dict[str, Any]] = []
        self._rows_since = time.monotonic()
        # Whole batches: a thread that woke for every row would hold up the event loop.
        self._batches: queue.Queue[list[dict[str, Any]] | None] = queue.Queue()
        self._stopped = threading.Event()
        self._failures: Counter[str] = Counter()
        self._failures_in_a_row = 0
        # A daemon: a process that is told to end does not wait for a model.
        self._thread = threading.Thread(target=self._work, name=progress.what, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ask nothing more, and wait a little for the replies under way."""
        self._stopped.set()
        self._thread.join(_DRAIN_SECONDS)

    def rows_in_batches(self) -> Iterator[list[dict[str, Any]]]:
        """Rows as they come, until the run is over."""
        while (rows := self._batches.get()) is not None:
            yield rows

    def closing_lines(self) -> Iterator[str]:
        """What a user should know at the end."""
        what, progress = self._progress.what, self._progress
        yield progress.summary()
        if self._failures:
            kinds = ", ".join(f"{n:,} {kind}" for kind, n in self._failures.most_common())
            yield f"{what}: failed with {kinds}. The next build asks about them again."
        if self._budget.is_over:
            yield (
                f"{what}: stopped at {self.endpoint.prefix}_max_usd: {usd(self._budget.spent_usd)} "
                f"of {usd(self._budget.max_usd or 0.0)} are spent, and the next question could "
                f"exceed it. {progress.total - progress.done:,} are left; raise it, or build again "
                "to go on."
            )

    async def ask(self, body: bytes, *, is_first: bool, has_fields: bool) -> Reply:
        """Send one request, when budget and pace allow it."""
        most_usd = self.endpoint.most_usd(body)
        if not await self._budget.reserve(most_usd, self._is_broken):
            if is_first:
                raise _NotAsked
            raise Failed("OverBudget: no money is left to ask once more", Reply())
        spent_usd = 0.0
        started = time.monotonic()
        try:
            tokens = self._tokens(body)
            await self._pace.turn(tokens, self._is_broken)
            if self._is_broken() and is_first:
                raise _NotAsked
            spent_usd = most_usd  # what a reply that never comes may have cost
            text = await self._client.complete(body, has_fields=has_fields)
            reply = read_completion(self.endpoint, text, latency_ms=_ms_since(started))
            if reply.cost_usd is not None:
                spent_usd = reply.cost_usd
            if reply.prompt_tokens is not None and reply.completion_tokens is not None:
                self._pace.correct(reply.prompt_tokens + reply.completion_tokens - tokens)
        except EndpointError as error:
            self.error = self.error or error
            spent_usd = 0.0
            raise
        except Unanswered as error:
            error.reply = error.reply._replace(latency_ms=_ms_since(started))
            if error.reply.cost_usd is not None:
                spent_usd = error.reply.cost_usd
            self._count(error)
            raise
        finally:
            self._budget.settle(most_usd, spent_usd)
        self._failures_in_a_row = 0
        return self.take(reply)

    def take(self, outcome: Reply | Unanswered) -> Reply:
        """Count a reply's cost, and raise where it is no answer."""
        if isinstance(outcome, Unanswered):
            if isinstance(outcome, Failed):
                self._failures[str(outcome).split(":")[0]] += 1
            raise outcome
        self._progress.spend(outcome.cost_usd)
        if outcome.refusal or outcome.finish_reason == "content_filter":
            raise Refused(outcome.refusal or "the endpoint's content filter", outcome)
        return outcome

    def _work(self) -> None:
        try:
            asyncio.run(self._answer_all())
        except Exception as error:
            self.error = self.error or error
        finally:
            self._hand_on()
            self._batches.put(None)

    async def _answer_all(self) -> None:
        from udfs.llm.client import Client  # takes a second: only where something is asked

        async with Client(self.endpoint, self._before_retry) as self._client:
            with ThreadPoolExecutor(1, thread_name_prefix="items") as thread:
                source = _Source(self._items, thread)
                under_way = {
                    asyncio.create_task(self._answer_one_by_one(source))
                    for _ in range(min(self.endpoint.concurrency, self._progress.total))
                }
                patience_s = _DRAIN_SECONDS
                while under_way and patience_s > 0:
                    _, under_way = await asyncio.wait(under_way, timeout=1.0)
                    if time.monotonic() - self._rows_since > _COMMIT_SECONDS:
                        self._hand_on()
                    patience_s -= self._is_broken()

    async def _answer_one_by_one(self, source: _Source[T]) -> None:
        """Take an item, answer it, take the next, until there is none or the run ends."""
        try:
            while not self._is_ending() and (item := await source.take()) is not None:
                asker = Asker(self, self._first(item))
                row = await self._answer(asker, item)
                self._keep(row, is_failed=asker.is_failed)
                while self._batches.qsize() >= _AHEAD_BATCHES and not self._stopped.is_set():
                    await asyncio.sleep(0.1)
        except _NotAsked:
            pass
        except Exception as error:
            self.error = self.error or error

    def _is_broken(self) -> bool:
        return self._stopped.is_set() or self.error is not None

    def _is_ending(self) -> bool:
        return self._is_broken() or self._budget.is_over

    def _keep(self, row: dict[str, Any], *, is_failed: bool) -> None:
        try:
            self._journal.append(row)
        finally:
            self._rows.append(row)
        outcome = "failed" if is_failed else "answered"
        self._progress.add(str(row.get("status") or outcome))
        if len(self._rows) >= _COMMIT_ROWS:
            self._hand_on()

    def _hand_on(self) -> None:
        if self._rows:
            self._batches.put(self._rows)
        self._rows = []
        self._rows_since = time.monotonic()

    def _count(self, error: Unanswered) -> None:
        if not isinstance(error, Failed):
            self._failures_in_a_row = 0
            return
        self._failures[str(error).split(":")[0]] += 1
        self._failures_in_a_row += 1
        if self._failures_in_a_row >= _FAILURES_IN_A_ROW and self.error is None:
            self.error = EndpointError(
                f"'{self.endpoint.model}' failed {self._failures_in_a_row} times without one "
                f"answer between, the last time with: {error}. Check OPENAI_BASE_URL and the "
                "endpoint, then run `dbt build` again; what was answered is kept."
            )

    async def _before_retry(self, body: bytes) -> None:
        """What the client sends again counts like what it sends first."""
        await self._pace.turn(self._tokens(body), self._is_broken)

    def _tokens(self, body: bytes) -> int:
        """A guess at a request's tokens, its reply at full length included."""
        return len(body) // CHARACTERS_PER_TOKEN + (self.endpoint.max_reply_tokens or 0)


class _Source(Generic[T]):
    """Items, read in a thread a little ahead of those who take them."""

    def __init__(self, items: Iterator[T], thread: ThreadPoolExecutor) -> None:
        self._items = items
        self._thread = thread
        self._waiting: deque[T] = deque()
        self._coming = thread.submit(self._read)
        self._turn = asyncio.Lock()

    async def take(self) -> T | None:
        """The next item, None at the end."""
        async with self._turn:
            if not self._waiting:
                items: list[T] = await asyncio.wrap_future(self._coming)
                self._waiting.extend(items)
                if self._waiting:
                    self._coming = self._thread.submit(self._read)
            return self._waiting.popleft() if self._waiting else None

    def _read(self) -> list[T]:
        return list(itertools.islice(self._items, _READ_ITEMS))


def _ms_since(started: float) -> int:
    return round((time.monotonic() - started) * 1000)
