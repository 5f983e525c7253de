"""What a run may spend, and how fast it may ask."""

from __future__ import annotations

import asyncio
import time

from udfs.llm.limits import Budget, Pace


def never() -> bool:
    return False


def test_a_question_waits_for_money_that_earlier_ones_give_back() -> None:
    async def ask() -> tuple[bool, bool, bool]:
        budget = Budget(1.0)
        assert await budget.reserve(0.6, never)
        waiting = asyncio.create_task(budget.reserve(0.6, never))
        await asyncio.sleep(0)
        waits = not waiting.done()
        budget.settle(0.6, 0.1)
        return waits, await waiting, budget.is_over

    assert asyncio.run(ask()) == (True, True, False)


def test_a_budget_is_over_when_a_question_does_not_fit_though_all_is_given_back() -> None:
    async def ask() -> tuple[bool, bool]:
        budget = Budget(1.0)
        assert await budget.reserve(0.6, never)
        waiting = asyncio.create_task(budget.reserve(0.6, never))
        await asyncio.sleep(0)
        budget.settle(0.6, 0.5)
        return await waiting, budget.is_over

    assert asyncio.run(ask()) == (False, True)


def test_requests_are_evenly_spaced() -> None:
    async def turns() -> list[float]:
        pace, started = Pace(60 * 50, None), time.monotonic()

        async def turn() -> float:
            await pace.turn(1)
            return time.monotonic() - started

        return sorted(await asyncio.gather(*(turn() for _ in range(11))))

    times = asyncio.run(turns())
    # The n-th is sent no earlier than n fiftieths of a second after the first.
    assert all(at >= n / 50 - 0.002 for n, at in enumerate(times))


def test_tokens_that_a_reply_did_not_have_let_the_next_one_go_sooner() -> None:
    async def seconds(correction: int) -> float:
        pace = Pace(None, 60 * 1_000)
        await pace.turn(2_000)
        pace.correct(correction)
        started = time.monotonic()
        await pace.turn(1)
        return time.monotonic() - started

    assert asyncio.run(seconds(-1_800)) < 0.5
    assert asyncio.run(seconds(-1_000)) > 0.8
