"""Asking models behind OpenAI-compatible endpoints, for whatever purpose: paid for once, within
limits, with nothing lost.

What a caller writes is one coroutine: given an `Asker` and an item, ask, and make the row that
the answer is. `run` does the rest.

    endpoint = Endpoint(model="gpt-4o-mini", prefix="rater", max_usd=2.0, prices=…)
    journal = Journal("ratings", SCHEMA, "rating_id")

    async def answer(asker, trajectory):
        try:
            reply = await asker.ask([{"role": "user", "content": …}])
        except (TooLong, Refused, Failed) as error:
            return {…, "explanation": str(error), "raw_response": error.reply.raw}
        return {…, "raw_response": reply.raw, "cost_usd": reply.cost_usd}

    def make(recovered):
        for rows in run(endpoint, items, answer, total=…, journal=journal, what="rating"):
            yield pa.RecordBatch.from_pylist(rows, schema=SCHEMA)

    return journal.stream(make)     # a RecordBatchReader, for a model with commit: batch
"""

from udfs.llm.asking import Asker, run
from udfs.llm.endpoint import Endpoint, Estimate, Price
from udfs.llm.journal import Journal, journal_path
from udfs.llm.limits import Budget
from udfs.llm.reply import Failed, Refused, Reply, TooLong, Unanswered, Unsupported

__all__ = [
    "Asker",
    "Budget",
    "Endpoint",
    "Estimate",
    "Failed",
    "Journal",
    "Price",
    "Refused",
    "Reply",
    "TooLong",
    "Unanswered",
    "Unsupported",
    "journal_path",
    "run",
]
