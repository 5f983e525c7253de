"""What an agent does lands as raw records and becomes trajectories; what is measured does not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scripted_model import Said, ScriptedModel, calls, text

from orchestration.agent.environment import Chat, Outcome, Task, tool
from orchestration.agent.loop import Limits, play
from orchestration.agent.model import Model
from orchestration.agent.records import Records, record
from orchestration.agent.styles import STYLES
from udfs import lake

HUTS = "Which mountain hut lies higher, Ansel Hut or Kite Refuge?"
TOOLS = '''
def height(hut: str) -> int:
    """How high a hut lies, in metres."""
    return {"Ansel Hut": 2310, "Kite Refuge": 2104}[hut]
'''


def say(body: dict[str, Any]) -> Said:
    """Looks at one hut, then answers; as ReAct where no tools come with the request."""
    has_looked = any(message["role"] == "assistant" for message in body["messages"])
    if body["messages"][-1]["content"] == "Wait.":
        return 60.0
    if "tools" in body:
        return text("Ansel Hut") if has_looked else calls(("height", '{"hut": "Ansel Hut"}'))
    return text("Action: Finish[Ansel Hut]" if has_looked else "Action: height[Ansel Hut]")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedModel]:
    with closing(ScriptedModel(say)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-that-is-long")
        yield server


class Game(Chat):
    """Gives half a point for any command."""

    name = "game"
    tools = (tool("height", "", {"type": "object", "properties": {"hut": {"type": "string"}}}),)

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        return Outcome("half way", 0.5)


def rows(query: str) -> list[tuple[Any, ...]]:
    with lake.connect() as connection:
        return connection.execute(query).fetchall()


def test_what_the_agent_does_is_curated_and_is_measured_apart(
    server: ScriptedModel, workplace: Path, run: Callable[..., Any]
) -> None:
    tools = workplace / "tools.py"
    tools.write_text(TOOLS)
    acting = ("--env", "tools", "--tools", str(tools), "--model", "tiny")

    for style in ("tools", "react"):
        done = run("trajlake", "agent", *acting, "--style", style, "--query", HUTS, "--json")
        assert json.loads(done.stdout)["ended"] == {"finished": 1}
    model, limits = Model("tiny", {}, 20.0), Limits(3)
    with Records(workplace / "raw" / "agent-game") as records:
        task = Task("game-7", lambda: Game("Go!"))
        records.add(record(play(task, model, STYLES["tools"], limits), model, limits))

    # The question is in a benchmark, so the build looks for it.
    question = {"id": "h1", "question": HUTS, "answer": "the Ansel hut"}
    benchmark = workplace / "benchmarks" / "huts.jsonl"
    benchmark.write_text(json.dumps(question))
    select = ("+curated_trajectories", "+quarantine", "+benchmark_checks", "+benchmark_results")
    untested = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
    run("dbt", "build", *untested, "--select", *select)

    assert rows("select count(*) from quarantine") == [(0,)]
    assert rows(
        """
        select
            source, format, model_name, score, user_query, tools is not null, len(steps),
            steps[1].tool_calls[1].name, steps[1].observations[1].content,
            other_information ->> 'ended',
        from trajectories
        order by format, source
        """
    ) == [
        ("agent-game", "chat", "tiny", 0.5, "Go!", True, 2, "height", "half way", "finished"),
        ("agent-tools", "chat", "tiny", None, HUTS, True, 2, "height", "2310", "finished"),
        ("agent-tools", "react_chat", "tiny", None, HUTS, False, 2, None, "2310", "finished"),
    ]
    assert rows("select count(*) from curated_trajectories where rater_score is not null") != [(0,)]

    asking = (*acting, "--questions", str(benchmark), "--out", str(workplace / "evaluations"))
    done = run("trajlake", "eval", "hotpotqa", *asking, "--style", "tools")
    assert "warning" not in done.stderr  # the recipe has dropped what asks the question
    with lake.connect() as connection:
        kept = connection.execute(
            "select * replace (true as is_kept) from curated_trajectories"
        ).to_arrow_table()
    lake.write("curated_trajectories", kept.to_reader(), lake.WriteOptions())
    trained = workplace / "runs" / "first"
    trained.mkdir(parents=True)
    manifest = {"run_id": "0f3a", "export": {"recipe": "default"}}
    (trained / "manifest.json").write_text(json.dumps(manifest))
    of_run = ("--budget", "3", "--run", str(trained))
    done = run("trajlake", "eval", "mint", *asking, *of_run)
    assert "warning: 2 kept trajectories were asked what is measured" in done.stderr
    measured = rows(
        """
        select
            benchmark, metric, step_budget, value, setting, endpoint, item_count,
            overlapping_trajectories, run_id,
        from measured_results
        order by benchmark, metric, step_budget
        """
    )
    place = ("tools tools", server.base_url, 1)
    assert measured == [
        ("hotpotqa", "exact_match", 8, 1.0, *place, 0, None),
        ("hotpotqa", "f1", 8, 1.0, *place, 0, None),
        ("mint", "success_rate", 1, 0.0, *place, 2, "0f3a"),
        ("mint", "success_rate", 2, 1.0, *place, 2, "0f3a"),
        ("mint", "success_rate", 3, 1.0, *place, 2, "0f3a"),
    ]
    beside = (
        "select benchmark, is_published, count(*), count(value) from benchmark_results group by all"
    )
    shown = json.loads(run("trajlake", "sql", "--json", beside).stdout)
    counts = {(r["benchmark"], r["is_published"]): tuple(r.values())[2:] for r in shown}
    assert counts["mint", True] == (45, 41) and counts["mint", False] == (3, 3)

    # Where nobody has looked, nothing is measured unless that is asked for.
    benchmark.write_text(json.dumps(question | {"question": "Who keeps the keys of Kite Refuge?"}))
    refused = run("trajlake", "eval", "hotpotqa", *asking, ok=False)
    assert refused.returncode == 1 and "1 of 1 questions are in no benchmark" in refused.stderr
    below = ("--unchecked", "--out", str(workplace / "raw" / "more"))
    refused = run("trajlake", "eval", "hotpotqa", *asking, *below, ok=False)
    assert "is below the raw folder" in refused.stderr
    run("trajlake", "eval", "hotpotqa", *asking, "--unchecked")
    assert rows("select count(*) from measured_results where overlapping_trajectories is null") == [
        (2,)
    ]
    assert not list((workplace / "raw").rglob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_loses_nothing_that_has_ended(
    server: ScriptedModel, workplace: Path, number: signal.Signals
) -> None:
    # Where tests run in the background, a shell has them ignore SIGINT, and so would the command.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    queries = workplace / "queries.txt"
    queries.write_text("Hello?\nWait.\nAfter that?\n")
    command = ["trajlake", "agent", "--env", "chat", "--model", "tiny", "--queries", str(queries)]
    server.say = lambda body: 60.0 if body["messages"][-1]["content"] == "Wait." else text("Yes.")
    folder = workplace / "raw" / "agent-chat"
    with subprocess.Popen(
        command, env=dict(os.environ), stderr=subprocess.PIPE, text=True
    ) as process:
        while len(server.bodies) < 2 and process.poll() is None:
            time.sleep(0.05)
        seen = [file.name for file in folder.iterdir() if not file.name.startswith(".")]
        process.send_signal(number)
        said = process.communicate(timeout=20)[1]
    assert process.returncode != 0 and "what had ended is in" in said
    assert seen == []  # no build sees half a file
    [file] = folder.iterdir()
    [line] = file.read_text().splitlines()
    assert json.loads(line)["messages"][-1]["content"] == "Yes."
