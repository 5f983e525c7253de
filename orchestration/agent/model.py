"""The model that acts, behind an OpenAI-compatible endpoint.

Retries, Retry-After and time-outs are the openai client's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import openai

from udfs.errors import ConfigError, EndpointError
from udfs.llm.client import general_error
from udfs.llm.endpoint import Endpoint

# What a request has of its own; the parameters may not change it.
_OWN_FIELDS = {"tools", "stop", "timeout", "extra_body", "extra_headers", "extra_query"}


class NoReply(Exception):
    """One request had no reply that could be used; the text says why, without the key."""


@dataclass(frozen=True)
class Reply:
    """What the model said: `message` as it goes back to it, `is_cut` where a limit ended it."""

    message: Mapping[str, Any]
    is_cut: bool

    @property
    def text(self) -> str:
        """What it wrote beside calls."""
        return str(self.message["content"] or "")

    @property
    def calls(self) -> Sequence[Mapping[str, Any]]:
        """Its calls, in OpenAI's shape; arguments are JSON text as the model wrote it."""
        return list(self.message.get("tool_calls") or [])


class Model:
    """A model at `OPENAI_BASE_URL`, asked with `OPENAI_API_KEY`. Threads may share it.

    Args:
        name: its name there.
        parameters: further fields of every request, `max_tokens` among them.
        timeout_s: how long the endpoint may take for a reply.

    Raises:
        ConfigError: there is no key, no address, or a parameter that is not free.
    """

    def __init__(self, name: str, parameters: Mapping[str, Any], timeout_s: float) -> None:
        if own := sorted(_OWN_FIELDS & parameters.keys()):
            raise ConfigError(f"--parameters sets {', '.join(own)}, which is not free. Remove it.")
        self._endpoint = Endpoint(name, parameters, prefix="")
        self.name = name
        self.parameters = parameters
        self._client = openai.OpenAI(
            api_key=self._endpoint.key, base_url=self._endpoint.address, timeout=timeout_s
        )

    @property
    def address(self) -> str:
        """Where it is asked, without what may be secret in an address."""
        url = self._client.base_url
        return f"{url.scheme}://{url.netloc.decode().rpartition('@')[2]}{url.path}".rstrip("/")

    def ask(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        stop: Sequence[str] = (),
    ) -> Reply:
        """One reply to a conversation.

        Args:
            tools: functions it may call, in OpenAI's shape.
            stop: texts before which the endpoint ends a reply.

        Raises:
            EndpointError: nothing that is asked will be answered.
            TimeoutError: it took too long.
            NoReply: this was not answered.
        """
        further: dict[str, Any] = dict(self.parameters)
        if tools:
            further["tools"] = list(tools)
        if stop:
            further["stop"] = list(stop)
        request: Any = self._client.chat.completions.create
        try:
            reply = request(model=self.name, messages=list(map(_sent, messages)), **further)
        except openai.APITimeoutError:
            raise TimeoutError("the model did not reply in time") from None
        except openai.APIConnectionError as error:
            raise EndpointError(
                f"The endpoint {self.address} cannot be reached ({type(error).__name__}). Check "
                "OPENAI_BASE_URL, and that the model is served: python -m train.serve <run>."
            ) from None
        except openai.APIStatusError as error:
            # The client's own error may print the key.
            general = general_error(self._endpoint, error)
            why = self._endpoint.without_key(f"{type(error).__name__}: {error}")
            raise general or NoReply(why) from None
        except (openai.OpenAIError, json.JSONDecodeError) as error:
            raise NoReply(self._endpoint.without_key(f"{type(error).__name__}: {error}")) from None
        if not getattr(reply, "choices", None):
            raise NoReply("the endpoint's reply holds no choice")
        choice = reply.choices[0]
        return Reply(_message(choice.message), choice.finish_reason == "length")


def _sent(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as it goes to the endpoint.

    Arguments that are no JSON object go as one that holds them: servers read the arguments of
    earlier calls, for the chat template, and answer by an error where they cannot.
    """
    calls = message.get("tool_calls")
    if not calls or all(json_object(call["function"]["arguments"]) is not None for call in calls):
        return message
    return {
        **message,
        "tool_calls": [
            {**call, "function": {**call["function"], "arguments": _as_object(call)}}
            for call in calls
        ],
    }


def _as_object(call: Mapping[str, Any]) -> str:
    given: str = call["function"]["arguments"]
    return json.dumps({"unreadable": given}) if json_object(given) is None else given


def json_object(text: str) -> Mapping[str, Any] | None:
    """The JSON object that a text is; None where it is none."""
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _message(said: Any) -> dict[str, Any]:
    """A reply as the message that goes back, and into the record: nothing in it is null but the
    content of a reply that only calls."""
    message: dict[str, Any] = {"role": "assistant", "content": said.content}
    thought = getattr(said, "reasoning_content", None)
    if isinstance(thought, str) and thought:
        message["reasoning_content"] = thought
    calls = [
        {
            "id": call.id or f"call_{number}",
            "type": "function",
            "function": {
                "name": str(call.function.name),
                # Some servers give an object; a call without arguments has an empty text.
                "arguments": _text(call.function.arguments) or "{}",
            },
        }
        for number, call in enumerate(said.tool_calls or [], start=1)
        if getattr(call, "function", None)
    ]
    if calls:
        message["tool_calls"] = calls
    return message


def _text(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else json.dumps(arguments)
