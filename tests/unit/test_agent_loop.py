"""The agent's loop with a model on loopback: what ends an episode, what the model is told."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from scripted_model import Said, ScriptedModel, calls, in_turn, text

from orchestration.agent.environment import InvalidCall, Outcome, Task, tool
from orchestration.agent.loop import Episode, Limits, play, play_all
from orchestration.agent.model import Model
from orchestration.agent.styles import STYLES
from udfs.errors import ConfigError, EndpointError

KEY = "sk-a-secret-that-is-long"
WORD = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}


class Dictionary:
    """Looks words up; "slow" takes long, "broken" breaks it, "enough" ends it."""

    name = "dictionary"
    instructions = "Look words up."
    tools = (tool("lookup", "Look a word up.", WORD),)

    def __init__(self, takes_answers: bool = True) -> None:
        self.takes_answers = takes_answers

    def reset(self) -> str:
        return "What does naïve mean?"

    def step(self, tool: str, arguments: Mapping[str, Any]) -> Outcome:
        match arguments.get("word"):
            case "slow":
                time.sleep(30)
            case "broken":
                raise ZeroDivisionError("the dictionary burns")
            case "enough":
                return Outcome("That was it.", 0.75, is_done=True)
            case str(word):
                return Outcome(f"{word}: simple", 0.5)
        raise InvalidCall("A word is needed.")

    def close(self) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Episode]]:
    """Plays an episode with a model that says the given things in turn."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def play_with(
        *replies: Said, style: str = "tools", takes_answers: bool = True, **limits: Any
    ) -> Episode:
        server = ScriptedModel(in_turn(*replies))
        servers.append(server)
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        model = Model("tiny", {"max_tokens": 50}, timeout_s=limits.get("step_s", 20.0))
        task = Task("naïve", lambda: Dictionary(takes_answers))
        episode = play(task, model, STYLES[style], Limits(**limits))
        play_with.bodies = server.bodies  # type: ignore[attr-defined]
        return episode

    yield play_with
    for server in servers:
        server.close()


def told(episode: Episode) -> list[str]:
    """What the model was told after its first question."""
    return [m["content"] for m in episode.messages if m["role"] in ("tool", "user")][1:]


def test_calls_are_answered_and_a_text_is_the_answer(played: Callable[..., Episode]) -> None:
    episode = played(
        calls(("lookup", '{"word": "naïve"}'), ("lookup", '{"word": "simple"}')),
        text("It means simple."),
    )
    assert (episode.ended, episode.answer, episode.steps) == ("finished", "It means simple.", 2)
    assert episode.reward == 0.5
    assert [m["role"] for m in episode.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
    ]
    assert episode.messages[3] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "naïve: simple",
    }
    first, second = played.bodies  # type: ignore[attr-defined]
    assert first["tools"] == list(Dictionary.tools) and first["max_tokens"] == 50
    assert second["messages"] == episode.messages[:-1]


def test_the_environment_ends_an_episode_and_later_calls_are_not_made(
    played: Callable[..., Episode],
) -> None:
    episode = played(calls(("lookup", '{"word": "enough"}'), ("lookup", '{"word": "more"}')))
    assert (episode.ended, episode.reward, episode.answer) == ("finished", 0.75, None)
    assert told(episode) == ["That was it.", "Not carried out: the environment had ended."]


def test_what_is_wrong_with_an_action_is_told_and_counts_as_a_step(
    played: Callable[..., Episode],
) -> None:
    episode = played(
        calls(("__import__('os').system", "{}")),
        calls(("lookup", '{"word": ')),
        calls(("lookup", "[1]")),
        calls(("lookup", "{}")),
        text("cut of", is_cut=True),
        text(" "),
        steps=6,
    )
    assert (episode.ended, episode.steps, episode.answer) == ("step_limit", 6, None)
    assert told(episode) == [
        "There is no tool called __import__('os').system. There are: lookup.",
        "The arguments of lookup are no JSON object. Call again.",
        "The arguments of lookup are no JSON object. Call again.",
        "A word is needed.",
        "Your reply was cut off: it is too long. Say it shorter.",
        "Your reply was empty. Answer, or call a tool.",
    ]
    # The record has what the model wrote; servers that read arguments get an object.
    broken = episode.messages[4]["tool_calls"][0]["function"]["arguments"]
    sent = played.bodies[-1]["messages"][4]["tool_calls"][0]  # type: ignore[attr-defined]
    assert broken == '{"word": '
    assert json.loads(sent["function"]["arguments"]) == {"unreadable": '{"word": '}


def test_words_end_no_environment_that_ends_by_itself(played: Callable[..., Episode]) -> None:
    episode = played(text("I am done."), steps=1, takes_answers=False)
    assert (episode.ended, told(episode)) == (
        "step_limit",
        ["Nothing happened: act by calling lookup."],
    )


def test_react_text_is_understood_and_told_back(played: Callable[..., Episode]) -> None:
    episode = played(
        text('Thought: look.\nAction: lookup[{"word": "naïve"}]'),
        text("Thought: shorter.\nAction: lookup[a [strange] word]"),
        text("Action: Finish[simple [really]]\n"),
        style="react",
    )
    assert (episode.ended, episode.answer) == ("finished", "simple [really]")
    assert told(episode) == [
        "Observation: naïve: simple",
        "Observation: a [strange] word: simple",
    ]
    body = played.bodies[0]  # type: ignore[attr-defined]
    assert "tools" not in body and body["stop"] == ["\nObservation:"]
    assert '"name": "lookup"' in body["messages"][0]["content"]


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ("Thought: hm.", "There are 0 actions"),
        ("Action: lookup[a]\nAction: lookup[b]", "There are 2 actions"),
        ("Action: lookup[a]\nObservation: a: b", "Observations are not yours to write."),
        ("Action: look it up", "The action is not written as `Action: name[input]`"),
        ("Action: lookup[a] and then more", "The action is not written as"),
        ("Action: search[a]", "There is no tool called search. There are: lookup."),
    ],
)
def test_react_text_that_is_no_action_is_told_why(
    played: Callable[..., Episode], said: str, problem: str
) -> None:
    episode = played(text(said), style="react", steps=1)
    assert told(episode)[0].startswith(f"Observation: {problem}")


def test_a_slow_model_a_slow_tool_and_a_long_episode_are_timeouts(
    played: Callable[..., Episode],
) -> None:
    slow_model = played(30.0, step_s=0.3)
    assert (slow_model.ended, slow_model.steps) == ("timeout", 0)
    slow_tool = played(calls(("lookup", '{"word": "slow"}')), step_s=0.5)
    assert (slow_tool.ended, slow_tool.steps) == ("timeout", 1)
    long_one = played(30.0, step_s=20.0, episode_s=0.3)
    assert long_one.ended == "timeout"


def test_a_request_that_is_refused_and_a_tool_that_breaks_end_one_episode(
    played: Callable[..., Episode],
) -> None:
    refused = played((400, "context_length_exceeded"))
    assert refused.ended == "error" and refused.detail and KEY not in refused.detail
    broken = played(calls(("lookup", '{"word": "broken"}')))
    assert (broken.ended, broken.detail) == (
        "error",
        "lookup: ZeroDivisionError: the dictionary burns",
    )


def test_a_dead_key_and_a_dead_server_end_everything(
    played: Callable[..., Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EndpointError, match="OPENAI_API_KEY") as raised:
        played((401, "invalid_api_key"))
    assert KEY not in str(raised.value)
    with pytest.raises(EndpointError, match="Check OPENAI_BASE_URL and --model"):
        played((404, "gone"))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    dead = Model("tiny", {}, timeout_s=5.0)
    with pytest.raises(EndpointError, match=r"train\.serve"):
        list(play_all([Task("a", Dictionary)] * 3, dead, STYLES["tools"], Limits(), concurrency=2))


def test_parameters_that_the_agent_sets_itself_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for field in ("tools", "messages", "extra_headers"):
        with pytest.raises(ConfigError, match=f"{field}.*--parameters|--parameters.*{field}"):
            Model("tiny", {field: []}, timeout_s=1.0)


def test_an_address_is_told_without_its_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "https://me:secret@models.example/v1?token=secret")
    assert Model("tiny", {}, timeout_s=1.0).address == "https://models.example/v1"
