"""How a model is told of its tools, and how what it says is understood: calls, or ReAct text.

| style   | the tools stand in | the model says                          | it is told by    |
|---------|--------------------|-----------------------------------------|------------------|
| `tools` | the request        | tool calls; text without a call answers | tool messages    |
| `react` | the system prompt  | `Thought: …`, `Action: name[input]`     | `Observation: …` |

`react` is for models that were not trained on calls, and for servers that do not read them. The
answer is `Action: Finish[…]`. Source of the form: Yao et al. 2023, "ReAct: Synergizing Reasoning
and Acting in Language Models", section 3.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from orchestration.agent.environment import Environment
from orchestration.agent.model import Reply, json_object

_OBSERVATION = "Observation: "

# Before this the endpoint ends a reply: what a tool says is not the model's to write.
_STOP = "\nObservation:"

FINISH = "Finish"

_ACTION = re.compile(r"^[ \t]*Action:", re.MULTILINE)
_CALL = re.compile(r"\s*(?P<name>[^\s\[\]]+)[ \t]*\[(?P<input>.*)\]\s*", re.DOTALL)

_REACT = """\
{instructions}

You act through tools, one call at a time:

{tools}

Write your thought, then one action, and wait for what comes of it:

Thought: what you think
Action: name[{{"argument": "value"}}]

You are told it as `Observation: …`.{finish}"""

_REACT_FINISH = """ When you know the answer, give it, as short as it can be:

Thought: what you think
Action: Finish[the answer]"""


@dataclass(frozen=True)
class Call:
    """A call as the model made it. `call_id` is null in text."""

    call_id: str | None
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """What ends a task: the model's answer."""

    text: str


@dataclass(frozen=True)
class Malformed:
    """What is neither; `problem` tells the model why. `call_id` is the call that it is about."""

    problem: str
    call_id: str | None = None


Action = Call | Answer | Malformed


class Style(Protocol):
    """One of the two; see the table above."""

    name: str
    stop: Sequence[str]

    def opening(self, environment: Environment, first: str) -> list[dict[str, Any]]:
        """The first messages: what the system and the user say."""
        ...

    def request_tools(self, environment: Environment) -> Sequence[Mapping[str, Any]]:
        """The tools that go with every request."""
        ...

    def actions(self, environment: Environment, reply: Reply) -> list[Action]:
        """What a reply does, in its order; never empty."""
        ...

    def told(self, text: str, call_id: str | None) -> dict[str, Any]:
        """An observation as a message.

        Args:
            call_id: the call it answers; null where there was none.
        """
        ...


class ToolsStyle:
    """Native calls."""

    name = "tools"
    stop: Sequence[str] = ()

    def opening(self, environment: Environment, first: str) -> list[dict[str, Any]]:
        """Instructions, if there are any, and the user's message."""
        system = [{"role": "system", "content": environment.instructions}]
        return (system if environment.instructions else []) + [{"role": "user", "content": first}]

    def request_tools(self, environment: Environment) -> Sequence[Mapping[str, Any]]:
        """All of them."""
        return environment.tools

    def actions(self, environment: Environment, reply: Reply) -> list[Action]:
        """Its calls; without any, its text is the answer."""
        found: list[Action] = []
        for call in reply.calls:
            call_id, name = call["id"], call["function"]["name"]
            arguments = json_object(call["function"]["arguments"])
            if arguments is None:
                found.append(
                    Malformed(f"The arguments of {name} are no JSON object. Call again.", call_id)
                )
            else:
                found.append(_checked(environment, call_id, name, arguments))
        if found:
            return found
        if not environment.takes_answers:
            names = ", ".join(_names(environment))
            return [Malformed(f"Nothing happened: act by calling {names}.")]
        if not reply.text.strip():
            return [Malformed("Your reply was empty. Answer, or call a tool.")]
        return [Answer(reply.text)]

    def told(self, text: str, call_id: str | None) -> dict[str, Any]:
        """What a tool says, or, where none was called, the user."""
        if call_id is None:
            return {"role": "user", "content": text}
        return {"role": "tool", "tool_call_id": call_id, "content": text}


class ReactStyle:
    """Thoughts, actions and observations as text."""

    name = "react"
    stop: Sequence[str] = (_STOP,)

    def opening(self, environment: Environment, first: str) -> list[dict[str, Any]]:
        """Instructions with every tool's schema, and the user's message."""
        tools = "\n".join(
            json.dumps(each["function"], ensure_ascii=False) for each in environment.tools
        )
        content = _REACT.format(
            instructions=environment.instructions or "Answer the user.",
            tools=tools or "(there are none)",
            finish=_REACT_FINISH if environment.takes_answers else "",
        )
        return [{"role": "system", "content": content}, {"role": "user", "content": first}]

    def request_tools(self, environment: Environment) -> Sequence[Mapping[str, Any]]:
        """None: they stand in the prompt."""
        return ()

    def actions(self, environment: Environment, reply: Reply) -> list[Action]:
        """The one action of the text."""
        return [self._action(environment, reply.text)]

    def _action(self, environment: Environment, text: str) -> Action:
        places = list(_ACTION.finditer(text))
        if _STOP in f"\n{text}":
            return Malformed("Observations are not yours to write. End with one action.")
        if len(places) != 1:
            return Malformed(
                f"There are {len(places)} actions in your reply. End it with one line "
                "`Action: name[input]`."
            )
        found = _CALL.fullmatch(text, places[0].end())
        if not found:
            return Malformed("The action is not written as `Action: name[input]`, at the end.")
        name, given = found["name"], found["input"].strip()
        if name.lower() == FINISH.lower():
            if environment.takes_answers:
                return Answer(given)
            return Malformed("There is nothing to finish: the environment says when it is over.")
        # An input is a JSON object; for a tool with one text as argument, that text will do.
        arguments = json_object(given or "{}")
        text_only = _text_argument(environment, name)
        if text_only and (arguments is None or not given):
            arguments = {text_only: given}
        checked = _checked(environment, None, name, arguments or {})
        if isinstance(checked, Call) and arguments is None:
            return Malformed(f"The input of {name} is no JSON object of its arguments.")
        return checked

    def told(self, text: str, call_id: str | None) -> dict[str, Any]:
        """An observation, as the user's message."""
        return {"role": "user", "content": _OBSERVATION + text}


STYLES: Mapping[str, Style] = {style.name: style for style in (ToolsStyle(), ReactStyle())}


def _text_argument(environment: Environment, name: str) -> str | None:
    """The argument of a tool that takes one text and nothing else."""
    for each in environment.tools:
        if each["function"]["name"] == name:
            properties = each["function"]["parameters"].get("properties", {})
            if [value.get("type") for value in properties.values()] == ["string"]:
                return str(next(iter(properties)))
    return None


def _names(environment: Environment) -> list[str]:
    return [each["function"]["name"] for each in environment.tools]


def _checked(
    environment: Environment, call_id: str | None, name: str, arguments: Mapping[str, Any]
) -> Action:
    """A call of a tool that there is."""
    names = _names(environment)
    if name in names:
        return Call(call_id, name, arguments)
    there = f"There are: {', '.join(names)}." if names else "There are none."
    return Malformed(f"There is no tool called {name}. {there}", call_id)
