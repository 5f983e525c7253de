"""What an agent leaves: records that the lake's parsers take, in files that appear whole."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestration.agent.environment import tool
from orchestration.agent.loop import Episode, Limits
from orchestration.agent.model import Model
from orchestration.agent.records import Records, record
from orchestration.cli import main
from udfs.formats import chat, react_chat

TOOL = tool("lookup", "Look a word up.", {"type": "object", "properties": {}})


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a-secret-that-is-long")
    return Model("tiny", {"max_tokens": 5}, timeout_s=1.0)


def episode(style: str, *messages: dict[str, Any], **more: Any) -> Episode:
    user = {"role": "user", "content": "Who?"}
    return Episode("t1", "tools", style, [TOOL], [user, *messages], **more)


def test_a_record_has_the_columns_of_the_lake(model: Model) -> None:
    said = {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Hm.",
        "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "lookup", "arguments": "{oh"}}
        ],
    }
    told = {"role": "tool", "tool_call_id": "1", "content": "no JSON"}
    row = record(episode("tools", said, told, ended="timeout", reward=0.5), model, Limits(7))
    assert "sk-" not in json.dumps(row)
    [trajectory] = chat.parse(row, None, {})
    assert (trajectory.task_id, trajectory.model_name, trajectory.score) == ("t1", "tiny", 0.5)
    assert json.loads(trajectory.tools or "") == [TOOL]
    [step] = trajectory.steps
    assert step.thought == "Hm." and step.tool_calls[0].arguments == "{oh"
    rest = trajectory.other_information
    assert (rest["ended"], rest["most_replies"], rest["environment"]) == ("timeout", 7, "tools")


def test_a_record_of_text_has_no_tools_and_no_score_that_is_not_there(model: Model) -> None:
    said = {"role": "assistant", "content": "Action: lookup[a]"}
    told = {"role": "user", "content": "Observation: b"}
    row = record(episode("react", said, told), model, Limits())
    assert react_chat.matches(row) > chat.matches(row)
    [trajectory] = react_chat.parse(row, None, {})
    assert (trajectory.tools, trajectory.score) == (None, None)
    assert [seen.content for seen in trajectory.steps[0].observations] == ["b"]


def test_a_file_appears_when_all_is_over_and_not_before(tmp_path: Path) -> None:
    folder = tmp_path / "agent-a"
    with pytest.raises(KeyboardInterrupt), Records(folder) as records:
        records.add({"text": "é \ud83d"})
        [hidden] = folder.iterdir()
        assert hidden.name.startswith(".") and hidden.read_text().endswith("\n")
        raise KeyboardInterrupt
    [file] = folder.iterdir()
    assert file == records.path and json.loads(file.read_text()) == {"text": "é \ud83d"}

    with Records(folder):
        pass
    assert list(folder.iterdir()) == [file]  # nothing added, nothing left

    (folder / ".killed.jsonl").write_text("{}\n")
    with Records(folder) as records:
        assert [path.name for path in records.left_behind] == [".killed.jsonl"]


def error_of(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `trajlake` says of a command line that it cannot do."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["trajlake", *arguments])
        main()
    assert end.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ("--env chat", "There is nothing to do"),
        ("--env chat --query a --game b", "has no use for --game"),
        ("--env textworld --query a", "give --game and no queries"),
        ("--env textworld", "There is no game"),
        ("--env tools --query a", "needs --tools"),
        ("--env chat --query a --name ../b", "is none for a folder"),
        ("--env chat --query a --parameters [", "--parameters is no YAML"),
        ("--env chat --query a --parameters 3", "Give a mapping"),
        ("--env chat --query a --parameters {stop:,}", "--parameters sets stop"),
    ],
)
def test_what_the_command_cannot_do_is_said_before_it_asks(
    model: Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: str,
    problem: str,
) -> None:
    monkeypatch.setenv("TRAJLAKE_RAW", str(tmp_path))
    assert problem in error_of("agent", "--model", "tiny", *options.split(), capsys=capsys)
    assert not list(tmp_path.iterdir())


def test_questions_without_answers_are_not_measured(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Who?"}')
    command = ("eval", "hotpotqa", "--model", "tiny", "--questions", str(path))
    assert "question 1 has no text under `answer`" in error_of(*command, capsys=capsys)
