"""The `openai` rater: a judge behind any OpenAI-compatible endpoint.

What is asked and how a reply is read is in `udfs.rater.judge`; how it is asked, at what cost and
within which limits, in `udfs.llm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from udfs.llm import Asker, Budget, Endpoint, Estimate, Journal, batch
from udfs.rater.judge import Judge
from udfs.rater.ledger import TABLE, Identity, Unrated, record_batch

# Trajectories read from the lake at a time.
_READ_ROWS = 16


class OpenAIRater:
    """A judge at an endpoint, as a rater of the ledger; raters of a committee share a budget."""

    def __init__(self, endpoint: Endpoint, judge: Judge, budget: Budget | None = None) -> None:
        self._endpoint = endpoint
        self._judge = judge
        self._budget = budget
        rate_parameters = json.dumps(dict(endpoint.parameters), sort_keys=True)
        self.identity = Identity(
            rater="openai",
            rate_model=endpoint.model,
            rate_parameters=rate_parameters,
            prompt_version=judge.template.version,
            decided_by=json.dumps(["openai", judge.decided_by, endpoint.model, rate_parameters]),
            long_rule=judge.long_rule,
        )

    def rate(self, unrated: Unrated, journal: Journal) -> Iterator[pa.RecordBatch]:
        """Ask about every trajectory, and hand on the ratings in batches as replies arrive.

        Raises:
            EndpointError: the judge cannot go on; what it answered before is handed on first.
        """
        identity = self.identity

        def announcement(count: int) -> Iterator[str]:
            name = f"rater openai ({identity.prompt_version})"
            yield from self._endpoint.announcement(
                name, count, "trajectories", self._characters(unrated, count)
            )

        for rows in batch.run(
            self._endpoint,
            lambda: _trajectories(unrated),
            self._rating,
            key=lambda each: identity.rating_id(each["content_sha256"], each["attempt"]),
            keys=(identity.rating_id(*key) for key in unrated.attempts()),
            journal=journal,
            what="rating",
            announcement=announcement,
            budget=self._budget,
        ):
            yield record_batch(rows)

    def estimate(self, unrated: Unrated) -> tuple[Estimate, int]:
        """What the judge would be asked now, and how many questions are with it already.

        Nothing is sent. Those that wait in a batch are paid for, and are not asked again.
        """
        keys = {self.identity.rating_id(*key) for key in unrated.attempts()}
        waiting = len(batch.submitted(TABLE, keys))
        count = len(unrated) - waiting
        characters = self._characters(unrated, count) if count else 0
        return self._endpoint.estimate(count, characters), waiting

    def _characters(self, unrated: Unrated, count: int) -> int:
        """The length of so many prompts, all trajectories taken to be as long as the mean."""
        return count * (unrated.characters() // len(unrated) + self._judge.template.characters)

    async def _rating(self, asker: Asker, trajectory: dict[str, Any]) -> dict[str, Any]:
        answer = await self._judge.rate(asker, trajectory)
        return self.identity.row(trajectory["content_sha256"], trajectory["attempt"], **answer)


def _trajectories(unrated: Unrated) -> Iterator[dict[str, Any]]:
    for rows in unrated.batches(_READ_ROWS):
        yield from rows.to_pylist()
