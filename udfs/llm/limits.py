"""What a run may do: money by reservation, requests and tokens by the minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


class Budget:
    """Money that may be spent: the most a question can cost is set aside before it is sent.

    Runs that follow each other may share one.

    Args:
        max_usd: the most that all of them may spend; None for no limit.
    """

    def __init__(self, max_usd: float | None) -> None:
        self.max_usd = max_usd
        self.spent_usd = 0.0
        self.is_over = False  # whether a question was left out because of it
        self._reserved_usd = 0.0
        self._reservations = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def reserve(self, most_usd: float, is_ending: Callable[[], bool]) -> bool:
        """Set money aside, when earlier questions have given back enough; False where there is
        not enough even then, or the run ends while this waits."""
        while not self.fits(most_usd):
            if is_ending():
                return False
            if not self._reservations:
                self.is_over = True
                return False
            settled = asyncio.get_running_loop().create_future()
            self._waiting.append(settled)
            await settled
        self._reserved_usd += most_usd
        self._reservations += 1
        return True

    def spend(self, most_usd: float) -> bool:
        """Count what will be spent at most, at once; False where there is not enough."""
        if not self.fits(most_usd):
            self.is_over = True
            return False
        self.spent_usd += most_usd
        return True

    def settle(self, reserved_usd: float, spent_usd: float) -> None:
        """Give back what was set aside for a question, and count what it cost."""
        self._reserved_usd -= reserved_usd
        self._reservations -= 1
        self.spent_usd += spent_usd
        for settled in self._waiting:
            if not settled.done():
                settled.set_result(None)
        self._waiting.clear()

    def fits(self, most_usd: float) -> bool:
        """Whether so much can be spent on top of what is spent and set aside."""
        if self.max_usd is None:
            return True
        return self.spent_usd + self._reserved_usd + most_usd <= self.max_usd


class Pace:
    """Requests and tokens a minute, evenly spaced: exact over any minute, and no bursts.

    Tokens are guessed before a request and corrected when its reply says how many they were; the
    correction moves the requests behind it.

    Args:
        requests_per_minute: None for no limit.
        tokens_per_minute: None for no limit.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._request_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._token_s = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._request_at = self._tokens_at = time.monotonic()

    async def turn(self, tokens: int, is_ending: Callable[[], bool] = lambda: False) -> None:
        """Wait until a request of so many tokens may be sent, or the run is ending."""
        now = time.monotonic()
        at = max(now, self._request_at, self._tokens_at)
        self._request_at = at + self._request_s
        self._tokens_at = at + tokens * self._token_s
        while (left_s := at - time.monotonic()) > 0 and not is_ending():
            await asyncio.sleep(min(left_s, 1.0))

    def correct(self, tokens: int) -> None:
        """Count so many tokens more (or fewer) than a request was guessed to have."""
        self._tokens_at += tokens * self._token_s
