"""Asking a model for any purpose: the real client against a real server, into a table of one's own.

What ratings add to it is in test_rater_openai.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from _judge_server import COMPLETION_TOKENS, PROMPT_TOKENS, JudgeServer

from udfs import lake
from udfs.llm import Asker, Endpoint, Failed, Journal, Unsupported, run

SCHEMA = pa.schema([("id", pa.string()), ("said", pa.string()), ("cost_usd", pa.float64())])
PRICES = {"judge-1": {"input": 1.0, "output": 10.0}}
COST_USD = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JudgeServer]:
    judge = JudgeServer()
    monkeypatch.setenv("TRAJLAKE_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("OPENAI_BASE_URL", judge.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    yield judge
    judge.close()


def said_about(items: list[str], endpoint: Endpoint, **fields: Any) -> dict[str, str]:
    """What is said to each item; every one is asked about twice, then with further fields."""
    journal = Journal("answers", SCHEMA, "id")

    async def answer(asker: Asker, item: str) -> dict[str, Any]:
        replies = []
        try:
            question = {"role": "user", "content": item}
            replies.append(await asker.ask([question]))
            replies.append(await asker.ask([question, question]))
            if fields:
                replies.append(await asker.ask([question], **fields))
            said = str(replies[-1].text)
        except (Failed, Unsupported) as error:
            said = f"{type(error).__name__} {error}"
        return {"id": item, "said": said, "cost_usd": sum(r.cost_usd or 0.0 for r in replies)}

    def make(recovered: pa.Table) -> Iterator[pa.RecordBatch]:
        rows = run(endpoint, iter(items), answer, total=len(items), journal=journal, what="asking")
        for batch in rows:
            yield pa.RecordBatch.from_pylist(batch, schema=SCHEMA)

    lake.write("answers", journal.stream(make), lake.WriteOptions(strategy="append"))
    with lake.connect() as connection:
        found = connection.sql("select id, said, cost_usd from answers").fetchall()
    assert all(cost >= 0.0 for *_, cost in found)
    return {item: said for item, said, _ in found}


def test_an_item_may_be_asked_about_as_often_as_its_answer_wants(server: JudgeServer) -> None:
    said = said_about(["task 1", "task 2"], Endpoint("judge-1"), user="me")

    assert said == {"task 1": "1\nTask 1 was done so.", "task 2": "2\nTask 2 was done so."}
    assert server.asked == {1: 3, 2: 3}
    assert [body.get("user") for body in server.bodies].count("me") == 2


def test_fields_that_an_endpoint_does_not_take_are_the_items_own_business(
    server: JudgeServer,
) -> None:
    said = said_about(
        ["task 1 do:prose-no-json"], Endpoint("judge-1"), response_format={"type": "json_object"}
    )

    assert said["task 1 do:prose-no-json"].startswith("Unsupported BadRequestError")


def test_a_second_question_that_money_does_not_allow_keeps_what_the_first_cost(
    server: JudgeServer,
) -> None:
    """The first question is answered, so the item has a row; no other item is begun."""
    endpoint = Endpoint(
        "judge-1", {"max_tokens": 50}, PRICES, concurrency=1, max_usd=COST_USD + 0.000_5
    )
    said = said_about([f"task {i}" for i in range(5)], endpoint)

    assert list(said) == ["task 0"] and said["task 0"].startswith("Failed OverBudget")
    assert sum(server.asked.values()) == 1
