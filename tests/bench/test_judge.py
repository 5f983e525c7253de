"""How quickly a judge is asked, against the most that its latency allows, and against peers.

    make bench

A server in a process of its own answers every request after 200 ms. With 64 requests at a time,
nobody can get more than 320 answers a second from it. Measured is the whole rating of a table of
trajectories: reading them, rendering prompts, asking, reading replies, journal and Delta commits.
Peers in the same run, against the same server with the same prompts:

* the script that people write: the openai client, `asyncio.gather`, a semaphore; it keeps nothing;
* distilabel, where `DISTILABEL_PYTHON` names a Python that has it (it wants a virtual environment
  of its own: `pip install "distilabel[openai]==1.5.3" requests`).

A ratio of 2 means that we are twice as quick.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from rich.table import Table

from udfs import lake
from udfs.rater.judge import Judge
from udfs.schema import STEP

PROJECT = Path(__file__).resolve().parents[2]

AT_A_TIME = 64
LATENCY_MS = 200
MOST_PER_SECOND = AT_A_TIME / LATENCY_MS * 1000
COUNT, LARGE_COUNT = 5_000, 20_000
BATCH = 500

PREAMBLE = """
import json, os, re, sys, time
prompts_file, result_file = sys.argv[1:]

def done(started):
    seconds = time.perf_counter() - started
    # What wait4 says of a process includes the one that it was forked from.
    peak_kb = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]
    with open(result_file, "w") as file:
        json.dump([seconds, int(peak_kb) // 1024], file)
"""

TRAJLAKE = (
    PREAMBLE
    + """
from udfs import lake
from udfs.llm import Endpoint
from udfs.rater.judge import Judge
from udfs.rater.ledger import rate_unrated
from udfs.rater.openai_rater import OpenAIRater

prices = {"judge-1": {"input": 0.15, "output": 0.60}}
endpoint = Endpoint("judge-1", {"temperature": 0, "max_tokens": 100}, prices, concurrency=64)
with lake.connect() as connection:  # which a build has
    started = time.perf_counter()
    rows = rate_unrated(connection.table("trajectories"), OpenAIRater(endpoint, Judge()))
    lake.write("ratings", rows, lake.WriteOptions(strategy="append", commit="batch"))
done(started)
"""
)

GATHER = (
    PREAMBLE
    + """
import asyncio
started = time.perf_counter()
import openai

async def main():
    prompts = [json.loads(line) for line in open(prompts_file)]
    turn = asyncio.Semaphore(64)
    async with openai.AsyncOpenAI() as client:
        async def ask(messages):
            async with turn:
                reply = await client.chat.completions.create(
                    model="judge-1", messages=messages, temperature=0, max_tokens=100
                )
            return float(reply.choices[0].message.content.splitlines()[0])
        return await asyncio.gather(*map(ask, prompts))

assert len(asyncio.run(main())) > 0
done(started)
"""
)

DISTILABEL = (
    PREAMBLE
    + """
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
started = time.perf_counter()
from distilabel.models.llms import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

if __name__ == "__main__":
    data = [{"instruction": json.loads(line)[-1]["content"]} for line in open(prompts_file)]
    with Pipeline(name="judge") as pipeline:
        load = LoadDataFromDicts(data=data, batch_size=64)
        model = OpenAILLM(
            model="judge-1", base_url=os.environ["OPENAI_BASE_URL"], api_key="any",
            generation_kwargs={"max_new_tokens": 100, "temperature": 0.0},
        )
        load >> TextGeneration(llm=model, input_batch_size=64)
    made = pipeline.run(use_cache=False)["default"]["train"]
    assert len(made) == len(data) and made[0]["generation"]
    done(started)
"""
)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("_slow_judge.py"), str(LATENCY_MS)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    monkeypatch.setenv("OPENAI_BASE_URL", server.stdout.readline().strip())
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    yield
    server.kill()
    server.wait()


def trajectories(count: int) -> Iterator[pa.RecordBatch]:
    """Runs of four steps, about a thousand tokens each; in batches, to keep this process small."""
    for start in range(0, count, BATCH):
        ids = [f"{i:064}" for i in range(start, min(start + BATCH, count))]
        runs = [
            [
                {
                    "step_id": n,
                    "input": f"Question {i}: {'what was asked ' * 20}" if n == 1 else None,
                    "output": f"Thought: {'I should look it up. ' * 8}Action: search[{i} {n}]",
                    "tool_calls": [],
                    "observations": [],
                    "next_observation": f"Page {n}: {'what it says ' * 40}",
                    "is_trainable": True,
                }
                for n in range(1, 5)
            ]
            for i in ids
        ]
        nothing = pa.nulls(len(ids), pa.string())
        yield pa.record_batch(
            {
                "trajectory_id": ids,
                "content_sha256": ids,
                "user_query": nothing,
                "system_prompt": nothing,
                "steps": pa.array(runs, pa.list_(STEP)),
                "score": pa.nulls(len(ids), pa.float64()),
            }
        )


def test_judge(workplace: Path, judge: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    prompts, result = workplace / "prompts.jsonl", workplace / "result.json"
    with prompts.open("w") as file:
        for batch in trajectories(COUNT):
            for run in batch.to_pylist():
                file.write(json.dumps(Judge().begin([run]).messages) + "\n")

    def measured(python: str, code: str) -> tuple[float, int]:
        """Seconds and peak megabytes of a script in a process of its own."""
        script = workplace / "script.py"  # a file: distilabel starts its workers from it
        script.write_text(code)
        subprocess.run([python, script, prompts, result], check=True)
        seconds, peak_mb = json.loads(result.read_text())
        return seconds, peak_mb

    ours: dict[int, tuple[float, int]] = {}
    for count in (COUNT, LARGE_COUNT):
        monkeypatch.setenv("TRAJLAKE_LAKE", str(workplace / f"lake-{count}"))
        schema = next(trajectories(1)).schema
        rows = pa.RecordBatchReader.from_batches(schema, trajectories(count))
        lake.write("trajectories", rows, lake.WriteOptions())
        ours[count] = measured(sys.executable, TRAJLAKE)
    peers = {"openai client, asyncio.gather": measured(sys.executable, GATHER)}
    if python := os.environ.get("DISTILABEL_PYTHON"):
        peers["distilabel (its first process)"] = measured(python, DISTILABEL)

    table = Table(
        title=f"{AT_A_TIME} requests at a time, {LATENCY_MS} ms each", title_justify="left"
    )
    for column in ("", "requests", "seconds", "a second", "of the most", "peak MB", "ratio"):
        table.add_column(column, justify="right" if column else "left")
    found_rows = [("Trajlake", count, *found) for count, found in ours.items()]
    found_rows += [(name, COUNT, *found) for name, found in peers.items()]
    for name, count, took, peak_mb in found_rows:
        share = count / took / MOST_PER_SECOND
        ratio = "" if name == "Trajlake" else f"{took / ours[COUNT][0]:.1f}×"
        table.add_row(
            name, f"{count:,}", f"{took:.1f}", f"{count / took:.0f}", f"{share:.0%}",
            f"{peak_mb:,}", ratio,
        )  # fmt: skip
    Console(width=120).print(table)
    if len(peers) == 1:
        print("distilabel was not measured: set DISTILABEL_PYTHON")
    assert ours[COUNT][0] <= COUNT / MOST_PER_SECOND / 0.9
    assert ours[LARGE_COUNT][1] < ours[COUNT][1] + 100, "memory grows with the trajectories"
