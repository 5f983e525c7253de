"""How far a run of questions is: a bar in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0
_BAR_EVERY_S = 0.1


class RunProgress:
    """Counts answers and cost, and shows rows, rate, time left and cost on standard error.

    Args:
        what: what is being done, as in "rating".
        total: how often.
    """

    def __init__(self, what: str, total: int) -> None:
        self.done = 0
        self.outcomes: Counter[str] = Counter()
        self.cost_usd: float | None = None
        self.total = total
        self.what = what
        self._console = _console()
        self._started = self._said_at = time.monotonic()
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f}/s"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[cost]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=total, rate=0.0, cost="")

    def __enter__(self) -> RunProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show(time.monotonic())
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line, above the bar where there is one."""
        _print(self._console, line)

    def spend(self, cost_usd: float | None) -> None:
        """Count what a reply cost."""
        if cost_usd is not None:
            self.cost_usd = (self.cost_usd or 0.0) + cost_usd

    def add(self, outcome: str) -> None:
        """Count one answer, by what came of it."""
        self.done += 1
        self.outcomes[outcome] += 1
        now = time.monotonic()
        if now - self._said_at > (_LINE_EVERY_S if self._bar.disable else _BAR_EVERY_S):
            self._said_at = now
            self._show(now)
            if self._bar.disable:
                rate = self.done / (now - self._started)
                left = (self.total - self.done) / rate
                self.say(
                    f"{self.what}: {self.done:,} of {self.total:,}, {rate:.1f}/s, "
                    f"{left:,.0f} s left {self._cost()}"
                )

    def summary(self) -> str:
        """What was done, in one line."""
        line = f"{self.what}: {self.done:,} of {self.total:,} asked {self._cost()}".rstrip()
        outcomes = ", ".join(f"{n:,} {outcome}" for outcome, n in self.outcomes.most_common())
        return f"{line}; {outcomes}" if outcomes else line

    def _show(self, now: float) -> None:
        rate = self.done / max(now - self._started, 1e-9)
        self._bar.update(self._task, completed=self.done, rate=rate, cost=self._cost())

    def _cost(self) -> str:
        return "" if self.cost_usd is None else usd(self.cost_usd)


def say(line: str) -> None:
    """Print a line on standard error, where no run is under way."""
    _print(_console(), line)


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _print(console: Console, line: str) -> None:
    console.print(line, markup=False)


def usd(amount: float) -> str:
    """An amount of money; below ten dollars with what a single reply costs."""
    return f"${amount:,.4f}" if amount < 10 else f"${amount:,.2f}"
