"""A model on loopback that says what a test tells it to, by chat completions."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from loopback import Handler, LoopbackServer

# A message of the assistant; a status with an error's code; or seconds to say nothing for.
Said = dict[str, Any] | tuple[int, str] | float


class ScriptedModel(LoopbackServer):
    """Answers at `base_url` by `say(body)`; `bodies` has what was asked."""

    def __init__(self, say: Callable[[dict[str, Any]], Said]) -> None:
        self.say = say
        self.bodies: list[dict[str, Any]] = []
        super().__init__(_Handler)


def text(content: str, *, is_cut: bool = False) -> dict[str, Any]:
    """A reply in words."""
    return {"role": "assistant", "content": content, "is_cut": is_cut}


def calls(*given: tuple[str, str]) -> dict[str, Any]:
    """A reply that calls: (name, arguments as the model writes them), …"""
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
            for number, (name, arguments) in enumerate(given, start=1)
        ],
    }


def in_turn(*replies: Said) -> Callable[[dict[str, Any]], Said]:
    """Says one after another, by how often the model has spoken in the conversation."""

    def say(body: dict[str, Any]) -> Said:
        return replies[sum(message["role"] == "assistant" for message in body["messages"])]

    return say


class _Handler(Handler):
    server: ScriptedModel

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        said = self.server.say(body)
        if isinstance(said, float):
            self.server.closing.wait(said)
            self.close_connection = True
        elif isinstance(said, tuple):
            status, code = said
            key = self.headers["Authorization"].removeprefix("Bearer ")
            self.send_json(
                status, {"error": {"message": f"no: {key}", "code": code, "type": "error"}}
            )
        else:
            message = dict(said)
            reason = "length" if message.pop("is_cut", False) else "stop"
            choice = {"index": 0, "message": message, "finish_reason": reason}
            reply = {"id": "r", "object": "chat.completion", "created": 0, "model": body["model"]}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.send_json(200, reply | {"choices": [choice], "usage": usage})
